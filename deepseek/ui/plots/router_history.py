"""How the routers of a run changed: figures of papers as curves over its checkpoints, and one layer's experts at one of them."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepseek.training.router_history import CURVES, RouterRecord
from deepseek.ui.plots import style
from deepseek.ui.plots.routing import MAX_BARS

MAX_LINES = 8  # layers with a line each; of more the mean, the lowest and the highest are drawn
FRACTIONS = ("saturation_top_1", "saturation_top_k", "vocabulary_specialization", "co_activation")


def router_curves(curves: dict, step: int) -> go.Figure:
    """A row of curves for each of `router_history.router_curves`, dotted by chance, with a line at the step that is shown."""
    steps, layers = curves["steps"], curves["layers"]
    rows = {name: np.array(curves["curves"][name], float) for name in CURVES}
    rows = {name: values_NL for name, values_NL in rows.items() if np.isfinite(values_NL).any()}
    figure = make_subplots(
        rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.05, subplot_titles=[CURVES[name] for name in rows]
    )
    for row, (name, values_NL) in enumerate(rows.items(), 1):
        form = ":.1%" if name in FRACTIONS else ":.3g"
        if len(layers) > MAX_LINES:
            lines = {"lowest layer": values_NL.min(1), "mean of the layers": values_NL.mean(1)}
            lines |= {"highest layer": values_NL.max(1)}
        else:
            lines = dict(zip(style.layer_names(layers), values_NL.T))
        if name in curves["chance"]:
            lines["by chance"] = np.array(curves["chance"][name], float).mean(1)
        for index, (line, values_N) in enumerate(lines.items()):
            is_chance = line == "by chance"
            colour = style.TEXT if is_chance else style.expert_colour(index)
            figure.add_scatter(
                x=steps,
                y=values_N,
                name=line,
                meta=f"{CURVES[name]}, {line}",  # the series in the CSV file
                legendgroup=line,
                showlegend=row == 1,
                mode="lines" if is_chance else "lines+markers",
                marker=dict(size=4),
                line=dict(color=colour, width=1.5, dash="dot" if is_chance else "solid"),
                hovertemplate=f"step %{{x}}, {line}: %{{y{form}}}<extra></extra>",
                row=row,
                col=1,
            )
    figure.add_shape(
        type="line", x0=step, x1=step, xref="x", y0=0, y1=1, yref="paper", line=dict(color=style.TEXT, width=1)
    )
    style.layout(
        figure, 70 + 120 * len(rows), legend_y=1.04, legend_yanchor="bottom", margin=dict(l=50, r=10, t=70, b=40)
    )
    figure.update_annotations(font=dict(size=12, color=style.TEXT), x=0, xanchor="left")
    figure.update_yaxes(nticks=4, rangemode="tozero")
    for row, name in enumerate(rows, 1):
        if name in FRACTIONS:
            figure.update_yaxes(range=[0, 1.03], tickformat=".0%", row=row)
    return figure.update_xaxes(title="step", row=len(rows))


def layer_experts(record: RouterRecord, layer: int, order: list[int]) -> go.Figure:
    """Load of each expert of the record's layer `layer`, an index, with a line at an even load; below it its balancing bias.

    The experts stand in this `order`, the same at every checkpoint, so that the eye can follow one.
    """
    has_bias, even = record.bias is not None, 1 / record.num_experts
    titles = ["load: fraction of the choices"] + ["balancing bias"] * has_bias
    figure = make_subplots(rows=len(titles), cols=1, shared_xaxes=True, vertical_spacing=0.16, subplot_titles=titles)
    values = {"load": (record.load[layer], ":.1%")} | ({"bias": (record.bias[layer], ":+.4f")} if has_bias else {})
    for row, (name, (values_E, form)) in enumerate(values.items(), 1):
        figure.add_bar(
            x=[f"{expert}" for expert in order],
            y=values_E[order],
            name=name,
            marker=dict(color=[style.expert_colour(expert) for expert in order]),
            hovertemplate=f"expert %{{x}}: {name} %{{y{form}}}<extra></extra>",
            row=row,
            col=1,
        )
    figure.add_hline(y=even, line=dict(color=style.TEXT, width=1.5, dash="dash"), row=1, col=1)
    figure.update_yaxes(tickformat=".0%", range=[0, max(3 * even, 1.05 * record.load[layer].max())], row=1)
    figure.update_annotations(font=dict(size=12, color=style.TEXT))
    axis = dict(type="category", nticks=MAX_BARS)
    return (
        style.layout(figure, 180 * len(titles), showlegend=False)
        .update_xaxes(**axis)
        .update_xaxes(
            title="expert" if record.num_experts <= MAX_BARS else "expert, the busiest of the newest checkpoint first",
            row=len(titles),
        )
    )
