"""The logit lens."""

import plotly.graph_objects as go

from deepseek.ui.plots import style

MAX_TEXT_TOKENS = 16  # more tokens leave no room for text in the cells


def lens_map(tokens: list[str], lens) -> go.Figure:
    """Layers x tokens: each layer's prediction after each token, coloured by its probability."""
    names, rows = style.token_names(tokens), ["embedding", *style.layer_names(range(len(lens.texts) - 1))]
    figure = style.heatmap(
        style.percent(lens.probabilities),
        names,
        rows,
        160 + 32 * len(rows),
        "after %{x}<br>%{y} predicts %{customdata}, %{z}%",
        [[0, "rgba(230,159,0,0.05)"], [1, "rgba(230,159,0,0.75)"]],
        gap=1,
        customdata=[[style.label(text) for text in row] for row in lens.texts],
        texttemplate="%{customdata}" if len(tokens) <= MAX_TEXT_TOKENS else None,
        zmin=0,
        zmax=100,
        colorbar=style.PERCENT_BAR,
    )
    figure.add_scatter(
        x=names,
        y=[rows[row] for row in lens.first_match_layer],
        mode="markers",
        marker=dict(symbol="circle", size=7, color=style.EXPERT_COLOURS[4], line=dict(color="#fff", width=1)),
        name="first layer that predicts the model's token",
        hovertemplate="after %{x}: the model's token is first predicted at %{y}<extra></extra>",
    )
    figure.update_layout(legend=style.legend(1.14), showlegend=True).update_xaxes(
        **style.token_axis(tokens), tickangle=-60
    )
    return figure.update_yaxes(autorange=True, categoryorder="array", categoryarray=rows)
