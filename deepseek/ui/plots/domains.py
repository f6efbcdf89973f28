"""How differently texts are routed."""

import plotly.graph_objects as go

from deepseek.ui.plots.routing import layer_names
from deepseek.ui.plots.style import EXPERT_COLOURS, TEXT, layout


def divergence_bars(layers: list[int], pairs: dict[str, tuple[list[float], list[float]]]) -> go.Figure:
    """A bar for every layer and pair of texts, its divergence in bits, with a mark at what chance alone would give.

    `pairs` is {name of the pair: (divergence of each layer, chance of each layer)}.
    """
    names = layer_names(layers)
    figure = go.Figure()
    for number, (pair, (found, _)) in enumerate(pairs.items()):
        figure.add_bar(
            x=names,
            y=[round(value, 5) for value in found],
            name=pair,
            offsetgroup=pair,
            marker=dict(color=EXPERT_COLOURS[number % len(EXPERT_COLOURS)]),
            hovertemplate=f"%{{x}}, {pair}: %{{y:.3f}} bits<extra></extra>",
        )
    for pair, (_, chance) in pairs.items():
        figure.add_bar(
            x=names,
            y=[round(value, 5) for value in chance],
            name=f"{pair}, by chance",
            offsetgroup=pair,
            marker=dict(color="rgba(0,0,0,0)", line=dict(color=TEXT, width=2)),
            showlegend=False,
            hovertemplate=f"%{{x}}, {pair}, by chance: %{{y:.3f}} bits<extra></extra>",
        )
    figure = layout(figure, 340, barmode="group", legend=dict(orientation="h", y=-0.15))
    figure.update_yaxes(title="divergence, bits", rangemode="tozero")
    return figure


def load_by_text(shares: dict[str, list[float]]) -> go.Figure:
    """Load of one layer's experts, a bar a text: `shares` is {text's name: share of each expert}."""
    figure = go.Figure()
    for number, (name, share_E) in enumerate(shares.items()):
        figure.add_bar(
            x=[str(expert) for expert in range(len(share_E))],
            y=[round(share, 4) for share in share_E],
            name=name,
            marker=dict(color=EXPERT_COLOURS[number % len(EXPERT_COLOURS)]),
            hovertemplate=f"expert %{{x}}, {name}: %{{y:.1%}}<extra></extra>",
        )
    even = 1 / len(share_E)
    figure.add_hline(y=even, line=dict(color=TEXT, width=1.5, dash="dash"))
    figure = layout(figure, 320, barmode="group", legend=dict(orientation="h", y=1.15, x=0))
    figure.update_xaxes(type="category", title="expert")
    figure.update_yaxes(tickformat=".0%", title="share of choices", rangemode="tozero")
    return figure
