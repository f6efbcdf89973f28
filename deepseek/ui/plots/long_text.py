"""Vocabulary specialization, co-activation and transitions of experts over a longer text."""

import numpy as np
import plotly.graph_objects as go

from deepseek.ui.plots.routing import DIVERGING, MAX_BARS
from deepseek.ui.plots.style import SEQUENTIAL, TEXT, colour_bar, expert_colour, heatmap, label, layout

MAX_TRANSITIONS = 400  # bands; more cannot be told apart


def vocabulary_specialization(top_tokens: list[list[tuple[str, int, int]]]) -> go.Figure:
    """A row per expert, its most frequent tokens from left to right, coloured by how often it processed them.

    `top_tokens` is that of `routing_stats.vocabulary_specialization`.
    """
    width = max(map(len, top_tokens))
    padded = [row + [("", 0, 0)] * (width - len(row)) for row in top_tokens]
    figure = heatmap(
        [[count for _, count, _ in row] for row in padded],
        [f"{rank}." for rank in range(1, width + 1)],
        [f"expert {expert}" for expert in range(len(padded))],
        90 + 30 * len(padded),
        "%{y}, %{customdata}",
        SEQUENTIAL,
        gap=2,
        text=[[label(token) if count else "" for token, count, _ in row] for row in padded],
        texttemplate="%{text}",
        textfont=dict(color=TEXT, size=12),
        customdata=[[f"{label(token)}: {n} of its {total}" if n else "" for token, n, total in row] for row in padded],
        colorbar=colour_bar(title=dict(text="times", side="top")),
    )
    return figure.update_yaxes(dtick=1).update_xaxes(type="category", side="top")


def co_activation(ratio_EE) -> go.Figure:
    """Pairs of experts: how often they are chosen together, in powers of 2 around what their loads alone predict."""
    ratio_EE = np.asarray(ratio_EE, dtype=float)
    experts = [str(expert) for expert in range(len(ratio_EE))]
    small = len(experts) <= MAX_BARS

    def cells(form) -> list[list]:
        return [["" if np.isnan(ratio) else form.format(ratio) for ratio in row] for row in ratio_EE]

    figure = heatmap(
        [[None if np.isnan(ratio) else max(-2, min(2, np.log2(ratio or 1e-9))) for ratio in row] for row in ratio_EE],
        experts,
        experts,
        130 + (28 if small else 10) * len(experts),
        "experts %{y} and %{x}: %{customdata} × expected",
        DIVERGING,
        gap=1,
        customdata=cells("{:.2f}"),
        text=cells("{:.1f}"),
        texttemplate="%{text}" if small else None,
        textfont=dict(color=TEXT),
        zmin=-2,
        zmax=2,
        colorbar=colour_bar(tickvals=[-2, -1, 0, 1, 2], ticktext=["¼ ×", "½ ×", "1 ×", "2 ×", "4 ×"]),
        hoverongaps=False,
    )
    return figure.update_yaxes(type="category", title="expert").update_xaxes(type="category", title="expert")


def transitions(counts, routing) -> go.Figure:
    """Top expert to top expert from layer to layer, as bands as wide as their number of tokens.

    `counts` are (i, e, f, tokens) from routing[i] to routing[i + 1]; the MAX_TRANSITIONS widest are drawn.
    """
    counts = sorted(counts, key=lambda band: -band[3])[:MAX_TRANSITIONS]
    nodes = sorted({(i, e) for i, e, _, _ in counts} | {(i + 1, f) for i, _, f, _ in counts})
    index_of = {node: index for index, node in enumerate(nodes)}
    sankey = go.Sankey(
        arrangement="snap",
        node=dict(
            label=[f"{routing[i].layer}:{e}" for i, e in nodes],
            color=[expert_colour(e) for _, e in nodes],
            pad=6,
            thickness=12,
            line=dict(width=0),
            hovertemplate="layer:expert %{label}, %{value} tokens<extra></extra>",
        ),
        link=dict(
            source=[index_of[i, e] for i, e, _, _ in counts],
            target=[index_of[i + 1, f] for i, _, f, _ in counts],
            value=[tokens for *_, tokens in counts],
            color=[_faint(expert_colour(e)) for _, e, _, _ in counts],
            hovertemplate="%{source.label} → %{target.label}: %{value} tokens<extra></extra>",
        ),
        textfont=dict(color=TEXT, size=11, shadow="none"),
    )
    return layout(go.Figure(sankey), 420)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"
