"""Routing of one text: the experts of its tokens, their load and its balance."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepseek.ui.plots import style

MAX_BARS = 16  # more experts are drawn as a heatmap
DIVERGING = [[0, "rgba(0,114,178,0.7)"], [0.5, "rgba(128,128,128,0.1)"], [1, "rgba(213,94,0,0.7)"]]


def normalized(weights) -> np.ndarray:
    """Expert weights (..., K) scaled to sum 1: models scale theirs, DeepSeek-V3 by 2.5."""
    weights = np.asarray(weights)
    return weights / weights.sum(-1, keepdims=True).clip(1e-20)


def expert_map(tokens: list[str], routing) -> go.Figure:
    """Layers x tokens, coloured by the top expert; hovering shows all chosen experts and their normalised weights."""
    experts = routing[0].num_experts
    top = np.array([layer.indices[:, 0].tolist() for layer in routing], dtype=np.uint8)
    hover = [
        [
            ", ".join(f"expert {e} {weight:.0%}" for e, weight in zip(*choices))
            for choices in zip(layer.indices.tolist(), normalized(layer.weights).tolist())
        ]
        for layer in routing
    ]
    figure = style.heatmap(
        top,
        style.token_names(tokens),
        style.layer_names(layer.layer for layer in routing),
        130 + 30 * len(routing),
        "%{x}<br>%{y}: %{customdata}",
        [[(e + end) / experts, style.expert_colour(e)] for e in range(experts) for end in (0, 1)],
        gap=1,
        customdata=hover,
        zmin=-0.5,
        zmax=experts - 0.5,
        colorbar=style.colour_bar(
            tickvals=list(range(0, experts, -(-experts // MAX_BARS))), title=dict(text="expert", side="top")
        ),
        **(dict(text=top, texttemplate="%{text}") if len(tokens) <= style.MAX_LABELS else {}),
        textfont=dict(color="#111"),
    )
    return figure.update_xaxes(**style.token_axis(tokens), tickangle=-60)


def token_path(token: str, index: int, routing) -> go.Figure:
    """One token's experts layer by layer, a line per choice, the largest weight first; mark size shows the weight."""
    names, experts = style.layer_names(layer.layer for layer in routing), routing[0].num_experts
    figure = go.Figure()
    weights_LK = [normalized(layer.weights[index]).tolist() for layer in routing]
    for choice, weights in enumerate(zip(*weights_LK)):
        chosen = [int(layer.indices[index, choice]) for layer in routing]
        figure.add_scatter(
            x=names,
            y=chosen,
            customdata=[round(weight, 4) for weight in weights],
            name=f"choice {choice + 1}",
            mode="lines+markers+text",
            text=[f"{weight:.0%}" for weight in weights],
            textposition="middle right",
            textfont=dict(color=style.TEXT, size=11),
            line=dict(color=style.TEXT, width=1, dash="dot")
            if choice
            else dict(color=style.TEXT, width=2, dash="solid"),
            marker=dict(
                color=[style.expert_colour(expert) for expert in chosen],
                size=[8 + 22 * weight**0.5 for weight in weights],
                line=dict(color=style.TEXT, width=1),
            ),
            hovertemplate="%{x}: expert %{y}, %{text}<extra></extra>",
        )
    heading = style.title(f"token {index + 1}: {style.label(token)}")
    figure = style.layout(figure, max(300, 110 + 7 * experts), title=heading, legend=style.legend(-0.15))
    figure.update_yaxes(title="expert", range=[-0.8, experts - 0.2], dtick=-(-experts // MAX_BARS))
    return figure.update_xaxes(range=[-0.4, len(names)])  # space for the last weights


def _by_layer_and_expert(values_LE, layers: list[int], middle: float, form: str, axis_title: str) -> go.Figure:
    """Grouped bars, or a heatmap for more than MAX_BARS experts; `form` is plotly's format of a value."""
    x, names = style.layer_names(layers), [f"expert {expert}" for expert in range(len(values_LE[0]))]
    if len(names) > MAX_BARS:
        hover, z = f"%{{y}}, %{{x}}: %{{z:{form}}}", [[round(value, 4) for value in row] for row in values_LE]
        options = dict(zmid=middle, colorbar=style.colour_bar(tickformat=form))
        return style.heatmap(z, names, x, 150 + 24 * len(x), hover, DIVERGING, **options)
    figure = style.grouped_bars(x, dict(zip(names, zip(*values_LE))), 320, f"%{{x}}, {{name}}: %{{y:{form}}}")
    return figure.update_layout(legend=style.legend(-0.15)).update_yaxes(tickformat=form, title=axis_title)


def expert_load(load_LE, layers: list[int]) -> go.Figure:
    """Load of each expert (its fraction of the assignments), layer by layer, with a line at an even load."""
    experts = len(load_LE[0])
    figure = _by_layer_and_expert(load_LE, layers, 1 / experts, ".0%", "load")
    return style.even_line(figure, experts) if experts <= MAX_BARS else figure


def ablation_bars(effects_LE, layers: list[int]) -> go.Figure:
    """Change in loss with each expert ablated, in nats per token: above 0 the text needs the expert."""
    return _by_layer_and_expert(effects_LE, layers, 0, "+.3f", "change in loss, nats per token")


def balance(layers: list[int], violations: list[float], divergences: list[float]) -> go.Figure:
    """MaxVio and KL(P || U) of each layer, one above the other."""
    titles = ("MaxVio: largest load / even load - 1", "KL(P || U), nats")
    figure = make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.25, shared_xaxes=True)
    for row, (name, values, form) in enumerate((("MaxVio", violations, ".2f"), ("KL", divergences, ".4f")), 1):
        figure.add_bar(
            x=style.layer_names(layers),
            y=[round(value, 5) for value in values],
            name=name,
            marker=dict(color=style.expert_colour(row)),
            text=[format(value, form) for value in values],
            textposition="outside",
            textfont=dict(color=style.TEXT),
            cliponaxis=False,
            hovertemplate=f"%{{x}}: {name} %{{y}}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(range=[0, 1.3 * max(*values, 0.01)], nticks=4, row=row)  # space for the text above the bars
    figure.update_annotations(font=dict(size=12, color=style.TEXT))
    return style.layout(figure, 330, showlegend=False)
