"""The Compare tab: one prompt and seed under two settings or two checkpoints, side by side."""

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.ui.components import chat, presets, sampler_controls
from deepseek.ui.components.comparison import report, report_table
from deepseek.ui.components.shared_outputs import SharedOutputs
from deepseek.ui.components.token_strip import token_strip
from deepseek.ui.components.view import checkpoint_choice
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import GENERATION_QUEUE, QUICK_QUEUE, generate, interleave
from deepseek.ui.server import model_registry
from deepseek.ui.tabs import sweep

PRESETS = ("stories", "card, wild")  # of A and B at first


def build(model, tokenizer, prompt: str, checkpoint: gr.State, kept: gr.BrowserState) -> None:
    """Draws the tab with a comparison of PRESETS; both sides follow the user's `checkpoint`."""
    current = model.name_or_path
    params = [SamplingParams(**presets.PRESETS[preset], max_new_tokens=48, seed=7) for preset in PRESETS]
    request = chat.request_of(tokenizer, prompt, True, "")
    *_, generations = interleave([generate(model, tokenizer, request, side_params) for side_params in params])
    gr.Markdown("One prompt and seed under two settings. Where do the samples diverge, and what does each setting do?")
    with gr.Row(equal_height=True):
        prompt = gr.Textbox(prompt, label="prompt", lines=2, max_lines=6, scale=4)
        seed = sampler_controls.seed_box(7, "seed of both", scale=1, min_width=120)
    chat_inputs = chat.build_switch(checkpoint, "compare-chat")
    with gr.Row():
        compare = gr.Button("Compare", variant="primary")
        stop = gr.Button("Stop")
    strips, sides, paths = [], [], []
    with gr.Row():
        for name, preset, generation in zip("AB", PRESETS, generations):
            with gr.Column(min_width=320):
                help = f"sample {name}, token by token; the bar marks the first token that differs"
                gr.Markdown(f"### {name}")
                strips.append(token_strip(f"strip-{name.lower()}", "probability", help, generation.strip))
                with gr.Accordion(f"settings of {name}", open=False):
                    paths.append(gr.Dropdown(model_registry.choices(current), value=current, label="checkpoint"))
                    _, settings = sampler_controls.sampler_controls(kept, paths[-1], preset)
                    sides.append([paths[-1], *settings.values()])
    gr.Markdown("### Settings that differ, and the result")
    rows = report(*generations, (current, current))
    table = report_table(rows, ("A", "B"))

    def run(turn, prompt, is_chat, system, seed, *values):
        half = len(values) // 2
        (path_a, *values_a), (path_b, *values_b) = values[:half], values[half:]
        params = [sampler_controls.to_params(settings, side, seed, locked=True) for side in (values_a, values_b)]
        with user_errors():
            models = [model_registry.open_requested(path, current) for path in (path_a, path_b)]
        samples = []
        for (model, tokenizer), side in zip(models, params):
            request = chat.request_of(tokenizer, prompt, is_chat, system)
            samples.append(generate(model, tokenizer, request, side, is_over=turn.is_over))
        table_update = []  # the last pair's is gone at once
        for a, b in interleave(samples):
            yield a.strip, b.strip, table_update
            table_update = gr.skip()
        yield a.strip, b.strip, report(a, b, (path_a, path_b))

    shared = SharedOutputs([*strips, table], **GENERATION_QUEUE)
    for event in (compare.click, prompt.submit):
        shared.on(event, run, [prompt, *chat_inputs, seed, *sides[0], *sides[1]])
    shared.stop_on(stop.click)
    sweep.build([prompt, *chat_inputs], seed, list(settings), sides[0], current)
    checkpoint.change(lambda path: [checkpoint_choice(path, current)] * 2, checkpoint, paths, **QUICK_QUEUE)
