"""Domain specialization: how differently texts are routed."""

import plotly.graph_objects as go

from deepseek.ui.plots.style import TEXT, even_line, grouped_bars, layer_names, legend


def divergence_bars(layers: list[int], pairs: dict[str, tuple[list[float], list[float]]]) -> go.Figure:
    """A bar per layer and pair of texts, its divergence in bits, with an outlined bar at the permutation baseline.

    `pairs` is {name of the pair: (divergence of each layer, baseline of each layer)}.
    """
    x, hover = layer_names(layers), "%{x}, {name}: %{y:.3f} bits"
    figure = grouped_bars(x, {pair: divergences for pair, (divergences, _) in pairs.items()}, 340, hover, digits=5)
    baselines = {f"{pair}, permuted": baseline for pair, (_, baseline) in pairs.items()}
    outlined = grouped_bars(x, baselines, 340, hover, ["rgba(0,0,0,0)"], digits=5, showlegend=False)
    figure.add_traces(outlined.update_traces(marker_line=dict(color=TEXT, width=2)).data)
    for bars, pair in zip(figure.data, [*pairs, *pairs]):
        bars.offsetgroup = pair
    figure.update_layout(legend=legend(-0.15))
    return figure.update_yaxes(title="divergence, bits", rangemode="tozero")


def load_by_text(loads: dict[str, list[float]]) -> go.Figure:
    """Expert load in one layer, a bar per text: `loads` is {name of the text: load of each expert}."""
    experts = len(next(iter(loads.values())))
    figure = grouped_bars([str(expert) for expert in range(experts)], loads, 320, "expert %{x}, {name}: %{y:.1%}")
    figure.update_layout(legend=legend(1.15)).update_xaxes(type="category", title="expert")
    figure.update_yaxes(tickformat=".0%", title="load", rangemode="tozero")
    return even_line(figure, experts)
