"""What all figures share: colours, labels, axes, heatmaps and grouped bars.

`label` escapes a token's text for plotly, which reads some markup, and shows invisible characters.
"""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from deepseek.data.tokenizer import show_invisible

# Okabe and Ito's colour-blind safe palette, with grey for black. One colour per expert in every figure.
EXPERT_COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#A6A6A6"]
SEQUENTIAL = [[0, "rgba(41,140,230,0.05)"], [0.25, "rgba(41,140,230,0.5)"], [1, "rgb(41,140,230)"]]
TEXT = "#7b8494"  # readable on dark and light; the style sheet replaces it with the theme's colour
MAX_LABELS = 48  # more token labels overlap
MAX_LABEL_CHARACTERS = 16


def expert_colour(expert: int) -> str:
    """The colour of an expert; the eight colours repeat."""
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def fade(colour: str, opacity: float) -> str:
    """A colour "#rrggbb" with an opacity from 0 to 1, as plotly reads it."""
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},{opacity})"


def plotly_script() -> str:
    """plotly's own script, for a page that draws figures without the network."""
    return get_plotlyjs()


def label(text: str) -> str:
    """`show_invisible`, cut to MAX_LABEL_CHARACTERS and escaped for plotly."""
    text = show_invisible(text)
    short = text if len(text) <= MAX_LABEL_CHARACTERS else text[: MAX_LABEL_CHARACTERS - 1] + "…"
    return html.escape(short, quote=False)


def layer_names(layers) -> list[str]:
    """Axis labels of layers."""
    return [f"layer {layer}" for layer in layers]


def layer_axis(names: list[str]) -> dict:
    """Options of an axis of `layer_names`, level and at most a dozen of them: more overlap."""
    step = max(1, -(-len(names) // 12))
    return dict(tickmode="array", tickvals=names[::step], tickangle=0 if step > 1 else None)


def percent(weights) -> np.ndarray:
    """Weights in [0, 1] as whole percents of one byte each, which keeps a 512 x 512 map small."""
    return np.round(np.asarray(weights) * 100).astype(np.uint8)


def colour_bar(**options) -> dict:
    """The key of a colour scale; `options` are plotly's."""
    return dict(thickness=12, outlinewidth=0, **options)


PERCENT_SCALE = dict(zmin=0, zmax=100, colorbar=colour_bar(ticksuffix="%"))


def layout(figure: go.Figure, height: int, **options) -> go.Figure:
    """`figure` in the project's style, `height` pixels high; `options` are plotly's, such as `legend_y`, 1 for the top."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=dict(color=TEXT, size=12),
        margin=dict(l=60, r=10, t=30, b=48),
        legend=dict(orientation="h", x=0),
        title=dict(font=dict(size=13), x=0.01, xanchor="left"),
        height=height,
    )
    axis = dict(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    return figure.update_layout(**options).update_xaxes(**axis).update_yaxes(**axis)


def token_names(tokens: list[str], first: int = 0) -> list[str]:
    """Unique category names of tokens, numbered from 1 as in the strip; `first` is the first one's position, from 0."""
    return [f"{number} {label(token)}" for number, token in enumerate(tokens, first + 1)]


def token_axis(tokens: list[str], first: int = 0) -> dict:
    """Options of an axis of `token_names` that shows the tokens without their numbers, every nth of many."""
    step = max(1, -(-len(tokens) // MAX_LABELS))
    return dict(
        type="category",
        tickmode="array",
        tickvals=token_names(tokens, first)[::step],
        ticktext=[label(token) for token in tokens[::step]],
        tickfont=dict(size=11),
        tickangle=-60,
        showgrid=False,
    )


def heatmap(z, x, y, height: int, hover: str, colorscale, gap: int = 0, **options) -> go.Figure:
    """A heatmap with the first row on top; `options` are those of go.Heatmap."""
    options = dict(colorscale=colorscale, hovertemplate=f"{hover}<extra></extra>", xgap=gap, ygap=gap, **options)
    figure = layout(go.Figure(go.Heatmap(z=z, x=x, y=y, **options)), height)
    return figure.update_xaxes(showgrid=False).update_yaxes(showgrid=False, autorange="reversed")


def grouped_bars(
    x, series: Mapping[str, Sequence[float]], height: int, hover: str, colours=EXPERT_COLOURS, digits=4, **options
) -> go.Figure:
    """Bars side by side, one colour per entry of `series`; `hover` may hold {name}, `options` are those of go.Bar."""
    figure = go.Figure()
    for index, (name, values) in enumerate(series.items()):
        figure.add_bar(
            x=x,
            y=[round(value, digits) for value in values],
            name=name,
            marker=dict(color=colours[index % len(colours)]),
            hovertemplate=hover.replace("{name}", name) + "<extra></extra>",
            **options,
        )
    return layout(figure, height, barmode="group")
