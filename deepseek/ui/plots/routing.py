"""Routing: the experts of a text's tokens, their load and balance, what they specialize in, and how texts differ."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepseek.ui.plots import style

MAX_BARS = 16  # more experts are drawn as a heatmap
MAX_ROWS = 32  # experts or layers with a row of text each
MAX_TRANSITIONS = 400  # bands; more cannot be told apart
DIVERGING = [[0, "rgba(0,114,178,0.7)"], [0.5, "rgba(128,128,128,0.1)"], [1, "rgba(213,94,0,0.7)"]]


def normalized(weights) -> np.ndarray:
    """Expert weights (..., K) scaled to sum 1: models scale theirs, DeepSeek-V3 by 2.5."""
    weights = np.asarray(weights)
    return weights / weights.sum(-1, keepdims=True).clip(1e-20)


def expert_map(tokens: list[str], routing) -> go.Figure:
    """Layers x tokens, coloured by the top expert; hovering shows all chosen experts and their normalised weights."""
    experts, is_small = routing[0].num_experts, len(routing) <= MAX_BARS
    top = np.array([layer.indices[:, 0].tolist() for layer in routing], dtype=np.uint16)
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
        130 + (30 if is_small else 14) * len(routing),
        "%{x}<br>%{y}: %{customdata}",
        [[(e + end) / experts, style.expert_colour(e)] for e in range(experts) for end in (0, 1)],
        gap=1,
        customdata=hover,
        zmin=-0.5,
        zmax=experts - 0.5,
        showscale=experts <= MAX_BARS,  # the eight colours of more repeat
        colorbar=style.colour_bar(tickvals=list(range(experts)), title=dict(text="expert", side="top")),
        **(dict(text=top, texttemplate="%{text}") if is_small and len(tokens) <= style.MAX_LABELS else {}),
        textfont=dict(color="#111"),
    )
    return figure.update_xaxes(**style.token_axis(tokens))


def token_path(token: str, index: int, routing) -> go.Figure:
    """One token's experts layer by layer, a line per choice, the largest weight first; mark size shows the weight.

    Of many experts or layers only the first choice has a line, and no mark its weight beside it.
    """
    names, experts = style.layer_names(layer.layer for layer in routing), routing[0].num_experts
    is_small = max(experts, len(names)) <= MAX_BARS
    figure = go.Figure()
    weights_LK = [normalized(layer.weights[index]).tolist() for layer in routing]
    for choice, weights in enumerate(zip(*weights_LK)):
        chosen = [int(layer.indices[index, choice]) for layer in routing]
        figure.add_scatter(
            x=names,
            y=chosen,
            customdata=[round(weight, 4) for weight in weights],
            name=f"choice {choice + 1}",
            mode="lines+markers+text" if is_small else "markers" if choice else "lines+markers",
            text=[f"{weight:.0%}" for weight in weights],
            textposition="middle right",
            textfont=dict(color=style.TEXT, size=11),
            line=dict(color=style.TEXT, width=1 if choice else 2, dash="dot" if choice else "solid"),
            marker=dict(
                color=[style.expert_colour(expert) for expert in chosen],
                size=[(8 if is_small else 3) + (22 if is_small else 12) * weight**0.5 for weight in weights],
                line=dict(color=style.TEXT, width=1 if is_small else 0),
            ),
            hovertemplate="%{x}: expert %{y}, %{text}<extra></extra>",
        )
    heading = f"token {index + 1}: {style.label(token)}"
    style.layout(figure, min(max(300, 110 + 7 * experts), 560), title_text=heading, legend_y=-0.15)
    figure.update_yaxes(title="expert", range=[-0.8, experts - 0.2], dtick=-(-experts // MAX_BARS))
    return figure.update_xaxes(range=[-0.4, len(names)], **style.layer_axis(names))  # space for the last weights


def _by_layer_and_expert(values_LE, layers: list[int], middle: float, form: str, axis_title: str) -> go.Figure:
    """Grouped bars, or a heatmap for more than MAX_BARS experts; `form` is plotly's format of a value."""
    x, names = style.layer_names(layers), [f"expert {expert}" for expert in range(len(values_LE[0]))]
    if len(names) > MAX_BARS:
        hover, z = f"%{{y}}, %{{x}}: %{{z:{form}}}", [[round(value, 4) for value in row] for row in values_LE]
        options = dict(zmid=middle, colorbar=style.colour_bar(tickformat=form))
        figure = style.heatmap(
            z, names, x, 150 + (24 if len(x) <= MAX_BARS else 12) * len(x), hover, DIVERGING, **options
        )
        return figure.update_xaxes(
            tickmode="array", tickvals=names[::8], ticktext=list(range(0, len(names), 8)), title="expert"
        )
    figure = style.grouped_bars(x, dict(zip(names, zip(*values_LE))), 320, f"%{{x}}, {{name}}: %{{y:{form}}}")
    figure.update_layout(legend_y=-0.15).update_xaxes(**style.layer_axis(x))
    return figure.update_yaxes(tickformat=form, title=axis_title)


