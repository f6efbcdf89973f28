"""The Compare tab: one prompt and seed under two settings or two checkpoints, side by side."""

from dataclasses import asdict

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.ui.components import sampler_controls
from deepseek.ui.components.token_strip import token_strip
from deepseek.ui.errors import user_error
from deepseek.ui.generation import GENERATION_QUEUE, UNQUEUED, Generation, first_difference, side_by_side
from deepseek.ui.server import model_registry

HEADERS = ["what", "A", "B"]
PRESETS = ("stories", "card, wild")  # of A and B at first


def repetition(ids: list[int]) -> dict[str, float]:
    """Shares of a text's n-grams of two tokens that are distinct, and of four that came before."""
    pairs, fours = list(zip(ids, ids[1:])), list(zip(ids, ids[1:], ids[2:], ids[3:]))
    return {
        "distinct_2_grams": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "repeated_4_grams": 1 - len(set(fours)) / len(fours) if fours else 0.0,
    }


def figures(generation: Generation) -> dict[str, float]:
    """Length, speed, and how likely and repetitive a text is."""
    tokens = generation.tokens
    milliseconds = sum(token.milliseconds for token in tokens)
    return {
        "tokens": len(tokens),
        "tokens_per_second": 1e3 * len(tokens) / milliseconds if milliseconds else 0.0,
        "mean_probability": sum(token.probability for token in tokens) / len(tokens),
        **repetition([token.id for token in tokens]),
    }


def differences(a: SamplingParams, b: SamplingParams) -> dict[str, tuple]:
    """The settings in which the two differ: {name: (value in a, value in b)}."""
    one, other = asdict(a), asdict(b)
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def report(a: Generation, b: Generation, checkpoints: tuple[str, str]) -> list[list[str]]:
    """Rows (what, A, B) of the table below the texts: what was set differently, then the figures."""
    changed = differences(a.params, b.params)
    rows = [[name.replace("_", " "), str(one), str(other)] for name, (one, other) in changed.items()]
    if checkpoints[0] != checkpoints[1]:
        rows.insert(0, ["checkpoint", *checkpoints])
    place = first_difference(a, b)
    rows.append(["first different token", *([str(place + 1)] * 2 if place is not None else ["none", "none"])])
    one, other = figures(a), figures(b)
    for name in one:
        rows.append(
            [
                name.replace("_grams", "-grams").replace("_", " "),
                *(f"{v:.3f}" if v < 1 else f"{v:.0f}" for v in (one[name], other[name])),
            ]
        )
    return rows


def build(model, tokenizer, prompt: str, checkpoint: gr.State) -> None:
    """Draws the tab, with a comparison of PRESETS already in it; both sides follow the reader's `checkpoint`."""
    current = model.name_or_path
    first = [SamplingParams(**sampler_controls.PRESETS[preset], max_new_tokens=48, seed=7) for preset in PRESETS]
    *_, (one, other) = side_by_side((model, tokenizer), (model, tokenizer), prompt, *first)
    gr.Markdown("One prompt and one seed under two settings. Where do they part, and what does each do to the text?")
    with gr.Row(equal_height=True):
        prompt = gr.Textbox(prompt, label="prompt", lines=2, max_lines=6, scale=4)
        seed = gr.Number(7, label="seed of both", scale=1, min_width=120)
    with gr.Row():
        go = gr.Button("Compare", variant="primary")
        stop = gr.Button("Stop")
    strips, sides, paths = [], [], []
    with gr.Row():
        for name, preset, text in zip("AB", PRESETS, (one, other)):
            with gr.Column(min_width=320):
                help = f"text {name}, token by token; the bar marks the first token that differs"
                gr.Markdown(f"### {name}")
                strips.append(token_strip(f"strip-{name.lower()}", "probability", help, text.strip))
                with gr.Accordion(f"settings of {name}", open=False):
                    paths.append(gr.Dropdown(model_registry.choices(current), value=current, label="checkpoint"))
                    dropdown, settings = sampler_controls.sampler_controls(preset)
                    sampler_controls.apply_preset(dropdown, settings)
                    sides.append([paths[-1], *settings.values()])
    gr.Markdown("### What was set differently, and what came of it")
    rows = report(one, other, (current, current))
    widths = ["46%", "27%", "27%"]
    table = gr.Dataframe(rows, headers=HEADERS, column_widths=widths, show_label=False, interactive=False, wrap=True)

    def run(prompt, seed, *values):
        half = len(values) // 2
        checkpoints, params = (values[0], values[half]), []
        for side in (values[1:half], values[half + 1 :]):
            params.append(sampler_controls.to_params(settings, side, seed, locked=True))
        try:
            models = [model_registry.open_requested(path, current) for path in checkpoints]
        except ValueError as error:
            raise user_error(error) from error
        for a, b in side_by_side(*models, prompt, *params):
            yield a.strip, b.strip, gr.skip()
        yield a.strip, b.strip, report(a, b, checkpoints)

    inputs, outputs = [prompt, seed, *sides[0], *sides[1]], [*strips, table]
    options = dict(api_visibility="private", show_progress="hidden", **GENERATION_QUEUE)
    events = [go.click(run, inputs, outputs, **options), prompt.submit(run, inputs, outputs, **options)]
    stop.click(None, cancels=events, **UNQUEUED)

    def follow(path):
        return [gr.update(choices=list(dict.fromkeys([*model_registry.choices(current), path])), value=path)] * 2

    checkpoint.change(follow, checkpoint, paths, **UNQUEUED)
