"""What the sampler did."""

import plotly.graph_objects as go

from deepseek.inference.sampling import SAMPLERS, SamplingParams
from deepseek.ui.plots.style import EXPERT_COLOURS, label, layout, token_axis


def funnel(token, params: SamplingParams) -> go.Figure:
    """What the sampler did for one TokenTrace: candidates x stages, percents; the drawn one is marked.

    Only stages that changed something, or could have, are columns; the caption names those that `params` leave off, and
    those passed over because they would have left no token.
    """
    shown = [index for index, stage in enumerate(token.stages) if stage.active]
    columns = ["model"]
    for index in shown:
        stage = token.stages[index]
        before = token.stages[index - 1].num_candidates if index else stage.num_candidates
        note = (
            "no change"
            if not stage.changed
            else "reshaped"
            if stage.num_candidates == before
            else f"{stage.num_candidates:,} left"
        )
        columns.append(f"{stage.name}<br>{note}")
    candidates = [c for c in token.candidates[:12] if c.id != token.id][:11]
    candidates += [c for c in token.candidates if c.id == token.id]
    candidates.sort(key=lambda c: (-c.probabilities[-1], -c.probabilities[0]))
    rows, texts, percents = [], [], []
    for rank, candidate in enumerate(candidates, 1):
        rows.append(f"{rank} {'▶ ' if candidate.id == token.id else ''}{label(candidate.text)}")
        values = [candidate.probabilities[0]] + [candidate.probabilities[index + 1] for index in shown]
        percents.append([100 * value if value else None for value in values])
        gone = False
        line = []
        for column, value in enumerate(values):
            name = "model" if column == 0 else token.stages[shown[column - 1]].name
            removed = candidate.removed_by == name
            line.append("✕" if removed else "" if gone else f"{100 * value:.1f}")
            gone = gone or removed
        texts.append(line)
    idle = [stage.name for stage in token.stages if not stage.active]
    passed = [name for name in idle if SAMPLERS[name][0](params)]
    off = [name for name in idle if name not in passed]
    caption = ["off: " + ", ".join(off)] if off else []
    caption += ["passed over, as it would leave no token: " + ", ".join(passed)] if passed else []
    figure = go.Figure(
        go.Heatmap(
            z=percents,
            x=columns,
            y=rows,
            text=texts,
            texttemplate="%{text}",
            hovertemplate="%{y}<br>%{x}: %{text} %<extra></extra>",
            hoverongaps=False,
            zmin=0,
            zmax=100,
            colorscale=[[0, "rgba(230,159,0,0.06)"], [1, "rgba(230,159,0,0.6)"]],
            showscale=False,
            xgap=3,
            ygap=2,
        )
    )
    figure = layout(figure, 110 + 26 * len(rows))
    figure.update_layout(margin=dict(l=90, r=10, t=50, b=30))
    figure.update_xaxes(side="top", showgrid=False, type="category")
    figure.update_yaxes(
        autorange="reversed",
        showgrid=False,
        type="category",
        ticktext=[row.split(" ", 1)[1] for row in rows],
        tickvals=rows,
    )
    if caption:
        figure.add_annotation(
            text=" · ".join(caption),
            xref="paper",
            yref="paper",
            x=0,
            y=-0.02,
            yanchor="top",
            xanchor="left",
            showarrow=False,
        )
    return figure


def entropy_and_temperature(tokens) -> go.Figure:
    """Entropy of the model and temperature used, token by token."""
    names, axis = token_axis([token.text for token in tokens])
    figure = go.Figure()
    figure.add_scatter(
        x=names,
        y=[round(t.entropy, 3) for t in tokens],
        name="entropy, nats",
        line=dict(color=EXPERT_COLOURS[4], width=1.5),
    )
    figure.add_scatter(
        x=names,
        y=[round(t.temperature, 3) for t in tokens],
        name="temperature",
        line=dict(color=EXPERT_COLOURS[5], width=1.5),
        yaxis="y2",
    )
    figure = layout(figure, 240, legend=dict(orientation="h", y=1.2, x=0))
    figure.update_layout(
        yaxis=dict(title="entropy, nats", rangemode="tozero"),
        yaxis2=dict(title="temperature", overlaying="y", side="right", rangemode="tozero", showgrid=False),
        margin=dict(l=50, r=50, t=30, b=40),
    )
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    return figure
