"""The Model tab: opens a checkpoint on all tabs, and shows its architecture, size and origin."""

from pathlib import Path

import gradio as gr

from deepseek.checkpoints.loading import CheckpointError, fingerprint
from deepseek.interpret.trace import context_length, routers
from deepseek.model.config import kv_cache_elements_per_token, num_experts, parameter_counts
from deepseek.ui.components.view import checkpoint_choice
from deepseek.ui.errors import user_error
from deepseek.ui.generation import MODEL_QUEUE, UNQUEUED
from deepseek.ui.server import model_registry

SET_ADDRESS = """path => {
  const address = new URL(location.origin + location.pathname);
  address.searchParams.set('checkpoint', path);
  history.replaceState(null, '', address);
}"""  # so that a reload opens the checkpoint again


def headline(path: str) -> str:
    """One line of Markdown that names the model; the path is shown as code, so that none of it is markup."""
    return f"A language model, running here: `{path.replace('`', ' ')}`"


def facts(model) -> list[list[str]]:
    """Rows (what, value) about a model, without those that its architecture does not have."""
    config, path = model.config, model.name_or_path
    total, active = parameter_counts(model)
    context, experts = context_length(model), num_experts(config)
    scale = model.dtype.itemsize * config.num_hidden_layers
    cached, uncompressed = (elements * scale for elements in kv_cache_elements_per_token(config))
    expert_row, per_token, per_context = "none: the model is dense", ", as keys and values", ""
    folder = Path(path)
    origin = "a folder on this machine" if folder.is_dir() else f"the Hugging Face Hub, {path}"
    if path == model_registry.DEMO:
        origin = "this project's demo, trained by its own command line; the card below says how"
    elif folder.parent.parent == model_registry.RUNS:
        origin = f"run {folder.parent.name} on this machine, {folder.name.replace('-', ' ')}"
    if experts:
        shared = getattr(config, "n_shared_experts", None) or "no"
        expert_row = f"{experts} routed in each of {len(routers(model))} layers, {config.num_experts_per_tok} of them "
        expert_row += f"and {shared} shared active per token"
    if cached != uncompressed:
        per_token = f" as latents, {uncompressed:,} for the same heads uncompressed"
        per_context = f", {uncompressed * (context or 0) / 2**20:.1f} MiB uncompressed"
    rows = [
        ["checkpoint", f"{path}, weights {fingerprint(path)[:12]}"],
        ["origin", origin],
        ["architecture", f"{type(model).__name__}, computing in {str(model.dtype).removeprefix('torch.')}"],
        ["parameters", f"{total / 1e6:.1f} M, {active / 1e6:.1f} M active per token"],
        ["layers", f"{config.num_hidden_layers}, {config.hidden_size} wide, {config.num_attention_heads} heads"],
        ["vocabulary", f"{config.vocab_size:,} tokens"],
        ["context", f"{context:,} tokens" if context else ""],
        ["experts", expert_row],
        ["KV cache per token", f"{cached:,} bytes{per_token}"],
        ["KV cache of a full context", f"{cached * context / 2**20:.1f} MiB{per_context}" if context else ""],
    ]
    return [row for row in rows if row[1]]


def card(path: str) -> str:
    """The text of a folder's model card, or a sentence that there is none."""
    file = Path(path) / "README.md"
    return file.read_text("utf-8", "replace") if file.is_file() else "This checkpoint has no card."


def build(model, tab: gr.Tab, checkpoint: gr.State, headline_box: gr.Markdown) -> None:
    """Draws the tab about `model`; opening another one sets `checkpoint`, which updates this tab and `headline_box`."""
    current = model.name_or_path
    gr.Markdown("Open another model for every tab: the demo, one of your runs, a folder or a model from the Hub.")
    with gr.Row():
        box = gr.Dropdown(
            model_registry.choices(current),
            value=current,
            allow_custom_value=True,
            label="checkpoint",
            info="one of these, a folder, or a Hub id such as allenai/OLMoE-1B-7B-0924; safetensors only",
            scale=4,
        )
        open_button = gr.Button("Open", variant="primary", scale=1, min_width=100)
    status = gr.Markdown()
    columns = dict(headers=["what", "value"], column_widths=["38%", "62%"])
    table = gr.Dataframe(facts(model), **columns, max_height=900, interactive=False, wrap=True)
    with gr.Accordion("model card", open=False):
        text = gr.Code(card(current), language="markdown", show_label=False, interactive=False, wrap_lines=True)

    def open_checkpoint(path):
        yield gr.skip(), gr.skip(), "Opening… a model from the Hub is downloaded first, which may take minutes."
        try:
            opened, _ = model_registry.open_requested(path, current)
        except CheckpointError as error:
            yield gr.skip(), gr.skip(), ""
            raise user_error(error) from error
        yield opened.name_or_path, opened.name_or_path, "Open. The Playground continues its prompt with this model."

    def describe(path):
        model, _ = model_registry.get_model(path)
        return facts(model), card(path), headline(path), checkpoint_choice(path, current)

    outputs = [checkpoint, box, status]
    options = dict(api_visibility="private", show_progress="minimal", **MODEL_QUEUE)
    opened = open_button.click(open_checkpoint, box, outputs, **options)
    opened.success(None, box, None, js=SET_ADDRESS, **UNQUEUED)
    checkpoint.change(describe, checkpoint, [table, text, headline_box, box], **UNQUEUED)
    tab.select(lambda: gr.update(choices=model_registry.choices(current)), None, box, **UNQUEUED)
