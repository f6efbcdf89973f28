"""What each layer would say next."""

import plotly.graph_objects as go

from deepseek.ui.plots.style import EXPERT_COLOURS, label, layout, percent, token_axis


def lens_map(tokens: list[str], lens) -> go.Figure:
    """Layers x tokens: what each layer would say after each token, coloured by how sure it is of that."""
    names, axis = token_axis(tokens)
    rows = ["embedding", *(f"layer {layer}" for layer in range(len(lens.texts) - 1))]
    figure = go.Figure(
        go.Heatmap(
            z=percent(lens.probabilities),
            x=names,
            y=rows,
            customdata=[[label(text) for text in row] for row in lens.texts],
            hovertemplate="after %{x}<br>%{y} says %{customdata}, %{z}%<extra></extra>",
            texttemplate="%{customdata}" if len(tokens) <= 16 else None,
            zmin=0,
            zmax=100,
            colorscale=[[0, "rgba(230,159,0,0.05)"], [1, "rgba(230,159,0,0.75)"]],
            colorbar=dict(thickness=12, ticksuffix="%", outlinewidth=0),
            xgap=1,
            ygap=1,
        )
    )
    first = lens.first_match_layer
    figure.add_scatter(
        x=names,
        y=[rows[row] for row in first],
        mode="markers",
        marker=dict(symbol="circle", size=7, color=EXPERT_COLOURS[4], line=dict(color="#fff", width=1)),
        name="first layer that says what the model says",
        hovertemplate="after %{x}: the final choice first leads at %{y}<extra></extra>",
    )
    figure = layout(figure, 160 + 32 * len(rows), legend=dict(orientation="h", y=1.14, x=0), showlegend=True)
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    figure.update_yaxes(showgrid=False, categoryorder="array", categoryarray=rows)
    return figure
