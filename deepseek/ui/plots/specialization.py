"""Figures about what experts do, each beside chance: by layer, shares of experts, pairs of hidden states, and their map."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from deepseek.ui.plots import style
from deepseek.ui.plots.routing import DIVERGING, MAX_BARS

SERIES_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # those that a line shows best
NUM_POINTS = 1500  # pairs of tokens drawn
NUM_COLOURED = 8  # experts with a colour of their own on the map; others are grey


def by_layer(
    panels: Mapping[str, Mapping[str, tuple[Sequence, Sequence, Sequence]]],
    layers: list[int],
    title: str,
    form: str = ".1%",
    width=3.0,
) -> go.Figure:
    """Lines over the layers, each with a band where it would be no better than chance; panels {heading: lines} below one another.

    Lines are {name: (observed, mean of chance, its standard deviation)}, each by layer; a name has one colour in all panels. The
    band is `width` standard deviations to either side. `form` is plotly's format of a value.
    """
    x = style.layer_names(layers)
    figure = make_subplots(len(panels), 1, subplot_titles=list(panels), vertical_spacing=0.16)
    for row, (heading, lines) in enumerate(panels.items(), 1):
        for colour, (name, columns) in zip(SERIES_COLOURS * len(lines), lines.items()):
            observed, chance, spread = (np.asarray(values, dtype=float) for values in columns)
            name = html.escape(style.show_invisible(name), quote=False)
            full = f"{name}, {heading}" if heading else name
            place = dict(x=x, legendgroup=name, showlegend=False, row=row, col=1)
            for sign, fill in ((-1, None), (1, "tonexty")):
                figure.add_scatter(
                    y=np.round(chance + sign * width * spread, 6),
                    name=f"{full}, chance {'-' if sign < 0 else '+'} {width:g} SD",
                    mode="lines",
                    line=dict(width=0, color=colour),
                    fill=fill,
                    fillcolor=style.fade(colour, 0.13),
                    hoverinfo="skip",
                    **place,
                )
            figure.add_scatter(
                y=np.round(chance, 6),
                name=f"{full}, chance",
                mode="lines",
                line=dict(color=colour, width=1.5, dash="dot"),
                hovertemplate=f"%{{x}}: {full}, chance %{{y:{form}}}<extra></extra>",
                **place,
            )
            figure.add_scatter(
                y=np.round(observed, 6),
                name=name,
                meta=full,  # its name in the CSV
                mode="lines+markers",
                line=dict(color=colour, width=2),
                marker=dict(size=8),
                hovertemplate=f"%{{x}}: {full} %{{y:{form}}}<extra></extra>",
                **(place | dict(showlegend=row == 1)),
            )
    figure.update_annotations(font=dict(size=12, color=style.TEXT))
    style.layout(figure, 360 + 240 * (len(panels) - 1), legend_y=-0.15 / len(panels))
    figure.update_yaxes(title=title, tickformat=form.replace(".1%", ".0%"))
    return figure.update_xaxes(**style.layer_axis(x), type="category")


def share_map(observed, chance, spread, side, rows: list[str], columns: list[str], hover: str) -> go.Figure:
    """Shares (rows x columns) in powers of 2 around chance; what is no better than chance (`side` 0) is neutral.

    `hover` begins the text of a cell and may hold %{x} and %{y}.
    """
    observed, chance, spread, side = (np.asarray(values, dtype=float) for values in (observed, chance, spread, side))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(np.maximum(observed, 1e-9) / np.maximum(chance, 1e-9))
    z = np.where(side == 0, 0, np.clip(ratio, -2, 2))
    words = {1: "above chance", -1: "below chance", 0: "no better than chance"}
    text = [
        ["" if np.isnan(o) else f"{o:.1%}, chance {c:.1%} ± {s:.1%}: {words[int(d)]}" for o, c, s, d in zip(*cells)]
        for cells in zip(observed, chance, spread, side)
    ]
    figure = style.heatmap(
        [[None if np.isnan(o) else round(float(v), 3) for o, v in zip(*cells)] for cells in zip(observed, z)],
        columns,
        rows,
        130 + (28 if len(rows) <= MAX_BARS else 16) * max(2, len(rows)),
        f"{hover}: %{{customdata}}",
        DIVERGING,
        gap=1,
        customdata=text,
        text=[["" if np.isnan(o) else f"{o:.0%}" for o in cells] for cells in observed],
        texttemplate="%{text}" if len(columns) <= MAX_BARS else None,
        textfont=dict(color=style.TEXT),
        zmin=-2,
        zmax=2,
        colorbar=style.colour_bar(
            tickvals=[-2, -1, 0, 1, 2],
            ticktext=["¼ ×", "½ ×", "chance", "2 ×", "4 ×"],
            title=dict(text="share", side="top"),
        ),
        hoverongaps=False,
    )
    return figure.update_yaxes(type="category").update_xaxes(
        type="category", title="expert", nticks=min(len(columns), 32)
    )


def similarity_scatter(similarity, overlap, bins, shuffled_bins) -> go.Figure:
    """Pairs of tokens by the cosine similarity of their hidden states and the share of experts that they have in common.

    `similarity` and `overlap` are lists of all pairs, of which NUM_POINTS are drawn, evenly taken and a little apart; `bins` and
    `shuffled_bins` are those of `geometry.overlap_by_similarity` of the routing and of a shuffled one.
    """
    similarity, overlap = np.asarray(similarity, dtype=float), np.asarray(overlap, dtype=float)
    taken = np.linspace(0, len(overlap) - 1, min(len(overlap), NUM_POINTS)).astype(int)
    apart = np.random.default_rng(0).uniform(-0.03, 0.03, len(taken))  # equal overlaps would lie on one another
    figure = go.Figure()
    figure.add_scatter(
        x=np.round(similarity[taken], 4),
        y=np.round(overlap[taken] + apart, 4),
        customdata=np.round(overlap[taken], 4),
        mode="markers",
        name="pairs of tokens",
        marker=dict(size=4, color="rgba(128,128,128,0.35)"),
        hovertemplate="similarity %{x:.2f}, %{customdata:.0%} of experts in common<extra></extra>",
    )
    lines = (
        ("routing", bins, SERIES_COLOURS[0], "solid"),
        ("shuffled routing", shuffled_bins, SERIES_COLOURS[1], "dot"),
    )
    for name, rows, colour, dash in lines:
        figure.add_scatter(
            x=[round(row.similarity, 4) for row in rows],
            y=[round(row.overlap, 4) for row in rows],
            error_y=dict(array=[round(row.spread, 4) for row in rows], thickness=1) if name == "routing" else None,
            customdata=[f"{row.pairs:,} pairs, SD {row.spread:.0%}" for row in rows],
            mode="lines+markers",
            name=f"{name}, mean of equally many pairs",
            line=dict(color=colour, width=2, dash=dash),
            hovertemplate=f"{name}: similarity %{{x:.2f}}, %{{y:.1%}} in common (%{{customdata}})<extra></extra>",
        )
    style.layout(figure, 400, legend_y=-0.18)
    figure.update_yaxes(title="experts in common", tickformat=".0%")
    return figure.update_xaxes(title="cosine similarity of the hidden states")


def state_map(points, explained, experts, shuffled, names: list[str]) -> go.Figure:
    """The map of hidden states, coloured by first expert, beside the same map with the experts shuffled.

    `points` (tokens, 2), `experts` and `shuffled` a number per token, `names` the tokens' texts. The busiest NUM_COLOURED experts
    have colours.
    """
    points, experts, shuffled = np.asarray(points, dtype=float), np.asarray(experts), np.asarray(shuffled)
    numbers, counts = np.unique(experts, return_counts=True)
    coloured = sorted(numbers[np.argsort(-counts, kind="stable")][:NUM_COLOURED].tolist())
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=("routing", "shuffled"), horizontal_spacing=0.04, shared_yaxes=True
    )
    texts = np.array([style.label(name) for name in names], dtype=object)
    groups = [(f"expert {expert}", [expert], style.EXPERT_COLOURS[i]) for i, expert in enumerate(coloured)]
    if others := sorted({*numbers.tolist()} - {*coloured}):
        groups.insert(0, ("other experts", others, "rgba(128,128,128,0.45)"))
    for column, assigned in enumerate((experts, shuffled), 1):
        for name, members, colour in groups:
            here = np.isin(assigned, members)
            figure.add_scatter(
                x=np.round(points[here, 0], 4),
                y=np.round(points[here, 1], 4),
                customdata=[f"{text}: expert {expert}" for text, expert in zip(texts[here], assigned[here])],
                mode="markers",
                name=name if column == 1 else f"{name}, shuffled",
                marker=dict(size=6, color=colour),
                legendgroup=name,
                showlegend=column == 1,
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_annotations(font=dict(size=12, color=style.TEXT))
    style.layout(figure, 420, legend_y=-0.18)
    for axis, share in zip("xy", explained):
        title = f"{'first' if axis == 'x' else 'second'} component, {share:.0%} of the variance"
        figure.update_layout({f"{axis}axis_title": title})
    return figure
