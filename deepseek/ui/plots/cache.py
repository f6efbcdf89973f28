"""What attention keeps of the tokens it has read."""

import plotly.graph_objects as go

from deepseek.ui.plots.style import EXPERT_COLOURS, layout


def cache_bytes(cache, tokens: int, context: int | None) -> go.Figure:
    """KiB kept by the model, beside keys and values of the same heads, for a text of `tokens` and a full `context`."""
    lengths = [tokens, *([context] if context else [])]
    names = ["this text", "the longest text"][: len(lengths)]
    kinds = [("latents", cache.bytes, EXPERT_COLOURS[1]), ("keys and values", cache.uncompressed, EXPERT_COLOURS[2])]
    figure = go.Figure()
    for name, size, colour in kinds if cache.kept is not None else kinds[1:]:
        figure.add_bar(
            x=[f"{where}<br>{length:,} tokens" for where, length in zip(names, lengths)],
            y=[length * size / 1024 for length in lengths],
            name=name,
            marker=dict(color=colour),
            texttemplate="%{y:,.0f}",
            hovertemplate=f"%{{x}}<br>as {name}: %{{y:,.1f}} KiB<extra></extra>",
        )
    figure = layout(figure, 280, barmode="group", legend=dict(orientation="h", y=1.15, x=0), showlegend=True)
    figure.update_yaxes(title="KiB", rangemode="tozero")
    return figure


def latent_norms(cache) -> go.Figure:
    """Norm of the latents in every layer, the mean over the text's tokens with the smallest and the largest."""
    layers = list(range(len(cache.kept)))
    figure = go.Figure()
    for name, norms, colour in (("before the norm", cache.raw, 5), ("as kept", cache.kept, 1)):
        mean = norms.mean(1)
        figure.add_scatter(
            x=layers,
            y=mean.tolist(),
            error_y=dict(
                array=(norms.amax(1) - mean).tolist(), arrayminus=(mean - norms.amin(1)).tolist(), thickness=1
            ),
            name=name,
            mode="lines+markers",
            line=dict(color=EXPERT_COLOURS[colour], width=1.5),
            hovertemplate=f"layer %{{x}}, {name}: %{{y:.2f}}<extra></extra>",
        )
    figure = layout(figure, 280, legend=dict(orientation="h", y=1.15, x=0), showlegend=True)
    figure.update_xaxes(title="layer", dtick=max(1, len(layers) // 12), showgrid=False)
    figure.update_yaxes(title="norm of c_kv", rangemode="tozero")
    return figure
