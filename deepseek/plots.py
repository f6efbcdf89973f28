"""Records -> plotly figures. Pure functions; colours and labels are the same wherever they appear.

Every token is shown as text: `label` escapes what plotly would read as markup and makes invisible characters visible.
"""

import html
import unicodedata

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito's colours, told apart by colour-blind readers, with grey for their black; one per expert, everywhere.
EXPERT_COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#A6A6A6"]
SEQUENTIAL = [[0, "rgba(41,140,230,0.05)"], [0.25, "rgba(41,140,230,0.5)"], [1, "rgb(41,140,230)"]]
TEXT = "#7b8494"  # readable on dark and light; the page's style sheet replaces it with the theme's own
MOST_LABELS = 48  # more token labels than this overlap


def expert_colour(expert: int) -> str:
    """The colour of an expert; beyond eight they come again."""
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def visible(text: str) -> str:
    """One token's text with spaces, line ends, control and invisible characters shown by a sign."""
    shown = []
    for character in text:
        if character == "\n":
            shown.append("↵")
        elif character == "\t":
            shown.append("⇥")
        elif ord(character) < 32:
            shown.append(chr(0x2400 + ord(character)))
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"U+{ord(character):04X}")
        else:
            shown.append(character)
    text = "".join(shown)
    return "·" + text[1:] if text.startswith(" ") else text or "…"


def label(text: str) -> str:
    """`visible`, cut to 16 characters and escaped for plotly, which reads a few tags in labels."""
    text = visible(text)
    return html.escape(text if len(text) <= 16 else text[:15] + "…", quote=False)


def _layout(figure: go.Figure, height: int, **layout) -> go.Figure:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=dict(color=TEXT, size=12),
        height=height,
        margin=dict(l=60, r=10, t=30, b=40),
        **layout,
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    return figure


def _token_axis(tokens: list[str]) -> tuple[list[str], dict]:
    """Unique category names, one a token, and the axis that shows them without their number (or every nth of many)."""
    names = [f"{index} {label(token)}" for index, token in enumerate(tokens)]
    step = max(1, -(-len(names) // MOST_LABELS))
    axis = dict(
        type="category",
        tickmode="array",
        tickvals=names[::step],
        ticktext=[label(token) for token in tokens[::step]],
        tickfont=dict(size=11),
    )
    return names, axis


def expert_map(tokens: list[str], routing) -> go.Figure:
    """Tokens x layers, coloured by the first expert; hover tells all experts and their weights."""
    names, axis = _token_axis(tokens)
    experts = routing[0].experts
    first = np.array([layer.indices[:, 0].tolist() for layer in routing], dtype=np.uint8)
    hover = [
        [
            ", ".join(f"expert {e} {w:.0%}" for e, w in zip(indices, weights))
            for indices, weights in zip(layer.indices.tolist(), layer.weights.tolist())
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
            y=[f"layer {layer.layer}" for layer in routing],
            customdata=hover,
            hovertemplate="%{x}<br>%{y}: %{customdata}<extra></extra>",
            zmin=-0.5,
            zmax=experts - 0.5,
            colorscale=scale,
            xgap=1,
            ygap=1,
            colorbar=dict(
                tickvals=list(range(experts)), title=dict(text="expert", side="top"), thickness=12, outlinewidth=0
            ),
            text=first if len(tokens) <= MOST_LABELS else None,
            texttemplate="%{text}" if len(tokens) <= MOST_LABELS else None,
            textfont=dict(color="#111"),
        )
    )
    figure = _layout(figure, 130 + 30 * len(routing))
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def expert_load(shares_LE, layers: list[int]) -> go.Figure:
    """Share of the assignments that each expert got, layer by layer, with a line at an even load."""
    figure = go.Figure()
    names = [f"layer {layer}" for layer in layers]
    experts = len(shares_LE[0])
    for expert in range(experts):
        figure.add_bar(
            x=names,
            y=[round(shares[expert], 4) for shares in shares_LE],
            name=f"expert {expert}",
            marker=dict(color=expert_colour(expert)),
            hovertemplate=f"%{{x}}, expert {expert}: %{{y:.1%}}<extra></extra>",
        )
    figure.add_hline(y=1 / experts, line=dict(color=TEXT, width=1.5, dash="dash"))
    figure.add_annotation(
        x=1,
        xref="paper",
        y=1 / experts,
        yanchor="bottom",
        xanchor="right",
        showarrow=False,
        text=f"even, {1 / experts:.1%}",
    )
    figure = _layout(figure, 320, barmode="group", legend=dict(orientation="h", y=-0.15))
    figure.update_yaxes(tickformat=".0%", title="share of tokens", rangemode="tozero")
    return figure


def _percent(weights) -> np.ndarray:
    """Weights in [0, 1] as whole percents in one byte each, to keep a 512 x 512 map small."""
    return np.round(np.asarray(weights) * 100).astype(np.uint8)


def attention_map(tokens: list[str], weights_TT, title: str) -> go.Figure:
    """What each token (row) looked at (column), for one head; percents."""
    names, axis = _token_axis(tokens)
    figure = go.Figure(
        go.Heatmap(
            z=_percent(weights_TT),
            x=names,
            y=names,
            zmin=0,
            zmax=100,
            colorscale=SEQUENTIAL,
            hovertemplate="token %{y}<br>looks at %{x}: %{z}%<extra></extra>",
            colorbar=dict(thickness=12, ticksuffix="%", outlinewidth=0),
        )
    )
    figure = _layout(figure, 620, title=dict(text=title, font=dict(size=13), x=0.5))
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    figure.update_yaxes(**axis, autorange="reversed", showgrid=False)
    return figure


def attention_heads(weights_HTT, tokens: list[str]) -> go.Figure:
    """All heads of one layer, small, on one scale."""
    heads = len(weights_HTT)
    columns = 3
    rows = -(-heads // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[f"head {head}" for head in range(heads)],
        horizontal_spacing=0.04,
        vertical_spacing=0.07,
    )
    names, _ = _token_axis(tokens)
    for head, weights in enumerate(weights_HTT):
        figure.add_trace(
            go.Heatmap(
                z=_percent(weights),
                x=names,
                y=names,
                coloraxis="coloraxis",
                hovertemplate="token %{y}<br>looks at %{x}: %{z}%<extra></extra>",
            ),
            head // columns + 1,
            head % columns + 1,
        )
    figure = _layout(figure, 60 + 220 * rows)
    figure.update_layout(
        coloraxis=dict(
            colorscale=SEQUENTIAL, cmin=0, cmax=100, colorbar=dict(thickness=12, ticksuffix="%", outlinewidth=0)
        ),
        margin=dict(l=10, r=10, t=30, b=10),
    )
    figure.update_annotations(font=dict(size=12))
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False, type="category")
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, type="category", autorange="reversed")
    return figure


