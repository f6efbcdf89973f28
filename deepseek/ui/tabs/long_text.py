"""A longer text, in the Experts tab: the tokens of each expert, experts that fire together, and the flow across layers."""

import time
from pathlib import Path

import gradio as gr

from deepseek.interpret import routing_stats
from deepseek.interpret.routing_stats import MAX_CHARACTERS, LongTrace
from deepseek.interpret.trace import routers
from deepseek.model import load_balancing
from deepseek.ui.components.figure import figure
from deepseek.ui.errors import user_error
from deepseek.ui.generation import DEADLINE_S, MODEL_QUEUE, UNQUEUED
from deepseek.ui.plots import long_text as plots
from deepseek.ui.server import model_registry

TEXTS = Path(__file__).parents[3] / "assets" / "texts"
EXAMPLES = ("story", "encyclopedia", "code")
STALE = "Another checkpoint is open now: read the text again with it."


def example(name: str) -> str:
    """The text of one of EXAMPLES."""
    return (TEXTS / f"{name}.txt").read_text("utf-8").strip()


def examples(model, tokenizer) -> dict[str, LongTrace]:
    """All EXAMPLES, read."""
    return {name: read_long_text(model, tokenizer, example(name)) for name in EXAMPLES}


def read_long_text(model, tokenizer, text, tell=lambda part: None) -> LongTrace:
    """`routing.read` within DEADLINE seconds, telling the part done. Raises gr.Error."""
    began = time.monotonic()

    def step(part):
        if time.monotonic() - began > DEADLINE_S:
            raise ValueError(f"text took over {DEADLINE_S} seconds to read; it must be shorter.")
        tell(part)

    try:
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r:.60}; it must be text.")
        return routing_stats.trace_long_text(model, tokenizer, text, step)
    except ValueError as error:
        raise user_error(error) from error


def draw(reading: LongTrace, layer: int):
    """(note, tokens of each expert and pairs of experts at `layer`, flow across the layers) of a Reading."""
    if not reading.routing:
        return f"{len(reading.tokens):,} tokens · this model is dense: it has no experts.", None, None, None
    violations = [float(load_balancing.max_violation(count)) for count in routing_stats.expert_counts(reading.routing)]
    note = (
        f"{len(reading.tokens):,} tokens · in the mean over the layers the busiest expert has "
        f"{1 + sum(violations) / len(violations):.1f} × an even share"
    )
    steps = routing_stats.transitions(reading.routing)
    if len(steps) > plots.MAX_TRANSITIONS:
        note += f" · of {len(steps):,} bands from layer to layer the {plots.MAX_TRANSITIONS} broadest are drawn"
    return note, *at_layer(reading, layer), plots.transitions(steps, reading.routing) if steps else None


def at_layer(reading: LongTrace, layer: int):
    """(tokens of each expert, pairs of experts) at one layer."""
    here = next((one for one in reading.routing if one.layer == layer), None)
    if here is None:
        return None, None
    favourites = plots.vocabulary_specialization(routing_stats.vocabulary_specialization(reading.tokens, here))
    return favourites, plots.co_activation(routing_stats.co_activation(here)) if here.indices.shape[1] > 1 else None


def layer_choices(model) -> dict:
    """Choices and first value of a dropdown of the layers that have experts."""
    layers = sorted(routers(model))
    return dict(choices=[(f"layer {layer}", layer) for layer in layers], value=layers[-1] if layers else None)


def build(model, first: LongTrace, checkpoint: gr.State) -> None:
    """Draws the sub-tab with the example "encyclopedia" in it, already read as `first`."""
    options = layer_choices(model)
    note, favourites, pairs, flow = draw(first, options["value"])
    reading = gr.State(first, time_to_live=3600)
    gr.Markdown("A longer text shows habits: which tokens an expert keeps taking, and which experts work together.")
    box = gr.Textbox(
        example("encyclopedia"),
        label="text",
        info=f"at most {MAX_CHARACTERS:,} characters; read in pieces as long as the model's context",
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
        model, tokenizer = model_registry.get_model(checkpoint)
        reading = read_long_text(model, tokenizer, text, lambda part: progress(part, desc="reading"))
        return reading, *draw(reading, layer)

    go.click(
        run, [checkpoint, box, layer], [reading, note, favourites, pairs, flow], api_visibility="private", **MODEL_QUEUE
    )
    layer.input(at_layer, [reading, layer], [favourites, pairs], **UNQUEUED)
    upload.upload(opened, upload, box, **UNQUEUED)

    def renew(checkpoint):
        model, _ = model_registry.get_model(checkpoint)
        return [STALE, gr.update(**layer_choices(model)), LongTrace([], []), None, None, None]

    checkpoint.change(renew, checkpoint, [note, layer, reading, favourites, pairs, flow], **UNQUEUED)


def opened(file: str) -> str:
    """The text of an uploaded file. Raises gr.Error for one that is no text or too long."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise user_error(ValueError("the file is not text in UTF-8; it must be.")) from error
    if len(text) > MAX_CHARACTERS:
        raise user_error(
            ValueError(f"the file has more than {MAX_CHARACTERS:,} characters; it must have at most that many.")
        )
    return text
