"""Size of the KV cache and norms of its latents."""

import plotly.graph_objects as go

from deepseek.ui.plots.style import EXPERT_COLOURS, grouped_bars, layout, legend


def cache_bytes(cache, tokens: int, context: int | None) -> go.Figure:
    """KiB of KV cache for a text of `tokens` and for a full `context`, with latents and with keys and values."""
    lengths = {"this text": tokens, **({"full context": context} if context else {})}
    bytes_per_token = {"keys and values": cache.uncompressed}
    if cache.cached_norms is not None:
        bytes_per_token = {"latents": cache.bytes, **bytes_per_token}
    figure = grouped_bars(
        [f"{name}<br>{length:,} tokens" for name, length in lengths.items()],
        {name: [length * size / 1024 for length in lengths.values()] for name, size in bytes_per_token.items()},
        280,
        "%{x}<br>as {name}: %{y:,.1f} KiB",
        EXPERT_COLOURS[3 - len(bytes_per_token) :],
        texttemplate="%{y:,.0f}",
    )
    figure.update_layout(legend=legend(1.15), showlegend=True)
    return figure.update_yaxes(title="KiB", rangemode="tozero")


def latent_norms(cache) -> go.Figure:
    """Norms of the latents in every layer: the mean over the text's tokens, with bars from the minimum to the maximum."""
    layers = list(range(len(cache.cached_norms)))
    figure = go.Figure()
    for name, norms, colour in (("before RMSNorm", cache.raw_norms, 5), ("in the cache", cache.cached_norms, 1)):
        mean = norms.mean(1)
        above, below = (norms.amax(1) - mean).tolist(), (mean - norms.amin(1)).tolist()
        figure.add_scatter(
            x=layers,
            y=mean.tolist(),
            error_y=dict(array=above, arrayminus=below, thickness=1),
            name=name,
            mode="lines+markers",
            line=dict(color=EXPERT_COLOURS[colour], width=1.5),
            hovertemplate=f"layer %{{x}}, {name}: %{{y:.2f}}<extra></extra>",
        )
    figure = layout(figure, 280, legend=legend(1.15), showlegend=True)
    figure.update_xaxes(title="layer", dtick=max(1, len(layers) // 12), showgrid=False)
    return figure.update_yaxes(title="norm of c_kv", rangemode="tozero")