def expert_load(load_LE, layers: list[int], by_load: bool = False, expert: int | None = None) -> go.Figure:
    """Load of each expert (its fraction of the assignments), layer by layer, with a line at an even load.

    More than MAX_BARS are a heatmap, its rows as the experts are numbered or `by_load`, the busiest first; `expert` is outlined.
    """
    experts, names = len(load_LE[0]), style.layer_names(layers)
    if experts <= MAX_BARS:
        return _even_line(_by_layer_and_expert(load_LE, layers, 1 / experts, ".0%", "load"), experts)
    load_LE = np.asarray(load_LE)
    order_LE = load_LE.argsort(1, kind="stable")[:, ::-1] if by_load else np.tile(np.arange(experts), (len(layers), 1))
    sorted_LE = np.take_along_axis(load_LE, order_LE, 1)
    figure = _by_layer_and_expert(sorted_LE.tolist(), layers, 1 / experts, ".1%", "load")
    hover = "expert %{customdata}, %{y}: %{z:.1%}<extra></extra>"
    figure.update_traces(x=list(range(experts)), customdata=order_LE, hovertemplate=hover)
    figure.update_xaxes(tickmode="auto", title="rank, the busiest first" if by_load else "expert")
    if expert is not None:
        places = (order_LE == expert).argmax(1)
        marks = dict(symbol="square-open", size=10, color=style.TEXT, line=dict(width=2))
        hover = [f"expert {expert}, {name}: {load:.1%}" for name, load in zip(names, load_LE[:, expert])]
        figure.add_scatter(
            x=places, y=names, mode="markers", marker=marks, text=hover, hovertemplate="%{text}<extra></extra>"
        )
        figure.update_layout(showlegend=False)
    return figure


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
            text=[format(value, form) for value in values] if len(values) <= MAX_BARS else None,
            textposition="outside",
            textfont=dict(color=style.TEXT),
            cliponaxis=False,
            hovertemplate=f"%{{x}}: {name} %{{y}}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(range=[0, 1.3 * max(*values, 0.01)], nticks=4, row=row)  # space for the text above the bars
    figure.update_annotations(font=dict(size=12, color=style.TEXT))
    return style.layout(figure, 330, showlegend=False).update_xaxes(**style.layer_axis(style.layer_names(layers)))


def vocabulary_specialization(
    top_tokens: list[list[tuple[str, int, int]]], experts: list[int] | None = None
) -> go.Figure:
    """A row per expert, its most frequent tokens from left to right, coloured by how often it processed them.

    `top_tokens` is that of `routing_stats.vocabulary_specialization`, for all experts; `experts` are those drawn, in order.
    """
    experts = list(range(len(top_tokens))) if experts is None else experts
    width = max(map(len, top_tokens))
    padded = [row + [("", 0, 0)] * (width - len(row)) for row in (top_tokens[expert] for expert in experts)]
    figure = style.heatmap(
        [[count for _, count, _ in row] for row in padded],
        [f"{rank}." for rank in range(1, width + 1)],
        [f"expert {expert}" for expert in experts],
        90 + 30 * len(padded),
        "%{y}, %{customdata}",
        style.SEQUENTIAL,
        gap=2,
        text=[[style.label(token) if count else "" for token, count, _ in row] for row in padded],
        texttemplate="%{text}",
        textfont=dict(color=style.TEXT, size=12),
        customdata=[
            [f"{style.label(token)}: {count} of its {total}" if count else "" for token, count, total in row]
            for row in padded
        ],
        colorbar=style.colour_bar(title=dict(text="times", side="top")),
    )
    return figure.update_yaxes(dtick=1).update_xaxes(type="category", side="top")


