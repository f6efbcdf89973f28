"""One setting over a range, in the Compare tab: eight samples decoded as one batch, and what the setting does to them."""

import gradio as gr

from deepseek.inference.sweep import NUM_VALUES, SETTINGS, sweep_params, token_tree
from deepseek.inference.text_stats import sample_stats
from deepseek.ui.components import chat, sampler_controls
from deepseek.ui.components import token_tree as tree
from deepseek.ui.components.shared_outputs import SharedOutputs
from deepseek.ui.components.view import figure, on_pick
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import GENERATION_QUEUE, generate_batch
from deepseek.ui.plots.sampling import sweep_stats
from deepseek.ui.server import model_registry

RANGES = {  # others: those of their sliders
    "temperature": (0.2, 1.6),
    "temperature_min": (0.1, 1.5),
    "temperature_max": (0.5, 2),
    "min_new_tokens": (0, 100),
    "seed": (1, NUM_VALUES),
}


@user_errors()
def range_of(name: str) -> tuple:
    """The range that the page offers for a setting. Raises gr.Error for one that cannot be swept."""
    if name not in SETTINGS:
        raise ValueError(f"setting is {name!r:.40}; it must be one of {', '.join(SETTINGS)}.")
    return RANGES.get(name) or SETTINGS[name].metadata["slider"][:2]


def tree_rows(name: str, values: list, outputs: list) -> list[dict]:
    """The samples as rows: of a swept seed as a tree of what they share, of another setting one below the other."""
    names = [f"{name.replace('_', ' ')} {value:g}" if name != "seed" else f"seed {value}" for value in values]
    notes = [f"{len(tokens)} tokens" for tokens in outputs]
    if name == "seed":
        return tree.shared_rows(token_tree(outputs), names, notes)
    return [tree.row(0, *parts) for parts in zip(names, outputs, notes)]


def build(request: list, seed: gr.Textbox, setting_names: list[str], side: list, current: str) -> None:
    """Draws the section, which samples the `request` (prompt, chat, system prompt) with the checkpoint and settings of `side`."""
    gr.Markdown(
        "### One setting over a range\nThe prompt eight times, in one batch, with the checkpoint and the settings of A but "
        "for one. Choose *seed* to see where samples of the same settings part."
    )
    with gr.Row(equal_height=True):
        setting = gr.Dropdown(
            [(name.replace("_", " "), name) for name in SETTINGS], value="temperature", label="setting"
        )
        low, high = (gr.Number(value, label=label) for value, label in zip(range_of("temperature"), ("from", "to")))
    with gr.Row():
        go = gr.Button("Sweep", variant="primary")
        stop = gr.Button("Stop")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            texts = tree.token_tree("sweep-texts", "samples of the setting's values")
        with gr.Column(scale=2, min_width=320, visible=False) as chart:
            plot = figure(None, "sweep")

    def run(turn, prompt, is_chat, system, seed, name, first, last, path, *settings):
        params = sampler_controls.to_params(setting_names, settings, seed, locked=True)
        with user_errors():
            batch = sweep_params(params, name, [first, last])
            model, tokenizer = model_registry.open_requested(path, current)
        prompt = chat.request_of(tokenizer, prompt, is_chat, system)
        values, shown, empty = [getattr(each, name) for each in batch], gr.update(visible=True), None
        for generations in generate_batch(model, tokenizer, prompt, batch, is_over=turn.is_over):
            outputs = [generation.tokens for generation in generations]
            yield tree.tree_value(tree_rows(name, values, outputs)), empty, shown
            shown = empty = gr.skip()
        stats = [sample_stats(tokens) for tokens in outputs]
        yield gr.skip(), sweep_stats(name.replace("_", " "), values, stats), gr.skip()

    shared = SharedOutputs([texts, plot, chart], **GENERATION_QUEUE)
    shared.on(go.click, run, [*request, seed, setting, low, high, *side])
    shared.stop_on(stop.click)
    on_pick(setting, range_of, [setting], [low, high])
