"""A run's metrics as curves and maps; all take History objects."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go

from deepseek.training.metrics import History, downsample_indices, routing_change, smooth
from deepseek.ui.plots.routing import expert_map
from deepseek.ui.plots.style import EXPERT_COLOURS, label, layout

MOST_POINTS = 800  # of a curve; more cannot be told apart on a screen
MOST_COLUMNS = 240  # of a map
COLOURS = [EXPERT_COLOURS[1], EXPERT_COLOURS[5]]  # of a run and of the one laid over it
LEGEND = dict(orientation="h", y=1.02, yanchor="bottom", x=0)
# Fewer tokens than an even share to more of them; an even share is as clear as the page.
UNEVEN = [[0, "rgb(230,159,0)"], [0.5, "rgba(128,128,128,0.06)"], [1, "rgb(41,140,230)"]]


def _curve(figure, x, y, name: str, colour: str, **line) -> None:
    places = downsample_indices(len(x), MOST_POINTS) if len(x) else []
    figure.add_scatter(
        x=np.asarray(x)[places],
        y=np.asarray(y, np.float32)[places],
        name=name,
        mode="lines",
        line=dict(color=colour, width=1.5, **line),
        hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )


def loss_curves(runs: Mapping[str, History], smoothing: float) -> go.Figure:
    """Training loss, faint as it is and plain as smoothed, and validation loss of one run or two."""
    figure = go.Figure()
    for (name, history), colour in zip(runs.items(), COLOURS):
        losses = history.series["loss"]
        if smoothing:
            _curve(figure, history.steps, losses, f"{label(name)}, each step", colour)
            figure.data[-1].update(opacity=0.25, showlegend=False)
        _curve(figure, history.steps, smooth(losses, smoothing), f"{label(name)}, training", colour)
        if history.validation:
            steps, values = zip(*history.validation)
            _curve(figure, steps, values, f"{label(name)}, held-out text", colour, dash="dot")
            figure.data[-1].update(mode="lines+markers", marker=dict(size=6))
    figure = layout(figure, 340, legend=LEGEND, showlegend=True)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="nats a token")
    return figure


def curve(runs: Mapping[str, History], name: str, smoothing: float) -> go.Figure:
    """One of history.SERIES, small, of one run or two."""
    figure = go.Figure()
    for (run, history), colour in zip(runs.items(), COLOURS):
        _curve(figure, history.steps, smooth(history.series[name], smoothing), label(run), colour)
    figure = layout(figure, 200, showlegend=False)
    figure.update_layout(margin=dict(l=50, r=10, t=10, b=30))
    figure.update_yaxes(exponentformat="power" if name == "lr" else "SI", nticks=5)
    return figure


def load_map(history: History) -> go.Figure:
    """Experts of every layer x steps: each one's load in units of an even share, averaged where steps share a column."""
    columns = np.array_split(np.arange(len(history.steps)), min(len(history.steps), MOST_COLUMNS))
    load = np.stack(history.load)
    layers, experts = load.shape[1:]
    shares = np.stack([load[column].mean(0) for column in columns], axis=-1) * experts  # layers x experts x columns
    # A row without values between two layers.
    rows = np.concatenate([shares, np.full((layers, 1, len(columns)), np.nan, np.float32)], axis=1)
    flat = rows.reshape(-1, len(columns))[:-1].round(2)
    first = history.first_layer
    names = [
        f"layer {first + layer}, expert {expert}" if expert < experts else " " * (layer + 1)
        for layer in range(layers)
        for expert in range(experts + 1)
    ][:-1]
    figure = go.Figure(
        go.Heatmap(
            z=flat,
            x=[history.steps[column[-1]] for column in columns],
            y=names,
            zmin=0,
            zmax=2,
            colorscale=UNEVEN,
            colorbar=dict(thickness=12, outlinewidth=0, tickvals=[0, 1, 2], ticktext=["none", "even", "double"]),
            hovertemplate="step %{x}<br>%{y}: %{z:.2f} × an even share<extra></extra>",
            hoverongaps=False,
        )
    )
    figure = layout(figure, 90 + 9 * len(names))
    figure.update_xaxes(title="step", showgrid=False)
    middle = [names[layer * (experts + 1) + experts // 2] for layer in range(layers)]
    ticks = [f"layer {first + layer}" for layer in range(layers)]
    figure.update_yaxes(autorange="reversed", showgrid=False, tickvals=middle, ticktext=ticks)
    return figure


def violation_curves(history: History, smoothing: float) -> go.Figure:
    """MaxVio of every layer over the steps: how far its busiest expert is above an even share."""
    figure = go.Figure()
    first = history.first_layer
    for layer, values in enumerate(zip(*history.max_violation)):
        colour = EXPERT_COLOURS[layer % len(EXPERT_COLOURS)]
        _curve(figure, history.steps, smooth(values, smoothing), f"layer {first + layer}", colour)
    figure = layout(figure, 260, legend=LEGEND, showlegend=True)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="MaxVio", rangemode="tozero")
    return figure


def routing_change_bars(history: History) -> go.Figure:
    """Share of the probe's (token, layer) pairs that changed an expert since the probe before."""
    steps, shares = zip(*routing_change(history.probes))
    figure = go.Figure()
    figure.add_bar(
        x=[f"{step:,}" for step in steps],
        y=shares,
        marker=dict(color=COLOURS[0]),
        hovertemplate="step %{x}: %{y:.0%} re-routed<extra></extra>",
    )
    figure = layout(figure, 200)
    figure.update_xaxes(title="step", type="category", nticks=12)
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    return figure


def probe_map(probe: dict) -> go.Figure:
    """`expert_map` of one of history.probes."""
    experts, weights = np.array(probe["indices"]), np.array(probe["weights"])  # layers x tokens x K
    routing = [
        SimpleNamespace(layer=layer, experts=probe["experts"], indices=indices, weights=weights)
        for layer, indices, weights in zip(probe["layers"], experts, weights)
    ]
    figure = expert_map(probe["tokens"], routing)
    return figure.update_layout(height=max(figure.layout.height, 240))  # room for the key of a single layer's
