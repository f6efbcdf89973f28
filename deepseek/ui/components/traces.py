"""Traces for the tabs and the API, within a time limit; every refusal is a gr.Error."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from deepseek.checkpoints.progress import reported
from deepseek.interpret.importance import KnockOut, knock_outs, ranked_layers
from deepseek.interpret.interventions import intervened
from deepseek.interpret.routing_stats import MAX_CHARACTERS, LongTrace, trace_long_text
from deepseek.interpret.trace import Trace, trace
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import DEADLINE_S, Generation
from deepseek.ui.server import model_registry

TEXTS = Path(__file__).parents[3] / "assets" / "texts"
EXAMPLE_TEXTS = {name: (TEXTS / f"{name}.txt").read_text("utf-8").strip() for name in ("story", "encyclopedia", "code")}


@contextmanager
def _check_text(text):
    """Turns a ValueError into a gr.Error, one for a `text` that is neither text nor ids included."""
    with user_errors():
        if not isinstance(text, (str, tuple)):
            raise ValueError(f"text is {text!r:.60}; it must be text.")
        yield


def as_sampled(text: str, generation: Generation, model) -> str | tuple[int, ...]:
    """The ids that `text` was sampled as if it is the text of `generation`, by `model`; else the text, to be tokenized."""
    known = generation and text == generation.text and model.name_or_path == generation.checkpoint
    return generation.ids if known else text


def trace_text(model, tokenizer, text: str | tuple[int, ...], interventions=()) -> Trace:
    """The trace of a text or of token ids, under interventions. Raises gr.Error.

    The page shows how far it is where a model's experts are read from their files.
    """
    progress = gr.Progress()
    with _check_text(text), reported(lambda what, fraction: progress(fraction, desc=what)):
        if isinstance(text, str) and len(text) > MAX_CHARACTERS:
            raise ValueError(f"text has {len(text):,} characters; it must have at most {MAX_CHARACTERS:,}.")
        if interventions:
            with intervened(model, interventions):
                return trace(model, tokenizer, text)
        return model_registry.cached_trace(model, tokenizer, text)


def trace_long(model, tokenizer, text: str | tuple[int, ...], on_progress=lambda fraction: None) -> LongTrace:
    """`routing_stats.trace_long_text` within DEADLINE_S seconds. Raises gr.Error."""
    start = time.monotonic()

    def step(fraction):
        if time.monotonic() - start > DEADLINE_S:
            raise ValueError(f"text took over {DEADLINE_S} seconds to trace; it must be shorter.")
        on_progress(fraction)

    with _check_text(text):
        return trace_long_text(model, tokenizer, text, step)


def within_deadline(steps: Iterable, text, what: str) -> Iterator:
    """The results of `steps` over a text, within DEADLINE_S seconds. Raises gr.Error."""
    start = time.monotonic()
    with _check_text(text):
        for step in steps:
            yield step
            if time.monotonic() - start > DEADLINE_S:
                raise ValueError(f"{what} took over {DEADLINE_S} seconds; choose one layer or a shorter text.")


def knocked_out(model, tokenizer, text: str | tuple[int, ...], layers: list[int]) -> Iterator[KnockOut]:
    """`importance.knock_outs` of `layers`, within DEADLINE_S seconds. Raises gr.Error."""
    with user_errors():
        if not set(layers) <= set(ranked_layers(model)):
            raise ValueError(f"layer is {layers[0]!r:.20}; it must be one that has experts.")
    yield from within_deadline(knock_outs(model, tokenizer, text, layers), text, "the ablation")