def co_activation(ratio_EE, experts: list[int] | None = None) -> go.Figure:
    """Pairs of experts: how often they are chosen together, in powers of 2 around what their loads alone predict.

    `experts` are those drawn, in order (all).
    """
    ratio_EE = np.asarray(ratio_EE, dtype=float)
    if experts is not None:
        ratio_EE = ratio_EE[np.ix_(experts, experts)]
    experts = list(map(str, range(len(ratio_EE)) if experts is None else experts))
    small = len(experts) <= MAX_BARS

    def cells(form) -> list[list]:
        return [["" if np.isnan(ratio) else form.format(ratio) for ratio in row] for row in ratio_EE]

    figure = style.heatmap(
        [[None if np.isnan(ratio) else max(-2, min(2, np.log2(ratio or 1e-9))) for ratio in row] for row in ratio_EE],
        experts,
        experts,
        130 + (28 if small else 16) * len(experts),
        "experts %{y} and %{x}: %{customdata} × expected",
        DIVERGING,
        gap=1,
        customdata=cells("{:.2f}"),
        text=cells("{:.1f}"),
        texttemplate="%{text}" if small else None,
        textfont=dict(color=style.TEXT),
        zmin=-2,
        zmax=2,
        colorbar=style.colour_bar(tickvals=[-2, -1, 0, 1, 2], ticktext=["¼ ×", "½ ×", "1 ×", "2 ×", "4 ×"]),
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
            color=[style.expert_colour(e) for _, e in nodes],
            pad=6,
            thickness=12,
            line=dict(width=0),
            hovertemplate="layer:expert %{label}, %{value} tokens<extra></extra>",
        ),
        link=dict(
            source=[index_of[i, e] for i, e, _, _ in counts],
            target=[index_of[i + 1, f] for i, _, f, _ in counts],
            value=[tokens for *_, tokens in counts],
            color=[style.expert_colour(e) + "59" for _, e, _, _ in counts],  # an opacity of 0.35
            hovertemplate="%{source.label} → %{target.label}: %{value} tokens<extra></extra>",
        ),
        textfont=dict(color=style.TEXT, size=11, shadow="none"),
    )
    return style.layout(go.Figure(sankey), 420)


def divergence_bars(layers: list[int], pairs: dict[str, tuple[list[float], list[float]]]) -> go.Figure:
    """A bar per layer and pair of texts, its divergence in bits, with an outlined bar at the permutation baseline.

    `pairs` is {name of the pair: (divergence of each layer, baseline of each layer)}.
    """
    x, hover = style.layer_names(layers), "%{x}, {name}: %{y:.3f} bits"
    figure = style.grouped_bars(
        x, {pair: divergences for pair, (divergences, _) in pairs.items()}, 340, hover, digits=5
    )
    baselines = {f"{pair}, permuted": baseline for pair, (_, baseline) in pairs.items()}
    outlined = style.grouped_bars(x, baselines, 340, hover, ["rgba(0,0,0,0)"], digits=5, showlegend=False)
    figure.add_traces(outlined.update_traces(marker_line=dict(color=style.TEXT, width=2)).data)
    for bars, pair in zip(figure.data, [*pairs, *pairs]):
        bars.offsetgroup = pair
    figure.update_layout(legend_y=-0.15).update_xaxes(**style.layer_axis(x))
    return figure.update_yaxes(title="divergence, bits", rangemode="tozero")


def load_by_text(loads: dict[str, list[float]]) -> go.Figure:
    """Expert load in one layer, a bar per text: `loads` is {name of the text: load of each expert}."""
    experts = len(next(iter(loads.values())))
    figure = style.grouped_bars(list(map(str, range(experts))), loads, 320, "expert %{x}, {name}: %{y:.1%}")
    figure.update_layout(legend_y=1.15).update_xaxes(type="category", title="expert")
    return _even_line(figure.update_yaxes(tickformat=".0%", title="load", rangemode="tozero"), experts)


def _even_line(figure: go.Figure, experts: int) -> go.Figure:
    return figure.add_hline(y=1 / experts, line=dict(color=style.TEXT, width=1.5, dash="dash"))
