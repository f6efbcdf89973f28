"""What experts are worth to a text, and what steering does: each figure is a function of the data of `interpret`."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepseek.interpret.importance import KnockOut, LossPoint, RunnerUps
from deepseek.interpret.steering import Effect, RateDifference
from deepseek.ui.plots import style
from deepseek.ui.plots.specialization import SERIES_COLOURS

MAX_SHOWN = 16  # experts with a row each
DIVERGING = {"A": style.EXPERT_COLOURS[5], "B": style.EXPERT_COLOURS[4]}
LINES = ["solid", "dash", "dashdot", "dot"]
HEADERS = ["expert", "tokens", "loss change", "mean KL"]


def expert_name(layer: int, expert: int) -> str:
    """An expert as interventions name it: expert@layer."""
    return f"{expert}@{layer}"


def shown_experts(knock_outs: Sequence[KnockOut], found: Sequence[tuple[int, int]] = ()) -> list[KnockOut]:
    """The experts with a row of their own: those `found` (layer, expert), then the MAX_SHOWN of the largest mean KL."""
    ranked = sorted(knock_outs, key=lambda each: -each.mean_kl)
    first = [each for each in ranked if (each.layer, each.expert) in found]
    return first + [each for each in ranked if each not in first][:MAX_SHOWN]


def knock_out_map(tokens: list[str], knock_outs: Sequence[KnockOut]) -> go.Figure:
    """Experts x tokens: KL of the next-token distribution with the expert off, in nats; the first expert on top."""
    figure = style.heatmap(
        [[round(value, 4) for value in each.kl_T.tolist()] for each in knock_outs],
        style.token_names(tokens),
        [expert_name(each.layer, each.expert) for each in knock_outs],
        130 + 22 * len(knock_outs),
        "without expert %{y}, after %{x}: KL %{z:.3f} nats",
        style.SEQUENTIAL,
        gap=1,
        colorbar=style.colour_bar(title=dict(text="nats", side="top")),
    )
    return figure.update_xaxes(**style.token_axis(tokens)).update_yaxes(dtick=1, type="category")


def knock_out_rows(knock_outs: Sequence[KnockOut]) -> list[list[str]]:
    """A row of text per expert, under HEADERS."""
    return [
        [expert_name(each.layer, each.expert), str(each.num_tokens), f"{each.loss_change:+.3f}", f"{each.mean_kl:.3f}"]
        for each in knock_outs
    ]


def loss_curves(points: Sequence[LossPoint], axis_title: str) -> go.Figure:
    """Loss on a text by the number of experts disabled, a line per curve, from the loss of the whole model on."""
    figure, curves = go.Figure(), list(dict.fromkeys(point.curve for point in points))
    for index, name in enumerate(curves):
        line = [point for point in points if point.curve == name]
        figure.add_scatter(
            x=[point.num_disabled for point in line],
            y=[round(point.loss, 4) for point in line],
            name=name,
            mode="lines+markers",
            line=dict(color=SERIES_COLOURS[index % len(SERIES_COLOURS)], dash=LINES[index % len(LINES)]),
            hovertemplate=f"{name}, %{{x}} disabled: %{{y:.3f}} nats<extra></extra>",
        )
    style.layout(figure, 380, legend_y=-0.25).update_yaxes(title="loss, nats per token")
    return figure.update_xaxes(title=axis_title, rangemode="tozero")


def runner_up_map(tokens: list[str], runner_ups: Sequence[RunnerUps], texts: dict[int, str]) -> go.Figure:
    """Layers x tokens: KL of the next-token distribution if that token ran its next expert; an x where the next word changes.

    `texts` are those of the predicted ids.
    """
    names = style.layer_names(each.layer for each in runner_ups)

    def hover(each: RunnerUps, token: int) -> str:
        own, new = (style.label(texts[ids[token]]) for ids in (each.own, each.rerouted))
        return "expert {} for {}: ".format(*reversed(each.experts[token])) + (f"{own} → {new}" if own != new else own)

    figure = style.heatmap(
        [[round(value, 4) for value in each.kl_T.tolist()] for each in runner_ups],
        style.token_names(tokens),
        names,
        140 + (28 if len(names) <= 16 else 12) * len(names),
        "%{x}, %{y}, %{customdata}<br>KL %{z:.3f} nats",
        style.SEQUENTIAL,
        gap=1,
        customdata=[[hover(each, token) for token in range(len(tokens))] for each in runner_ups],
        colorbar=style.colour_bar(title=dict(text="nats", side="top")),
    )
    numbered = style.token_names(tokens)
    changed = [
        (numbered[token], name, hover(each, token))
        for name, each in zip(names, runner_ups)
        for token in range(len(tokens))
        if each.own[token] != each.rerouted[token]
    ]
    x, y, words = zip(*changed) if changed else ((), (), ())
    figure.add_scatter(
        x=x, y=y, customdata=words, name="next word changes", mode="markers",
        marker=dict(symbol="x-thin", size=8, line=dict(width=2, color=style.TEXT)),
        hovertemplate="%{x}, %{y}, %{customdata}<extra></extra>",
    )  # fmt: skip
    return figure.update_xaxes(**style.token_axis(tokens)).update_layout(showlegend=False)


def rate_differences(differences: Sequence[RateDifference], lists: tuple[str, str] = ("A", "B")) -> go.Figure:
    """A bar per expert of the MAX_SHOWN that differ most: the rate in the first of two `lists` less that in the second, with
    its standard error. Pale bars are no better than chance.
    """
    a, b = map(style.label, lists)
    shown = differences[:MAX_SHOWN]
    names = [expert_name(each.layer, each.expert) for each in shown]
    figure = go.Figure(
        go.Bar(
            x=[round(each.difference, 4) for each in shown],
            y=names,
            orientation="h",
            name=f"{a} less {b}",
            error_x=dict(type="data", array=[round(each.error, 4) for each in shown], color=style.TEXT),
            marker=dict(
                color=[DIVERGING["A" if each.difference > 0 else "B"] for each in shown],
                opacity=[1 if each.is_significant else 0.35 for each in shown],
            ),
            customdata=[
                f"{each.rate_a:.1%} of {a}, {each.rate_b:.1%} of {b}, ± {each.error:.1%}, p = {each.p_value:.3f}"
                for each in shown
            ],
            hovertemplate="expert %{y}: %{x:+.1%}<br>%{customdata}<extra></extra>",
        )
    )
    style.layout(figure, 110 + 22 * len(shown)).update_xaxes(
        tickformat=".0%", title=f"activation rate in {a} less that in {b}"
    )
    return figure.update_yaxes(autorange="reversed", type="category", dtick=1)


def steering_effect(effects: dict[str, Effect]) -> go.Figure:
    """What interventions do to held-out texts of each of two lists: its loss, and how often the steered experts run without and
    with.
    """
    titles = ("change in loss, nats per token", "activation rate of the steered experts")
    figure = make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.22)
    names = list(map(style.label, effects))
    figure.add_bar(
        x=names,
        y=[round(each.loss_change, 4) for each in effects.values()],
        error_y=dict(type="data", array=[round(each.loss_error, 4) for each in effects.values()], color=style.TEXT),
        marker=dict(color=[DIVERGING["A"], DIVERGING["B"]]),
        name="change in loss",
        showlegend=False,
        hovertemplate="%{x}: %{y:+.3f} nats per token<extra></extra>",
        row=1,
        col=1,
    )
    for index, (name, side) in enumerate((("without", 0), ("with", 1))):
        rates = [
            (f"{list_name}<br>{action}", getattr(each, f"{action}_rates")[side])
            for list_name, each in zip(names, effects.values())
            for action in ("promoted", "suppressed")
        ]
        figure.add_bar(
            x=[label for label, _ in rates],
            y=[round(rate, 4) for _, rate in rates],
            name=name,
            marker=dict(color=[style.EXPERT_COLOURS[7], style.EXPERT_COLOURS[2]][index]),
            hovertemplate=f"%{{x}}, {name}: %{{y:.1%}}<extra></extra>",
            row=2,
            col=1,
        )
    figure.update_annotations(font=dict(size=12, color=style.TEXT))
    style.layout(figure, 460, barmode="group", legend_y=-0.16).update_yaxes(tickformat=".0%", row=2)
    return figure
