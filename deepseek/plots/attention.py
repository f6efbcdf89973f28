"""What the heads looked at."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepseek.plots.style import SEQUENTIAL, layout, percent, token_axis


def attention_map(tokens: list[str], weights_TT, title: str) -> go.Figure:
    """What each token (row) looked at (column), for one head; percents."""
    names, axis = token_axis(tokens)
    figure = go.Figure(
        go.Heatmap(
            z=percent(weights_TT),
            x=names,
            y=names,
            zmin=0,
            zmax=100,
            colorscale=SEQUENTIAL,
            hovertemplate="token %{y}<br>looks at %{x}: %{z}%<extra></extra>",
            colorbar=dict(thickness=12, ticksuffix="%", outlinewidth=0),
        )
    )
    figure = layout(figure, 620, title=dict(text=title, font=dict(size=13), x=0.5))
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    figure.update_yaxes(**axis, autorange="reversed", showgrid=False)
    return figure


def attention_heads(weights_HTT, tokens: list[str]) -> go.Figure:
    """All heads of one layer, small, on one scale."""
    heads = len(weights_HTT)
    columns = 3
    rows = -(-heads // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[f"head {head}" for head in range(heads)],
        horizontal_spacing=0.04,
        vertical_spacing=0.07,
    )
    names, _ = token_axis(tokens)
    for head, weights in enumerate(weights_HTT):
        figure.add_trace(
            go.Heatmap(
                z=percent(weights),
                x=names,
                y=names,
                coloraxis="coloraxis",
                hovertemplate="token %{y}<br>looks at %{x}: %{z}%<extra></extra>",
            ),
            head // columns + 1,
            head % columns + 1,
        )
    figure = layout(figure, 60 + 220 * rows)
    figure.update_layout(
        coloraxis=dict(
            colorscale=SEQUENTIAL, cmin=0, cmax=100, colorbar=dict(thickness=12, ticksuffix="%", outlinewidth=0)
        ),
        margin=dict(l=10, r=10, t=30, b=10),
    )
    figure.update_annotations(font=dict(size=12))
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False, type="category")
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, type="category", autorange="reversed")
    return figure
