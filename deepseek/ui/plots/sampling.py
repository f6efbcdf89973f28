"""What the samplers did to the model's distribution."""

import plotly.graph_objects as go

from deepseek.inference.sampling import SAMPLERS, SamplingParams
from deepseek.ui.plots.style import EXPERT_COLOURS, heatmap, label, layout, token_axis, token_names

MAX_CANDIDATES = 12


def funnel(token, params: SamplingParams) -> go.Figure:
    """Candidates x samplers of one TokenTrace: probabilities in percents; ▶ marks the sampled token, ✕ a removed one.

    Columns are the samplers that were active; the caption names those that `params` disable, and those that were skipped
    because they would have removed every candidate.
    """
    columns, headings, num_before = [("model", 0)], ["model"], token.stages[0].num_candidates
    for index, stage in enumerate(token.stages):
        if stage.active:
            note = "reshaped" if stage.num_candidates == num_before else f"{stage.num_candidates:,} left"
            columns.append((stage.name, index + 1))
            headings.append(f"{stage.name}<br>{note if stage.changed else 'no change'}")
        num_before = stage.num_candidates
    candidates = [c for c in token.candidates[:MAX_CANDIDATES] if c.id != token.id][: MAX_CANDIDATES - 1]
    candidates += [c for c in token.candidates if c.id == token.id]
    candidates.sort(key=lambda c: (-c.probabilities[-1], -c.probabilities[0]))
    names = [("▶ " if c.id == token.id else "") + label(c.text) for c in candidates]
    rows = [f"{rank} {name}" for rank, name in enumerate(names, 1)]  # unique, as plotly's categories must be
    figure = heatmap(
        [[100 * c.probabilities[index] or None for _, index in columns] for c in candidates],
        headings,
        rows,
        110 + 26 * len(rows),
        "%{y}<br>%{x}: %{text} %",
        [[0, "rgba(230,159,0,0.06)"], [1, "rgba(230,159,0,0.6)"]],
        text=[_cells(candidate, columns) for candidate in candidates],
        texttemplate="%{text}",
        hoverongaps=False,
        zmin=0,
        zmax=100,
        showscale=False,
    )
    figure.update_traces(xgap=3, ygap=2).update_layout(margin=dict(l=90, r=10, t=50, b=30))
    figure.update_xaxes(side="top", type="category")
    figure.update_yaxes(type="category", ticktext=names, tickvals=rows)
    notes = {"off": [], "skipped, as it would leave no token": []}
    off, skipped = notes.values()
    for stage in token.stages:
        if not stage.active:
            (skipped if SAMPLERS[stage.name].active(params) else off).append(stage.name)
    caption = " · ".join(f"{note}: {', '.join(names)}" for note, names in notes.items() if names)
    position = dict(xref="paper", yref="paper", x=0, y=-0.02, xanchor="left", yanchor="top")
    return figure.add_annotation(text=caption, showarrow=False, **position) if caption else figure


def _cells(candidate, columns: list[tuple[str, int]]) -> list[str]:
    cells = []
    for name, index in columns:
        if candidate.removed_by == name:
            return [*cells, "✕"] + [""] * (len(columns) - len(cells) - 1)
        cells.append(f"{100 * candidate.probabilities[index]:.1f}")
    return cells


def entropy_and_temperature(tokens) -> go.Figure:
    """Entropy of the model's distribution, and the temperature used, token by token."""
    texts = [token.text for token in tokens]
    names, figure = token_names(texts), go.Figure()
    for name, values, colour, axis in (
        ("entropy, nats", [token.entropy for token in tokens], EXPERT_COLOURS[4], "y"),
        ("temperature", [token.temperature for token in tokens], EXPERT_COLOURS[5], "y2"),
    ):
        rounded = [round(value, 3) for value in values]
        figure.add_scatter(x=names, y=rounded, name=name, line=dict(color=colour, width=1.5), yaxis=axis)
    layout(figure, 240, legend_y=1.2, margin=dict(l=50, r=50, t=30, b=40)).update_layout(
        yaxis=dict(title="entropy, nats", rangemode="tozero"),
        yaxis2=dict(title="temperature", overlaying="y", side="right", rangemode="tozero", showgrid=False),
    )
    return figure.update_xaxes(**token_axis(texts))
