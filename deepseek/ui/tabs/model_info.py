"""The Model tab: opens a checkpoint on all tabs, and shows its architecture, size and origin."""

from pathlib import Path

import gradio as gr

from deepseek.checkpoints.hub import local_folder
from deepseek.checkpoints.loading import CheckpointError, fingerprint
from deepseek.interpret.attention import attention_layers, num_heads
from deepseek.interpret.kv_cache import cache_elements
from deepseek.interpret.model_parts import decoder_layers
from deepseek.interpret.moe_layers import moe_layers, parameter_counts, why_no_experts
from deepseek.interpret.trace import context_length
from deepseek.ui.components.view import checkpoint_choice, checkpoints_offered
from deepseek.ui.errors import user_error
from deepseek.ui.generation import OPENING_QUEUE, QUICK_QUEUE
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
    config, path = model.config.get_text_config(), model.name_or_path
    total, active = parameter_counts(model)
    context, moe = context_length(model), list(moe_layers(model).values())
    cached, uncompressed = (sum(elements) * model.dtype.itemsize for elements in zip(*cache_elements(model)))
    expert_row, per_token, per_context = why_no_experts(model), ", as keys and values", ""
    folder = Path(path)
    origin = "a folder on this machine" if folder.is_dir() else f"the Hugging Face Hub, {path}"
    if (snapshot := local_folder(path)) and snapshot != folder:
        origin += f", commit {snapshot.name[:12]}"
    if path == model_registry.DEMO:
        origin = "this project's demo, trained by its own command line; the card below says how"
    elif folder.parent.parent == model_registry.RUNS:
        origin = f"run {folder.parent.name} on this machine, {folder.name.replace('-', ' ')}"
    if moe:
        counts = sorted({layer.num_experts for layer in moe})
        expert_row = f"{' to '.join(map(str, counts))} routed in each of {len(moe)} layers, {moe[0].top_k} of them "
        expert_row += (
            f"and {_shared_experts(config)} shared active per token" if moe[0].has_shared else "active per token"
        )
    if cached != uncompressed:
        per_token = f" as latents, {uncompressed:,} for the same heads uncompressed"
        per_context = f", {uncompressed * (context or 0) / 2**20:.1f} MiB uncompressed"
    in_memory = "all of it"
    if cache := getattr(model, "expert_cache", None):
        in_files = sum(stack.numel() for stack in model.mapped_experts.values())
        in_memory = (
            f"all but {in_files / 1e9:.1f} B parameters of experts, read from the files when a token is routed to "
        )
        in_memory += f"them; up to {cache.max_bytes / 2**30:.1f} GiB of those used most are kept"
    rows = [
        ["checkpoint", f"{path}, weights {fingerprint(path)[:12]}"],
        ["origin", origin],
        ["architecture", f"{type(model).__name__}, computing in {str(model.dtype).removeprefix('torch.')}"],
        ["parameters", f"{total / 1e6:.1f} M, {active / 1e6:.1f} M active per token"],
        ["in memory", in_memory],
        ["layers", f"{len(decoder_layers(model))}, {config.hidden_size} wide, {_attention(model)}"],
        ["vocabulary", f"{config.vocab_size:,} tokens"],
        ["context", f"{context:,} tokens" if context else ""],
        ["experts", expert_row],
        ["KV cache per token", f"{cached:,} bytes{per_token}"],
        ["KV cache of a full context", f"{cached * context / 2**20:.1f} MiB{per_context}" if context else ""],
    ]
    return [row for row in rows if row[1]]


def _attention(model) -> str:
    with_attention, num_layers = len(attention_layers(model)), len(decoder_layers(model))
    heads = f"{num_heads(model)} heads"
    return heads if with_attention == num_layers else f"attention in {with_attention} of them, {heads}"


def _shared_experts(config) -> int:
    """How many experts the shared one counts as: families with one of the width of several give the number."""
    names = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    return next(filter(None, (getattr(config, name, None) for name in names)), 1)


def card(path: str) -> str:
    """The text of the model card in a checkpoint's folder, or a sentence that there is none."""
    folder = local_folder(path)
    file = folder and folder / "README.md"
    return file.read_text("utf-8", "replace") if file and file.is_file() else "This checkpoint has no card."


def build(demo, model, tab: gr.Tab, checkpoint: gr.State, headline_box: gr.Markdown) -> None:
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
        cancel_button = gr.Button("Cancel", scale=1, min_width=100, visible=False)
    status = gr.Markdown()
    columns = dict(headers=["what", "value"], column_widths=["38%", "62%"])
    table = gr.Dataframe(facts(model), **columns, max_height=900, interactive=False, wrap=True)
    with gr.Accordion("model card", open=False):
        text = gr.Code(card(current), language="markdown", show_label=False, interactive=False, wrap_lines=True)

    def open_checkpoint(path):
        try:
            path = model_registry.requested_path(path)
            for progress in model_registry.opening(path, current):
                yield gr.skip(), gr.skip(), progress, gr.update(visible=True)
        except CheckpointError as error:
            yield gr.skip(), gr.skip(), "", gr.update(visible=False)
            raise user_error(error) from error
        opened = "Open. The Playground continues its prompt with this model."
        yield path, path, opened, gr.update(visible=False)

    def find_download():
        """On a page that was loaded again: the download that somebody waited for."""
        if not (paths := model_registry.running_downloads()):
            return gr.skip()
        return paths[0], f"`{paths[0]}` is being downloaded. Press Open to wait for it.", gr.update(visible=True)

    def cancel(path):
        model_registry.cancel_download(path)
        return "", gr.update(visible=False)

    def describe(path):
        model, _ = model_registry.get_model(path)
        return facts(model), card(path), headline(path), checkpoint_choice(path, current)

    outputs = [checkpoint, box, status, cancel_button]
    options = dict(api_visibility="private", show_progress="hidden", **OPENING_QUEUE)
    opened = open_button.click(open_checkpoint, box, outputs, **options)
    cancel_button.click(cancel, box, [status, cancel_button], cancels=[opened], **QUICK_QUEUE)
    opened.success(None, box, None, js=SET_ADDRESS, **QUICK_QUEUE)
    checkpoint.change(describe, checkpoint, [table, text, headline_box, box], **QUICK_QUEUE)
    demo.load(find_download, None, [box, status, cancel_button], **options)
    tab.select(lambda path: checkpoints_offered(path, current), checkpoint, box, **QUICK_QUEUE)
