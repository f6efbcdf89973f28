"""What a longer text tells of the experts: what each takes, who fires together, what follows what."""

import numpy as np
import plotly.graph_objects as go

from deepseek.ui.plots.routing import DIVERGING, MAX_BARS
from deepseek.ui.plots.style import SEQUENTIAL, TEXT, expert_colour, label, layout

MAX_TRANSITIONS = 400  # bands of a flow; more are a haze


def vocabulary_specialization(favourites) -> go.Figure:
    """A row an expert, its most frequent tokens from left to right; a cell holds the token, its colour how often."""
    width = max(map(len, favourites))
    padded = [row + [("", 0, 0)] * (width - len(row)) for row in favourites]
    figure = go.Figure(
        go.Heatmap(
            z=[[taken for _, taken, _ in row] for row in padded],
            x=[f"{place}." for place in range(1, width + 1)],
            y=[f"expert {expert}" for expert in range(len(padded))],
            text=[[label(token) if taken else "" for token, taken, _ in row] for row in padded],
            texttemplate="%{text}",
            textfont=dict(color=TEXT, size=12),
            customdata=[
                [f"{label(t)}: {taken} of its {total}" if taken else "" for t, taken, total in row] for row in padded
            ],
            hovertemplate="%{y}, %{customdata}<extra></extra>",
            colorscale=SEQUENTIAL,
            colorbar=dict(title=dict(text="times", side="top"), thickness=12, outlinewidth=0),
            xgap=2,
            ygap=2,
        )
    )
    figure = layout(figure, 90 + 30 * len(padded))
    figure.update_yaxes(autorange="reversed", showgrid=False, dtick=1)
    figure.update_xaxes(type="category", showgrid=False, side="top")
    return figure


def co_activation(ratio_EE) -> go.Figure:
    """Pairs of experts: how often chosen together, in powers of 2 around what their loads alone would give."""
    ratio_EE = np.asarray(ratio_EE, dtype=float)
    experts = [str(expert) for expert in range(len(ratio_EE))]
    small = len(experts) <= MAX_BARS
    figure = go.Figure(
        go.Heatmap(
            z=[
                [None if np.isnan(ratio) else max(-2, min(2, np.log2(ratio or 1e-9))) for ratio in row]
                for row in ratio_EE
            ],
            x=experts,
            y=experts,
            customdata=[["" if np.isnan(ratio) else f"{ratio:.2f}" for ratio in row] for row in ratio_EE],
            text=[["" if np.isnan(ratio) else f"{ratio:.1f}" for ratio in row] for row in ratio_EE],
            texttemplate="%{text}" if small else None,
            textfont=dict(color=TEXT),
            hovertemplate="experts %{y} and %{x}: %{customdata} × chance<extra></extra>",
            zmin=-2,
            zmax=2,
            colorscale=DIVERGING,
            colorbar=dict(
                tickvals=[-2, -1, 0, 1, 2], ticktext=["¼ ×", "½ ×", "1 ×", "2 ×", "4 ×"], thickness=12, outlinewidth=0
            ),
            xgap=1,
            ygap=1,
            hoverongaps=False,
        )
    )
    figure = layout(figure, 130 + (28 if small else 10) * len(experts))
    figure.update_yaxes(type="category", title="expert", autorange="reversed", showgrid=False)
    figure.update_xaxes(type="category", title="expert", showgrid=False)
    return figure


def transitions(steps, routing) -> go.Figure:
    """First expert to first expert, layer by layer, as bands as broad as the tokens that went that way.

    `steps` are (i, e, f, tokens) from routing[i] to routing[i + 1]; of many the MOST_BANDS broadest are drawn.
    """
    steps = sorted(steps, key=lambda step: -step[3])[:MAX_TRANSITIONS]
    nodes = sorted({(i, e) for i, e, _, _ in steps} | {(i + 1, f) for i, _, f, _ in steps})
    place = {node: index for index, node in enumerate(nodes)}
    figure = go.Figure(
        go.Sankey(
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
                source=[place[i, e] for i, e, _, _ in steps],
                target=[place[i + 1, f] for i, _, f, _ in steps],
                value=[tokens for *_, tokens in steps],
                color=[_faint(expert_colour(e)) for _, e, _, _ in steps],
                hovertemplate="%{source.label} → %{target.label}: %{value} tokens<extra></extra>",
            ),
            textfont=dict(color=TEXT, size=11, shadow="none"),
        )
    )
    return layout(figure, 420)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"
