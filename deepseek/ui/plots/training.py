"""A training run's metrics as curves and heatmaps, from History objects."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go

from deepseek.training.metrics import History, downsample_indices, routing_change, smooth
from deepseek.ui.plots.routing import expert_map
from deepseek.ui.plots.style import EXPERT_COLOURS, TEXT, colour_bar, expert_colour, heatmap, label, layer_names, layout

MAX_POINTS = 800  # per curve; more cannot be told apart on a screen
MAX_COLUMNS = 240  # of a heatmap
COLOURS = [EXPERT_COLOURS[1], EXPERT_COLOURS[5]]  # of a run and the one it is compared to
LEGEND = dict(showlegend=True, legend_y=1.02, legend_yanchor="bottom")
LOAD_SCALE = [[0, "rgb(230,159,0)"], [0.5, "rgba(128,128,128,0.06)"], [1, "rgb(41,140,230)"]]  # none, even, double


def _add_curve(figure, x, y, name: str, colour: str, **line) -> None:
    points = downsample_indices(len(x), MAX_POINTS) if len(x) else []
    figure.add_scatter(
        x=np.asarray(x)[points],
        y=np.asarray(y, np.float32)[points],
        name=name,
        mode="lines",
        line=dict(color=colour, width=1.5, **line),
        hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )


def loss_curves(runs: Mapping[str, History], smoothing: float, best_step: int | None = None) -> go.Figure:
    """Training loss, raw (faint) and smoothed, and validation loss of one run or two; a star at the first's best checkpoint."""
    figure = go.Figure()
    for (name, history), colour in zip(runs.items(), COLOURS):
        losses = history.series["loss"]
        if smoothing:
            _add_curve(figure, history.steps, losses, f"{label(name)}, each step", colour)
            figure.data[-1].update(opacity=0.25, showlegend=False)
        _add_curve(figure, history.steps, smooth(losses, smoothing), f"{label(name)}, training", colour)
        if history.validation:
            steps, values = zip(*history.validation)
            _add_curve(figure, steps, values, f"{label(name)}, validation", colour, dash="dot")
            figure.data[-1].update(mode="lines+markers", marker=dict(size=6))
    validation = dict(next(iter(runs.values())).validation)
    if best_step in validation:
        figure.add_scatter(
            x=[best_step],
            y=[validation[best_step]],
            name="best checkpoint",
            mode="markers",
            marker=dict(symbol="star", size=14, color=COLOURS[0], line=dict(color=TEXT, width=1)),
            hovertemplate="step %{x}: %{y:.4g}, the best checkpoint<extra></extra>",
        )
    return layout(figure, 340, **LEGEND, xaxis_title="step", yaxis_title="nats per token")


def curve(runs: Mapping[str, History], name: str, smoothing: float) -> go.Figure:
    """One of metrics.SERIES as a small figure, of one run or two."""
    figure = go.Figure()
    for (run, history), colour in zip(runs.items(), COLOURS):
        _add_curve(figure, history.steps, smooth(history.series[name], smoothing), label(run), colour)
    layout(figure, 200, showlegend=False, margin=dict(l=50, r=10, t=10, b=30))
    return figure.update_yaxes(exponentformat="power" if name == "lr" else "SI", nticks=5)


def load_map(history: History) -> go.Figure:
    """Experts of every layer x steps: each load in units of an even load, averaged where steps share a column."""
    columns = np.array_split(np.arange(len(history.steps)), min(len(history.steps), MAX_COLUMNS))
    load = np.stack(history.load)
    layers, experts = load.shape[1:]
    even_LEC = np.stack([load[column].mean(0) for column in columns], axis=-1) * experts
    # A row without values separates two layers.
    rows = np.concatenate([even_LEC, np.full((layers, 1, len(columns)), np.nan, np.float32)], axis=1)
    headings = layer_names(range(history.first_layer, history.first_layer + layers))
    names = [
        f"{headings[layer]}, expert {expert}" if expert < experts else " " * (layer + 1)
        for layer in range(layers)
        for expert in range(experts + 1)
    ][:-1]
    figure = heatmap(
        rows.reshape(-1, len(columns))[:-1].round(2),
        [history.steps[column[-1]] for column in columns],
        names,
        90 + 9 * len(names),
        "step %{x}<br>%{y}: %{z:.2f} × an even load",
        LOAD_SCALE,
        zmin=0,
        zmax=2,
        colorbar=colour_bar(tickvals=[0, 1, 2], ticktext=["none", "even", "double"]),
        hoverongaps=False,
    )
    middle = [names[layer * (experts + 1) + experts // 2] for layer in range(layers)]
    return figure.update_xaxes(title="step").update_yaxes(tickvals=middle, ticktext=headings)


def violation_curves(history: History, smoothing: float) -> go.Figure:
    """MaxVio of every layer over the steps: the largest load over an even load, less 1."""
    figure = go.Figure()
    for layer, values in enumerate(zip(*history.max_violation)):
        name = f"layer {history.first_layer + layer}"
        _add_curve(figure, history.steps, smooth(values, smoothing), name, expert_colour(layer))
    return layout(figure, 260, **LEGEND, xaxis_title="step", yaxis_title="MaxVio", yaxis_rangemode="tozero")


def routing_change_bars(history: History) -> go.Figure:
    """Fraction of the probe's (token, layer) pairs whose experts changed since the previous checkpoint."""
    steps, fractions = zip(*routing_change(history.probes))
    bars = go.Bar(
        x=[f"{step:,}" for step in steps],
        y=fractions,
        marker=dict(color=COLOURS[0]),
        hovertemplate="step %{x}: %{y:.0%} re-routed<extra></extra>",
    )
    x_axis, y_axis = dict(title="step", type="category", nticks=12), dict(tickformat=".0%", range=[0, 1])
    return layout(go.Figure(bars), 200, xaxis=x_axis, yaxis=y_axis)


def probe_map(probe: dict) -> go.Figure:
    """`expert_map` of one of History.probes."""
    indices, weights = np.array(probe["indices"]), np.array(probe["weights"])  # layers x tokens x K
    routing = [
        SimpleNamespace(layer=layer, num_experts=probe["experts"], indices=indices_TK, weights=weights_TK)
        for layer, indices_TK, weights_TK in zip(probe["layers"], indices, weights)
    ]
    figure = expert_map(probe["tokens"], routing)
    return figure.update_layout(height=max(figure.layout.height, 240))  # space for the key of a single layer's map
