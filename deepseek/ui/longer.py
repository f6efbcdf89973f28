"""A longer text, in the Experts tab: the tokens of each expert, experts that fire together, and the flow across layers."""

import time
from pathlib import Path

import gradio as gr

from deepseek import balance, routing
from deepseek.plots import longer as plots
from deepseek.routing import MOST, Reading
from deepseek.trace import routers
from deepseek.ui import served
from deepseek.ui.controls import QUIET, refusal
from deepseek.ui.figure import figure
from deepseek.ui.playground import DEADLINE, MODEL

TEXTS = Path(__file__).parents[2] / "assets" / "texts"
EXAMPLES = ("story", "encyclopedia", "code")
AGAIN = "Another checkpoint is open now: read the text again with it."


def example(name: str) -> str:
    """The text of one of EXAMPLES."""
    return (TEXTS / f"{name}.txt").read_text("utf-8").strip()


def examples(model, tokenizer) -> dict[str, Reading]:
    """All EXAMPLES, read."""
    return {name: read(model, tokenizer, example(name)) for name in EXAMPLES}


def read(model, tokenizer, text, tell=lambda part: None) -> Reading:
    """`routing.read` within DEADLINE seconds, telling the part done. Raises gr.Error."""
    began = time.monotonic()

    def step(part):
        if time.monotonic() - began > DEADLINE:
            raise ValueError(f"text took over {DEADLINE} seconds to read; it must be shorter.")
        tell(part)

    try:
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r:.60}; it must be text.")
        return routing.read(model, tokenizer, text, step)
    except ValueError as error:
        raise refusal(error) from error


def draw(reading: Reading, layer: int):
    """(note, tokens of each expert and pairs of experts at `layer`, flow across the layers) of a Reading."""
    if not reading.routing:
        return f"{len(reading.tokens):,} tokens · this model is dense: it has no experts.", None, None, None
    violations = [float(balance.max_violation(count)) for count in routing.counts(reading.routing)]
    note = (
        f"{len(reading.tokens):,} tokens · in the mean over the layers the busiest expert has "
        f"{1 + sum(violations) / len(violations):.1f} × an even share"
    )
    steps = routing.flow(reading.routing)
    if len(steps) > plots.MOST_BANDS:
        note += f" · of {len(steps):,} bands from layer to layer the {plots.MOST_BANDS} broadest are drawn"
    return note, *at_layer(reading, layer), plots.flow(steps, reading.routing) if steps else None


def at_layer(reading: Reading, layer: int):
    """(tokens of each expert, pairs of experts) at one layer."""
    here = next((one for one in reading.routing if one.layer == layer), None)
    if here is None:
        return None, None
    favourites = plots.favourite_tokens(routing.favourites(reading.tokens, here))
    return favourites, plots.co_firing(routing.co_firing(here)) if here.indices.shape[1] > 1 else None


def layer_choices(model) -> dict:
    """Choices and first value of a dropdown of the layers that have experts."""
    layers = sorted(routers(model))
    return dict(choices=[(f"layer {layer}", layer) for layer in layers], value=layers[-1] if layers else None)


def build(model, first: Reading, checkpoint: gr.State) -> None:
    """Draws the sub-tab with the example "encyclopedia" in it, already read as `first`."""
    options = layer_choices(model)
    note, favourites, pairs, flow = draw(first, options["value"])
    reading = gr.State(first, time_to_live=3600)
    gr.Markdown("A longer text shows habits: which tokens an expert keeps taking, and which experts work together.")
    box = gr.Textbox(
        example("encyclopedia"),
        label="text",
        info=f"at most {MOST:,} characters; read in pieces as long as the model's context",
        lines=4,
        max_lines=8,
    )
    with gr.Row():
        go = gr.Button("Read", variant="primary", min_width=120)
        upload = gr.UploadButton("Open a text file", file_types=["text"], min_width=120)
    note = gr.Markdown(note, elem_id="longer-note")
    layer = gr.Dropdown(**options, label="layer")
    gr.Markdown(
        "### What each expert takes\nIts most frequent tokens, from left to right. "
        "Hover: how many of all of them in the text it took."
    )
    favourites = figure(favourites, "expert-tokens", elem_classes=["wide", "inked"], elem_id="expert-tokens")
    gr.Markdown(
        "### Which experts fire together\nHow often two were chosen for the same token, over what their loads alone "
        "would give: above 1 they go together, below 1 they avoid each other."
    )
    pairs = figure(pairs, "expert-pairs", elem_classes="inked", elem_id="expert-pairs")
    gr.Markdown(
        "### From layer to layer\nBands of tokens, from the first expert of one layer to that of the next; layer:expert."
    )
    flow = figure(flow, "expert-flow", elem_classes="wide", elem_id="expert-flow")

    def run(checkpoint, text, layer, progress=gr.Progress()):  # noqa: B008 (gradio looks for it there)
        model, tokenizer = served.ready(checkpoint)
        reading = read(model, tokenizer, text, lambda part: progress(part, desc="reading"))
        return reading, *draw(reading, layer)

    go.click(run, [checkpoint, box, layer], [reading, note, favourites, pairs, flow], api_visibility="private", **MODEL)
    layer.input(at_layer, [reading, layer], [favourites, pairs], **QUIET)
    upload.upload(opened, upload, box, **QUIET)

    def renew(checkpoint):
        model, _ = served.ready(checkpoint)
        return [AGAIN, gr.update(**layer_choices(model)), Reading([], []), None, None, None]

    checkpoint.change(renew, checkpoint, [note, layer, reading, favourites, pairs, flow], **QUIET)


def opened(file: str) -> str:
    """The text of an uploaded file. Raises gr.Error for one that is no text or too long."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            text = opened.read(MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(ValueError("the file is not text in UTF-8; it must be.")) from error
    if len(text) > MOST:
        raise refusal(ValueError(f"the file has more than {MOST:,} characters; it must have at most that many."))
    return text
