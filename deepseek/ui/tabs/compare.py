"""The Compare tab: one prompt and seed under two settings or two checkpoints, side by side."""

from dataclasses import asdict
from statistics import fmean

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.ui.components import sampler_controls
from deepseek.ui.components.token_strip import token_strip
from deepseek.ui.components.view import checkpoint_choice
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import GENERATION_QUEUE, UNQUEUED, Generation, first_difference, generate, interleave
from deepseek.ui.server import model_registry

PRESETS = ("stories", "card, wild")  # of A and B at first


def repetition(ids: list[int]) -> dict[str, float]:
    """Fraction of distinct 2-grams (Li et al., 2016), and of 4-grams that repeat an earlier one (Welleck et al., 2020)."""
    pairs, fours = list(zip(ids, ids[1:])), list(zip(ids, ids[1:], ids[2:], ids[3:]))
    return {
        "distinct_2_grams": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "repeated_4_grams": 1 - len(set(fours)) / len(fours) if fours else 0.0,
    }


def sample_stats(generation: Generation) -> dict[str, float]:
    """Length, speed, mean probability under the model and `repetition` of a sample."""
    tokens = generation.tokens
    milliseconds = sum(token.milliseconds for token in tokens)
    return {
        "tokens": len(tokens),
        "tokens_per_second": 1e3 * len(tokens) / milliseconds if milliseconds else 0.0,
        "mean_probability": fmean(token.probability for token in tokens),
        **repetition([token.id for token in tokens]),
    }


def changed_settings(a: SamplingParams, b: SamplingParams) -> dict[str, tuple]:
    """The settings that differ: {name: (value in a, value in b)}."""
    values_b = asdict(b)
    return {name: (value, values_b[name]) for name, value in asdict(a).items() if value != values_b[name]}


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
    *_, generations = interleave([generate(model, tokenizer, prompt, side_params) for side_params in params])
    gr.Markdown("One prompt and seed under two settings. Where do the samples diverge, and what does each setting do?")
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
                    _, settings = sampler_controls.sampler_controls(preset)
                    sides.append([paths[-1], *settings.values()])
    gr.Markdown("### Settings that differ, and the result")
    rows = report(*generations, (current, current))
    widths = ["46%", "27%", "27%"]
    table = gr.Dataframe(
        rows, headers=["what", "A", "B"], column_widths=widths, show_label=False, interactive=False, wrap=True
    )

    def run(prompt, seed, *values):
        half = len(values) // 2
        (path_a, *values_a), (path_b, *values_b) = values[:half], values[half:]
        params = [sampler_controls.to_params(settings, side, seed, locked=True) for side in (values_a, values_b)]
        with user_errors():
            models = [model_registry.open_requested(path, current) for path in (path_a, path_b)]
        for a, b in interleave([generate(*model, prompt, side) for model, side in zip(models, params)]):
            yield a.strip, b.strip, gr.skip()
        yield a.strip, b.strip, report(a, b, (path_a, path_b))

    inputs, outputs = [prompt, seed, *sides[0], *sides[1]], [*strips, table]
    options = dict(api_visibility="private", show_progress="hidden", **GENERATION_QUEUE)
    events = [event(run, inputs, outputs, **options) for event in (compare.click, prompt.submit)]
    stop.click(None, cancels=events, **UNQUEUED)
    checkpoint.change(lambda path: [checkpoint_choice(path, current)] * 2, checkpoint, paths, **UNQUEUED)
