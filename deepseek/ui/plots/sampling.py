"""What the samplers did to the model's distribution."""

from math import inf

import plotly.graph_objects as go

from deepseek.inference.sampling import SAMPLERS, SamplingParams, is_active
from deepseek.ui.plots.style import EXPERT_COLOURS, heatmap, label, layout, token_axis, token_names

MAX_CANDIDATES = 12


def funnel(token, params: SamplingParams) -> go.Figure:
    """Candidates x samplers of one TokenTrace: probabilities in percents; ▶ marks the sampled token, ✕ a removed one.

    Columns are the samplers that were active, each with the probability that it removed or moved and what it reports; the
    caption names those that mirostat replaces, and those that were skipped because they would have removed every candidate.
    """
    columns, headings, num_before = [("model", 0)], ["model"], inf
    for index, stage in enumerate(token.stages):
        if stage.active:
            is_cut = stage.num_candidates < num_before
            note = f"{stage.num_candidates:,} left" if is_cut else "reshaped"
            lines = [stage.name, note if stage.changed else "no change"]
            if stage.changed:
                lines.append(f"{100 * stage.moved:.1f} % {'removed' if is_cut else 'moved'}")
            columns.append((stage.name, index + 1))
            headings.append("<br>".join([*lines, *reports(stage)]))
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
        130 + 26 * len(rows),
        "%{y}<br>%{x}: %{text} %",
        [[0, "rgba(230,159,0,0.06)"], [1, "rgba(230,159,0,0.6)"]],
        text=[_cells(candidate, columns) for candidate in candidates],
        texttemplate="%{text}",
        hoverongaps=False,
        zmin=0,
        zmax=100,
        showscale=False,
    )
    figure.update_traces(xgap=3, ygap=2).update_layout(margin=dict(l=90, r=10, t=80, b=30))
    figure.update_xaxes(side="top", type="category", tickangle=0, tickfont_size=11)
    figure.update_yaxes(type="category", ticktext=names, tickvals=rows)
    unused = [stage.name for stage in token.stages if not stage.active and SAMPLERS[stage.name].active(params)]
    notes = {
        "replaced by mirostat": [name for name in unused if not is_active(name, params)],
        "skipped, as it would leave no token": [name for name in unused if is_active(name, params)],
    }
    caption = " · ".join(f"{note}: {', '.join(names)}" for note, names in notes.items() if names)
    position = dict(xref="paper", yref="paper", x=0, y=-0.02, xanchor="left", yanchor="top")
    return figure.add_annotation(text=caption, showarrow=False, **position) if caption else figure


def reports(stage) -> list[str]:
    """What a Stage reports, in words: XTC's random number, what mirostat and adaptive-p keep along the text, DRY's match."""
    details = stage.details
    if stage.name == "XTC":
        return [f"drew {details['drawn']:.2f}: {'acts' if details['acts'] else 'rests'}"]
    if stage.name == "mirostat":
        return [f"mu {details['mu']:.2f} bits"]
    if stage.name == "adaptive-p":
        return [f"target {details['target']:.2f}", f"average {details['average']:.2f}"]
    if stage.name == "DRY":
        return [f"repeats {details['match']:.0f}" if details["match"] else "no repetition"]
    return []


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


def sweep_stats(name: str, values: list, stats: list[dict[str, float]]) -> go.Figure:
    """`sample_stats` of the samples of a setting's values: shares on the left axis, length on the right."""
    figure, x = go.Figure(), [f"{value:g}" for value in values]
    for key, line_name, colour, dash in (
        ("mean_probability", "mean probability", 4, "solid"),
        ("distinct_2_grams", "distinct 2-grams", 2, "solid"),
        ("repeated_4_grams", "repeated 4-grams", 5, "solid"),
        ("tokens", "length", 7, "dot"),
    ):
        y, line = [round(each[key], 3) for each in stats], dict(color=EXPERT_COLOURS[colour], width=1.5, dash=dash)
        axis = "y2" if key == "tokens" else "y"
        figure.add_scatter(x=x, y=y, name=line_name, line=line, yaxis=axis, mode="lines+markers")
    layout(figure, 320, legend_y=1.25, margin=dict(l=50, r=50, t=60, b=40)).update_layout(
        yaxis=dict(title="share", range=[-0.03, 1.03]),
        yaxis2=dict(title="tokens", overlaying="y", side="right", rangemode="tozero", showgrid=False),
    )
    return figure.update_xaxes(type="category", title=name)
