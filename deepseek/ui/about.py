"""The Model tab: what is running here, what it costs, and where it came from."""

from pathlib import Path

import gradio as gr

from deepseek.checkpoint import fingerprint
from deepseek.config import cache_numbers, parameter_counts


def facts(model) -> list[tuple[str, str]]:
    """Rows (what, value) about a model; what a family of models does not have is left out."""
    config = model.config
    total, active = parameter_counts(model)
    rows = [
        ("checkpoint", f"{model.name_or_path}, weights {fingerprint(model.name_or_path)[:12]}"),
        ("architecture", f"{type(model).__name__}, computing in {str(model.dtype).removeprefix('torch.')}"),
        ("parameters", f"{total / 1e6:.1f} M, {active / 1e6:.1f} M of them used for one token"),
        ("layers", f"{config.num_hidden_layers}, {config.hidden_size} wide, {config.num_attention_heads} heads"),
        (
            "vocabulary and context",
            f"{config.vocab_size:,} tokens; {config.max_position_embeddings:,} of them in a text",
        ),
    ]
    experts = getattr(config, "num_local_experts", None)
    if experts:
        shared = getattr(config, "n_shared_experts", 0)
        rows.append(
            ("experts", f"{experts} routed, {config.num_experts_per_tok} of them and {shared} shared one a token")
        )
    if getattr(config, "kv_lora_rank", None):
        latent, full = cache_numbers(config)
        token = model.dtype.itemsize * config.num_hidden_layers
        context = token * config.max_position_embeddings / 2**20
        rows += [
            (
                "cache of a token",
                f"{latent * token:,} bytes as latents, {full * token:,} for the same heads uncompressed",
            ),
            ("cache of a full context", f"{latent * context:.1f} MiB, {full * context:.1f} MiB uncompressed"),
        ]
    return rows


def build(model) -> None:
    """Draws the tab."""
    gr.Markdown("What is running here, and what it costs.")
    gr.Markdown("| | |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in facts(model)))
    card = Path(model.name_or_path) / "README.md"
    if card.is_file():
        with gr.Accordion("model card", open=False):
            gr.Markdown(card.read_text("utf-8").split("---\n", 2)[-1], sanitize_html=True)
