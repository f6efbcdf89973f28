"""Traces for the tabs and the API, within a time limit; every refusal is a gr.Error."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepseek.interpret.interventions import ablation_effects
from deepseek.interpret.routing_stats import MAX_CHARACTERS, LongTrace, trace_long_text
from deepseek.interpret.trace import Trace, routers
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import DEADLINE_S
from deepseek.ui.server import model_registry

TEXTS = Path(__file__).parents[3] / "assets" / "texts"
EXAMPLE_TEXTS = {name: (TEXTS / f"{name}.txt").read_text("utf-8").strip() for name in ("story", "encyclopedia", "code")}


@contextmanager
def _check_text(text):
    """Turns a ValueError into a gr.Error, one for a `text` that is no text included."""
    with user_errors():
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r:.60}; it must be text.")
        yield


def trace_text(model, tokenizer, text: str) -> Trace:
    """The trace of a text. Raises gr.Error."""
    with _check_text(text):
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"text has {len(text):,} characters; it must have at most {MAX_CHARACTERS:,}.")
        return model_registry.cached_trace(model, tokenizer, text)


def trace_long(model, tokenizer, text: str, on_progress=lambda fraction: None) -> LongTrace:
    """`routing_stats.trace_long_text` within DEADLINE_S seconds. Raises gr.Error."""
    start = time.monotonic()

    def step(fraction):
        if time.monotonic() - start > DEADLINE_S:
            raise ValueError(f"text took over {DEADLINE_S} seconds to trace; it must be shorter.")
        on_progress(fraction)

    with _check_text(text):
        return trace_long_text(model, tokenizer, text, step)


def ablate_layers(model, tokenizer, text: str, layers: list[int]) -> Iterator[dict[int, list[float]]]:
    """Yields {layer: change in loss with each of its experts ablated}, one more layer each time. Raises gr.Error."""
    start, rows = time.monotonic(), {}
    with _check_text(text):
        router = routers(model)
        if not set(layers) <= set(router):
            raise ValueError(f"layer is {layers[0]!r:.20}; it must be one that has experts.")
        for layer, _, effect in ablation_effects(model, tokenizer, text, layers):
            rows.setdefault(layer, []).append(effect)
            if len(rows[layer]) == len(router[layer].weight):
                yield rows
            if time.monotonic() - start > DEADLINE_S:
                raise ValueError(f"the ablation took over {DEADLINE_S} seconds; choose one layer or a shorter text.")
