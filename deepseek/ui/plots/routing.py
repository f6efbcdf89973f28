"""Where a mixture of experts sent the tokens of one text."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepseek.ui.plots.style import MAX_LABELS, TEXT, expert_colour, label, layout, token_axis

MAX_BARS = 16  # more experts than this are drawn as a map
DIVERGING = [[0, "rgba(0,114,178,0.7)"], [0.5, "rgba(128,128,128,0.1)"], [1, "rgba(213,94,0,0.7)"]]


def layer_names(layers) -> list[str]:
    """What an axis calls the layers."""
    return [f"layer {layer}" for layer in layers]


def shares(weights) -> np.ndarray:
    """What each of a token's experts counts beside its others, (..., K): models scale their weights, by 2.5 in DeepSeek-V3."""
    weights = np.asarray(weights)
    return weights / weights.sum(-1, keepdims=True).clip(1e-20)


def expert_map(tokens: list[str], routing) -> go.Figure:
    """Tokens x layers, coloured by the first expert; hover tells all experts and their shares."""
    names, axis = token_axis(tokens)
    experts = routing[0].experts
    first = np.array([layer.indices[:, 0].tolist() for layer in routing], dtype=np.uint8)
    hover = [
        [
            ", ".join(f"expert {e} {share:.0%}" for e, share in zip(*chosen))
            for chosen in zip(layer.indices.tolist(), shares(layer.weights).tolist())
        ]
        for layer in routing
    ]
    scale = []
    for expert in range(experts):
        scale += [[expert / experts, expert_colour(expert)], [(expert + 1) / experts, expert_colour(expert)]]
    figure = go.Figure(
        go.Heatmap(
            z=first,
            x=names,
            y=layer_names(layer.layer for layer in routing),
            customdata=hover,
            hovertemplate="%{x}<br>%{y}: %{customdata}<extra></extra>",
            zmin=-0.5,
            zmax=experts - 0.5,
            colorscale=scale,
            xgap=1,
            ygap=1,
            colorbar=dict(
                tickvals=list(range(0, experts, -(-experts // MAX_BARS))),
                title=dict(text="expert", side="top"),
                thickness=12,
                outlinewidth=0,
            ),
            text=first if len(tokens) <= MAX_LABELS else None,
            texttemplate="%{text}" if len(tokens) <= MAX_LABELS else None,
            textfont=dict(color="#111"),
        )
    )
    figure = layout(figure, 130 + 30 * len(routing))
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def token_path(token: str, index: int, routing) -> go.Figure:
    """One token's way through the layers: a line a choice, the heaviest first, with marks as large as their shares."""
    names = layer_names(layer.layer for layer in routing)
    figure = go.Figure()
    chosen = routing[0].indices.shape[1]
    for place in range(chosen):
        experts = [int(layer.indices[index, place]) for layer in routing]
        parts = [float(shares(layer.weights[index])[place]) for layer in routing]
        figure.add_scatter(
            x=names,
            y=experts,
            customdata=[round(share, 4) for share in parts],
            name=f"choice {place + 1}",
            mode="lines+markers+text",
            text=[f"{share:.0%}" for share in parts],
            textposition="middle right",
            textfont=dict(color=TEXT, size=11),
            line=dict(color=TEXT, width=2 if place == 0 else 1, dash="solid" if place == 0 else "dot"),
            marker=dict(
                color=[expert_colour(expert) for expert in experts],
                size=[8 + 22 * share**0.5 for share in parts],
                line=dict(color=TEXT, width=1),
            ),
            hovertemplate="%{x}: expert %{y}, %{text}<extra></extra>",
        )
    heading = dict(text=f"token {index + 1}: {label(token)}", x=0.01, xanchor="left", font=dict(size=13))
    experts = routing[0].experts
    figure = layout(figure, max(300, 110 + 7 * experts), title=heading, legend=dict(orientation="h", y=-0.15))
    figure.update_yaxes(title="expert", range=[-0.8, experts - 0.2], dtick=-(-experts // MAX_BARS))
    figure.update_xaxes(range=[-0.4, len(names)])  # room for the last weights
    return figure


def by_layer_and_expert(values_LE, layers: list[int], middle: float, scale, form: str, bar_title: str) -> go.Figure:
    """A bar for every expert of every layer, or a map where the experts are many; `form` is plotly's format of a value."""
    names, experts = layer_names(layers), len(values_LE[0])
    if experts > MAX_BARS:
        map = go.Heatmap(
            z=[[round(value, 4) for value in values] for values in values_LE],
            x=[f"expert {expert}" for expert in range(experts)],
            y=names,
            zmid=middle,
            colorscale=scale,
            colorbar=dict(thickness=12, outlinewidth=0, tickformat=form),
            hovertemplate=f"%{{y}}, %{{x}}: %{{z:{form}}}<extra></extra>",
        )
        figure = layout(go.Figure(map), 150 + 24 * len(names))
        figure.update_yaxes(autorange="reversed", showgrid=False)
        return figure
    figure = go.Figure()
    for expert in range(experts):
        figure.add_bar(
            x=names,
            y=[round(values[expert], 4) for values in values_LE],
            name=f"expert {expert}",
            marker=dict(color=expert_colour(expert)),
            hovertemplate=f"%{{x}}, expert {expert}: %{{y:{form}}}<extra></extra>",
        )
    figure = layout(figure, 320, barmode="group", legend=dict(orientation="h", y=-0.15))
    figure.update_yaxes(tickformat=form, title=bar_title)
    return figure


def expert_load(shares_LE, layers: list[int]) -> go.Figure:
    """Share of the assignments that each expert got, layer by layer, with a line at an even load."""
    even = 1 / len(shares_LE[0])
    figure = by_layer_and_expert(shares_LE, layers, even, DIVERGING, ".0%", "share of choices")
    if len(shares_LE[0]) <= MAX_BARS:
        figure.add_hline(y=even, line=dict(color=TEXT, width=1.5, dash="dash"))
    return figure


def ablation_bars(changes_LE, layers: list[int]) -> go.Figure:
    """Loss with each expert switched off less the untouched loss, in nats a token: above 0 the text needed it."""
    return by_layer_and_expert(changes_LE, layers, 0, DIVERGING, "+.3f", "change in loss, nats a token")


def balance(layers: list[int], violations: list[float], divergences: list[float]) -> go.Figure:
    """MaxVio and KL(P || U) of each layer, one above the other."""
    titles = ("MaxVio: busiest expert over even, less 1", "KL(P || U), nats")
    figure = make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.25, shared_xaxes=True)
    for row, (name, values) in enumerate((("MaxVio", violations), ("KL", divergences)), 1):
        figure.add_bar(
            x=layer_names(layers),
            y=[round(value, 5) for value in values],
            name=name,
            marker=dict(color=expert_colour(row)),
            text=[f"{value:.2f}" if row == 1 else f"{value:.4f}" for value in values],
            textposition="outside",
            textfont=dict(color=TEXT),
            cliponaxis=False,
            hovertemplate=f"%{{x}}: {name} %{{y}}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_annotations(font=dict(size=12, color=TEXT))
    figure = layout(figure, 330, showlegend=False)
    for row, values in enumerate((violations, divergences), 1):  # with room for the figures above the bars
        figure.update_yaxes(range=[0, 1.3 * max(*values, 0.01)], nticks=4, row=row)
    return figure
