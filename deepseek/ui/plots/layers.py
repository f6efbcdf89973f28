"""The logit lens, the size of the KV cache and the norms of its latents."""

import plotly.graph_objects as go

from deepseek.ui.plots import style

MAX_TEXT_TOKENS = 16  # more tokens leave no room for text in the cells


def lens_map(tokens: list[str], lens) -> go.Figure:
    """Layers x tokens: each layer's prediction after each token, coloured by its probability."""
    names, rows = style.token_names(tokens), ["embedding", *style.layer_names(range(len(lens.texts) - 1))]
    figure = style.heatmap(
        style.percent(lens.probabilities),
        names,
        rows,
        160 + 32 * len(rows),
        "after %{x}<br>%{y} predicts %{customdata}, %{z}%",
        [[0, "rgba(230,159,0,0.05)"], [1, "rgba(230,159,0,0.75)"]],
        gap=1,
        customdata=[[style.label(text) for text in row] for row in lens.texts],
        texttemplate="%{customdata}" if len(tokens) <= MAX_TEXT_TOKENS else None,
        **style.PERCENT_SCALE,
    )
    figure.add_scatter(
        x=names,
        y=[rows[row] for row in lens.first_match_layer],
        mode="markers",
        marker=dict(symbol="circle", size=7, color=style.EXPERT_COLOURS[4], line=dict(color="#fff", width=1)),
        name="first layer that predicts the model's token",
        hovertemplate="after %{x}: the model's token is first predicted at %{y}<extra></extra>",
    )
    figure.update_layout(legend_y=1.14, showlegend=True).update_xaxes(**style.token_axis(tokens))
    return figure.update_yaxes(autorange=True, categoryorder="array", categoryarray=rows)


def cache_bytes(cache, tokens: int, context: int | None) -> go.Figure:
    """KiB of KV cache for a text of `tokens` and for a full `context`, with latents and with keys and values."""
    lengths = {"this text": tokens, **({"full context": context} if context else {})}
    bytes_per_token = {"keys and values": cache.uncompressed}
    if cache.cached_norms is not None:
        bytes_per_token = {"latents": cache.bytes, **bytes_per_token}
    figure = style.grouped_bars(
        [f"{name}<br>{length:,} tokens" for name, length in lengths.items()],
        {name: [length * size / 1024 for length in lengths.values()] for name, size in bytes_per_token.items()},
        280,
        "%{x}<br>as {name}: %{y:,.1f} KiB",
        style.EXPERT_COLOURS[3 - len(bytes_per_token) :],
        texttemplate="%{y:,.0f}",
    )
    figure.update_layout(legend_y=1.15, showlegend=True)
    return figure.update_yaxes(title="KiB", rangemode="tozero")


def latent_norms(cache) -> go.Figure:
    """Norms of the latents in every layer: the mean over the text's tokens, with bars from the minimum to the maximum."""
    layers = cache.latent_layers
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
            line=dict(color=style.EXPERT_COLOURS[colour], width=1.5),
            hovertemplate=f"layer %{{x}}, {name}: %{{y:.2f}}<extra></extra>",
        )
    style.layout(figure, 280, legend_y=1.15, showlegend=True)
    figure.update_xaxes(title="layer", dtick=max(1, len(layers) // 12), showgrid=False)
    return figure.update_yaxes(title="norm of c_kv", rangemode="tozero")
