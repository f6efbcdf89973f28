"""Where a mixture of experts sent each token."""

import numpy as np
import plotly.graph_objects as go

from deepseek.plots.style import MOST_LABELS, TEXT, expert_colour, layout, token_axis


def expert_map(tokens: list[str], routing) -> go.Figure:
    """Tokens x layers, coloured by the first expert; hover tells all experts and their weights."""
    names, axis = token_axis(tokens)
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
    figure = layout(figure, 130 + 30 * len(routing))
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
    figure = layout(figure, 320, barmode="group", legend=dict(orientation="h", y=-0.15))
    figure.update_yaxes(tickformat=".0%", title="share of tokens", rangemode="tozero")
    return figure