def lens_map(tokens: list[str], lens) -> go.Figure:
    """Layers x tokens: what each layer would say after each token, coloured by how sure it is of that."""
    names, axis = _token_axis(tokens)
    rows = ["embedding", *(f"layer {layer}" for layer in range(len(lens.texts) - 1))]
    figure = go.Figure(
        go.Heatmap(
            z=_percent(lens.probabilities),
            x=names,
            y=rows,
            customdata=[[label(text) for text in row] for row in lens.texts],
            hovertemplate="after %{x}<br>%{y} says %{customdata}, %{z}%<extra></extra>",
            texttemplate="%{customdata}" if len(tokens) <= 16 else None,
            zmin=0,
            zmax=100,
            colorscale=[[0, "rgba(230,159,0,0.05)"], [1, "rgba(230,159,0,0.75)"]],
            colorbar=dict(thickness=12, ticksuffix="%", outlinewidth=0),
            xgap=1,
            ygap=1,
        )
    )
    first = lens.first_lead
    figure.add_scatter(
        x=names,
        y=[rows[row] for row in first],
        mode="markers",
        marker=dict(symbol="circle", size=7, color=EXPERT_COLOURS[4], line=dict(color="#fff", width=1)),
        name="first layer that says what the model says",
        hovertemplate="after %{x}: the final choice first leads at %{y}<extra></extra>",
    )
    figure = _layout(figure, 160 + 32 * len(rows), legend=dict(orientation="h", y=1.14, x=0), showlegend=True)
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    figure.update_yaxes(showgrid=False, categoryorder="array", categoryarray=rows)
    return figure


def funnel(token) -> go.Figure:
    """What the sampler did for one TokenTrace: candidates x stages, percents; the drawn one is marked.

    Only stages that the settings ask for are columns; the others are named in the caption.
    """
    shown = [index for index, stage in enumerate(token.stages) if stage.active]
    columns = ["model"]
    for index in shown:
        stage = token.stages[index]
        before = token.stages[index - 1].survivors if index else stage.survivors
        note = (
            "no change"
            if not stage.changed
            else "reshaped"
            if stage.survivors == before
            else f"{stage.survivors:,} left"
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
    off = [stage.name for stage in token.stages if not stage.active]
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
    figure = _layout(figure, 110 + 26 * len(rows))
    figure.update_layout(margin=dict(l=90, r=10, t=50, b=30))
    figure.update_xaxes(side="top", showgrid=False, type="category")
    figure.update_yaxes(
        autorange="reversed",
        showgrid=False,
        type="category",
        ticktext=[row.split(" ", 1)[1] for row in rows],
        tickvals=rows,
    )
    if off:
        figure.add_annotation(
            text="off: " + ", ".join(off),
            xref="paper",
            yref="paper",
            x=0,
            y=-0.02,
            yanchor="top",
            xanchor="left",
            showarrow=False,
        )
    return figure


def along_the_text(tokens) -> go.Figure:
    """Entropy of the model and temperature used, token by token."""
    names, axis = _token_axis([token.text for token in tokens])
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
    figure = _layout(figure, 240, legend=dict(orientation="h", y=1.2, x=0))
    figure.update_layout(
        yaxis=dict(title="entropy, nats", rangemode="tozero"),
        yaxis2=dict(title="temperature", overlaying="y", side="right", rangemode="tozero", showgrid=False),
        margin=dict(l=50, r=50, t=30, b=40),
    )
    figure.update_xaxes(**axis, tickangle=-60, showgrid=False)
    return figure
