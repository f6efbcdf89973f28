"""The Model tab: opens a checkpoint on all tabs, and tells what it is, what it costs, and where it came from."""

from pathlib import Path

import gradio as gr

from deepseek.checkpoints.loading import CheckpointError, fingerprint
from deepseek.interpret.trace import context_length, routers
from deepseek.model.config import kv_cache_elements_per_token, num_experts, parameter_counts
from deepseek.ui.errors import user_error
from deepseek.ui.generation import MODEL_QUEUE, UNQUEUED
from deepseek.ui.server import model_registry

KEEP_IN_ADDRESS = """path => {
  const address = new URL(location.origin + location.pathname);
  address.searchParams.set('checkpoint', path);
  history.replaceState(null, '', address);
}"""  # so that a reload opens it again


def headline(path: str) -> str:
    """One line of Markdown that names the model; the path is only ever text."""
    return f"A language model, running here: `{path.replace('`', ' ')}`"


def origin(path: str) -> str:
    """Where a checkpoint came from, in words."""
    folder = Path(path)
    if path == model_registry.DEMO:
        return "this project's demo, trained by its own command line; the card below says how"
    if folder.parent.parent == model_registry.RUNS:
        return f"run {folder.parent.name} on this machine, {folder.name.replace('-', ' ')}"
    return "a folder on this machine" if folder.is_dir() else f"the Hugging Face Hub, {path}"


def facts(model) -> list[list[str]]:
    """Rows (what, value) about a model; what a family of models does not have is left out."""
    config = model.config
    total, active = parameter_counts(model)
    context = context_length(model)
    rows = [
        ["checkpoint", f"{model.name_or_path}, weights {fingerprint(model.name_or_path)[:12]}"],
        ["came from", origin(model.name_or_path)],
        ["architecture", f"{type(model).__name__}, computing in {str(model.dtype).removeprefix('torch.')}"],
        ["parameters", f"{total / 1e6:.1f} M, {active / 1e6:.1f} M of them used for one token"],
        ["layers", f"{config.num_hidden_layers}, {config.hidden_size} wide, {config.num_attention_heads} heads"],
        ["vocabulary", f"{config.vocab_size:,} tokens"],
    ]
    if context:
        rows.append(["context", f"{context:,} tokens in a text"])
    experts = num_experts(config)
    if experts:
        shared = getattr(config, "n_shared_experts", None) or "no"
        rows.append(
            [
                "experts",
                f"{experts} routed in each of {len(routers(model))} layers, {config.num_experts_per_tok} of them "
                f"and {shared} shared one a token",
            ]
        )
    else:
        rows.append(["experts", "none: the model is dense"])
    kept, uncompressed = (
        n * model.dtype.itemsize * config.num_hidden_layers for n in kv_cache_elements_per_token(config)
    )
    latent = kept != uncompressed
    beside = f" as latents, {uncompressed:,} for the same heads uncompressed" if latent else ", as keys and values"
    rows.append(["cache of a token", f"{kept:,} bytes{beside}"])
    if context:
        beside = f", {uncompressed * context / 2**20:.1f} MiB uncompressed" if latent else ""
        rows.append(["cache of a full context", f"{kept * context / 2**20:.1f} MiB{beside}"])
    return rows


def card(path: str) -> str:
    """The text of a folder's model card, or a sentence that there is none."""
    file = Path(path) / "README.md"
    return file.read_text("utf-8", "replace") if file.is_file() else "This checkpoint has no card."


def build(model, tab: gr.Tab, checkpoint: gr.State, which: gr.Markdown) -> None:
    """Draws the tab about `model`, from which the reader sets `checkpoint`; `which` names the one that is open."""
    current = model.name_or_path
    gr.Markdown(
        "Open another model here, and every tab looks at that one: the demo, a run of yours, a folder, the Hub."
    )
    with gr.Row():
        box = gr.Dropdown(
            model_registry.choices(current),
            value=current,
            allow_custom_value=True,
            label="checkpoint",
            info="one of these, a folder, or a Hub id such as allenai/OLMoE-1B-7B-0924; safetensors only",
            scale=4,
        )
        go = gr.Button("Open", variant="primary", scale=1, min_width=100)
    status = gr.Markdown()
    options = dict(
        headers=["what", "value"], column_widths=["38%", "62%"], max_height=900, interactive=False, wrap=True
    )
    table = gr.Dataframe(facts(model), **options)
    with gr.Accordion("model card", open=False):
        text = gr.Code(card(current), language="markdown", show_label=False, interactive=False, wrap_lines=True)

    def open_checkpoint(path):
        yield gr.skip(), gr.skip(), "Opening… a model from the Hub is downloaded first, which may take minutes."
        try:
            opened, _ = model_registry.open_requested(path, current)
        except CheckpointError as error:
            yield gr.skip(), gr.skip(), ""
            raise user_error(error) from error
        yield opened.name_or_path, opened.name_or_path, "Open. The Playground goes on with its prompt."

    def describe(path):
        model, _ = model_registry.get_model(path)
        choices = list(dict.fromkeys([*model_registry.choices(current), path]))
        return facts(model), card(path), headline(path), gr.update(choices=choices, value=path)

    go.click(
        open_checkpoint,
        box,
        [checkpoint, box, status],
        api_visibility="private",
        show_progress="minimal",
        **MODEL_QUEUE,
    ).success(None, box, None, js=KEEP_IN_ADDRESS, **UNQUEUED)
    checkpoint.change(describe, checkpoint, [table, text, which, box], **UNQUEUED)
    tab.select(lambda: gr.update(choices=model_registry.choices(current)), None, box, **UNQUEUED)
