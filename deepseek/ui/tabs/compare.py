"""The Compare tab: one prompt and seed under two settings or two checkpoints, side by side."""

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.ui.components import sampler_controls
from deepseek.ui.components.comparison import changed_settings, sample_stats
from deepseek.ui.components.token_strip import token_strip
from deepseek.ui.components.view import checkpoint_choice
from deepseek.ui.errors import user_error
from deepseek.ui.generation import GENERATION_QUEUE, UNQUEUED, Generation, first_difference, side_by_side
from deepseek.ui.server import model_registry

HEADERS = ["what", "A", "B"]
PRESETS = ("stories", "card, wild")  # of A and B at first


def report(a: Generation, b: Generation, checkpoints: tuple[str, str]) -> list[list[str]]:
    """Rows (what, A, B) of the table: the checkpoints and settings that differ, the first difference, the statistics."""
    rows = [["checkpoint", *checkpoints]] if checkpoints[0] != checkpoints[1] else []
    for name, values in changed_settings(a.params, b.params).items():
        rows.append([name.replace("_", " "), *map(str, values)])
    position = first_difference(a, b)
    rows.append(["first different token", *(["none"] * 2 if position is None else [str(position + 1)] * 2)])
    stats_a, stats_b = sample_stats(a), sample_stats(b)
    for name, value in stats_a.items():
        values = (f"{v:.3f}" if v < 1 else f"{v:.0f}" for v in (value, stats_b[name]))
        rows.append([name.replace("_grams", "-grams").replace("_", " "), *values])
    return rows


def build(model, tokenizer, prompt: str, checkpoint: gr.State) -> None:
    """Draws the tab with a comparison of PRESETS; both sides follow the user's `checkpoint`."""
    current = model.name_or_path
    params = [SamplingParams(**sampler_controls.PRESETS[preset], max_new_tokens=48, seed=7) for preset in PRESETS]
    *_, generations = side_by_side((model, tokenizer), (model, tokenizer), prompt, *params)
    gr.Markdown(
        "One prompt and one seed under two settings. Where do the samples diverge, and what does each setting do?"
    )
    with gr.Row(equal_height=True):
        prompt = gr.Textbox(prompt, label="prompt", lines=2, max_lines=6, scale=4)
        seed = gr.Number(7, label="seed of both", scale=1, min_width=120)
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
                    dropdown, settings = sampler_controls.sampler_controls(preset)
                    sampler_controls.apply_preset(dropdown, settings)
                    sides.append([paths[-1], *settings.values()])
    gr.Markdown("### Settings that differ, and the result")
    rows = report(*generations, (current, current))
    widths = ["46%", "27%", "27%"]
    table = gr.Dataframe(rows, headers=HEADERS, column_widths=widths, show_label=False, interactive=False, wrap=True)

    def run(prompt, seed, *values):
        half = len(values) // 2
        checkpoints = values[0], values[half]
        params = [
            sampler_controls.to_params(settings, side, seed, locked=True)
            for side in (values[1:half], values[half + 1 :])
        ]
        try:
            models = [model_registry.open_requested(path, current) for path in checkpoints]
        except ValueError as error:
            raise user_error(error) from error
        for a, b in side_by_side(*models, prompt, *params):
            yield a.strip, b.strip, gr.skip()
        yield a.strip, b.strip, report(a, b, checkpoints)

    inputs, outputs = [prompt, seed, *sides[0], *sides[1]], [*strips, table]
    options = dict(api_visibility="private", show_progress="hidden", **GENERATION_QUEUE)
    events = [event(run, inputs, outputs, **options) for event in (compare.click, prompt.submit)]
    stop.click(None, cancels=events, **UNQUEUED)
    checkpoint.change(lambda path: [checkpoint_choice(path, current)] * 2, checkpoint, paths, **UNQUEUED)
