"""Attention weights as figures. `first` is the position of the first of `tokens` in its text."""

import plotly.graph_objects as go
import torch.nn.functional as F
from plotly.subplots import make_subplots

from deepseek.ui.plots import style

MAX_CELLS = 150_000  # of all maps of `attention_small` together, which keeps an update of the page below a megabyte
COLUMNS = 3
HOVER = "token %{y}<br>attends to %{x}: %{z}%"


def attention_map(tokens: list[str], weights_TT, heading: str, first: int = 0) -> go.Figure:
    """One head: how much each token (row) attends to each token (column), in percents."""
    names, axis = style.token_names(tokens, first), style.token_axis(tokens, first)
    weights, options = style.percent(weights_TT), style.PERCENT_SCALE
    figure = style.heatmap(weights, names, names, 620, HOVER, style.SEQUENTIAL, **options)
    return figure.update_layout(title_text=heading).update_xaxes(**axis).update_yaxes(**{**axis, "tickangle": 0})


def attention_small(tokens: list[str], weights_NTT, titles: list[str], first: int = 0) -> go.Figure:
    """Several maps on one colour scale; for long texts each cell is the maximum of a square of tokens."""
    maps = len(titles)
    rows = -(-maps // COLUMNS)
    square = -(-len(tokens) // int((MAX_CELLS / maps) ** 0.5))
    names = style.token_names(tokens, first)[::square]
    spacing = dict(horizontal_spacing=0.04, vertical_spacing=min(0.07, 0.3 / rows))
    figure = make_subplots(rows, COLUMNS, subplot_titles=titles, **spacing)
    for index, weights in enumerate(F.max_pool2d(weights_NTT, square, ceil_mode=True)):
        options = dict(name=titles[index], coloraxis="coloraxis", hovertemplate=f"{HOVER}<extra></extra>")
        small_map = go.Heatmap(z=style.percent(weights), x=names, y=names, **options)
        figure.add_trace(small_map, index // COLUMNS + 1, index % COLUMNS + 1)
    scale = dict(cmin=0, cmax=100, colorscale=style.SEQUENTIAL, colorbar=style.PERCENT_SCALE["colorbar"])
    figure = style.layout(figure, 60 + 220 * rows, coloraxis=scale, margin=dict(l=10, r=10, t=30, b=10))
    figure.update_annotations(font=dict(size=12))
    axis = dict(showticklabels=False, ticks="", showgrid=False, type="category")
    return figure.update_xaxes(**axis).update_yaxes(**axis, autorange="reversed")


def attention_received(tokens: list[str], received_T, first: int = 0) -> go.Figure:
    """The mean attention weight that each token received."""
    received = {"attention": received_T.tolist()}
    hover = "%{x}<br>received %{y:.1%}"
    figure = style.grouped_bars(style.token_names(tokens, first), received, 260, hover, style.EXPERT_COLOURS[1:])
    figure.update_yaxes(tickformat=".0%", title="mean attention weight", rangemode="tozero")
    return figure.update_xaxes(**style.token_axis(tokens, first))
