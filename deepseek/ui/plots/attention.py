"""What the heads looked at. `first` is the number of the first of `tokens` in its text."""

import plotly.graph_objects as go
import torch.nn.functional as F
from plotly.subplots import make_subplots

from deepseek.ui.plots.style import EXPERT_COLOURS, SEQUENTIAL, layout, percent, token_axis

SMALL_CELLS = 150_000  # of all small maps of one figure together: a page's update stays well below a megabyte
COLOURS = dict(colorscale=SEQUENTIAL, colorbar=dict(thickness=12, ticksuffix="%", outlinewidth=0))
HOVER = "token %{y}<br>looks at %{x}: %{z}%<extra></extra>"


def attention_map(tokens: list[str], weights_TT, title: str, first: int = 0) -> go.Figure:
    """What each token (row) looked at (column), for one head; percents."""
    names, axis = token_axis(tokens, first)
    figure = go.Figure(
        go.Heatmap(z=percent(weights_TT), x=names, y=names, zmin=0, zmax=100, hovertemplate=HOVER, **COLOURS)
    )
    figure = layout(figure, 620, title=dict(text=title, font=dict(size=13), x=0.01, xanchor="left"))
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    figure.update_yaxes(**axis, autorange="reversed", showgrid=False)
    return figure


def attention_small(tokens: list[str], weights_NTT, titles: list[str], first: int = 0) -> go.Figure:
    """Several maps beside one another on one scale; of long texts each point is the largest of a square of tokens."""
    maps = len(titles)
    columns = 3
    rows = -(-maps // columns)
    square = -(-len(tokens) // int((SMALL_CELLS / maps) ** 0.5))
    names = token_axis(tokens, first)[0][::square]
    figure = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.04, vertical_spacing=min(0.07, 0.3 / rows)
    )
    for index, weights in enumerate(F.max_pool2d(weights_NTT, square, ceil_mode=True)):
        options = dict(name=titles[index], coloraxis="coloraxis", hovertemplate=HOVER)
        heatmap = go.Heatmap(z=percent(weights), x=names, y=names, **options)
        figure.add_trace(heatmap, index // columns + 1, index % columns + 1)
    figure = layout(figure, 60 + 220 * rows)
    figure.update_layout(coloraxis=dict(cmin=0, cmax=100, **COLOURS), margin=dict(l=10, r=10, t=30, b=10))
    figure.update_annotations(font=dict(size=12))
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False, type="category")
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, type="category", autorange="reversed")
    return figure


def attention_received(tokens: list[str], shares_T, first: int = 0) -> go.Figure:
    """How much of the attention each token received on average."""
    names, axis = token_axis(tokens, first)
    shares = [round(share, 4) for share in shares_T.tolist()]
    hover = "%{x}<br>received %{y:.1%}<extra></extra>"
    figure = go.Figure(go.Bar(x=names, y=shares, marker=dict(color=EXPERT_COLOURS[1]), hovertemplate=hover))
    figure = layout(figure, 260)
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    figure.update_yaxes(tickformat=".0%", title="of the attention", rangemode="tozero")
    return figure
