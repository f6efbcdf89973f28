"""Sampling for the page: a Generation that grows token by token, alone or beside a second one, and the queues it runs in."""

import random
import time
from contextlib import closing
from dataclasses import replace
from itertools import zip_longest

from deepseek.inference.engine import TokenTrace
from deepseek.inference.sampling import SamplingParams
from deepseek.interpret.trace import routers
from deepseek.model.config import num_experts
from deepseek.ui.components.token_strip import generated_line, head_line, mark_line
from deepseek.ui.errors import user_error, user_errors
from deepseek.ui.server import model_registry

EXAMPLES = [
    "Once upon a time",
    "In the depths of space",
    "Music Festivals Across America",
    "The most interesting scientific discovery",
    "When I think about consciousness",
    "Neutrino Masses and Oscillations",
]
REDRAW_S = 0.15  # between two updates of a page; more of them slow down decoding and keep the browser busy
MAX_UPDATES_PER_S = 30  # of all pages together
DEADLINE_S = 120  # for one sample
# gradio's queues: of forward passes over a whole text, of streamed samples, and of events that need no model.
MODEL_QUEUE = dict(concurrency_id="model", concurrency_limit=model_registry.NUM_WORKERS)
GENERATION_QUEUE = dict(concurrency_id="texts", concurrency_limit=64)
UNQUEUED = dict(api_visibility="private", queue=False)


class Generation:
    """One sample as it grows, shared by the tabs of a user's page.

    Not a dataclass: gradio would turn a dataclass in a State into a dictionary at every update.
    """

    def __init__(self, prompt: str, params: SamplingParams, forced_tokens: dict[int, int] | None = None, parent=None):
        self.prompt, self.params = prompt, params
        self.forced_tokens = forced_tokens or {}  # position in the output -> token id
        self.parent = parent  # the Generation that this one branched off
        self.selected = max(self.forced_tokens, default=0)  # position of the token whose details the page shows
        self.tokens: list[TokenTrace] = []
        self.lines: list[str] = []  # of the token strip
        self.seconds = self.time_to_first_token_s = 0.0
        self.timed_out = False
        self.checkpoint = ""  # path of the model

    @property
    def text(self) -> str:
        return self.prompt + "".join(token.text for token in self.tokens)

    @property
    def finish_reason(self) -> str | None:
        """As OpenAI's API has it: "stop" or "length", and besides "context" or "time"; None while it grows."""
        return "time" if self.timed_out else self.tokens[-1].finish_reason if self.tokens else None

    @property
    def strip(self) -> str:
        return "".join(self.lines)

    @property
    def stats(self) -> str:
        parts = [f"{len(self.tokens)} tokens", f"seed {self.params.seed}"]
        decode_s = self.seconds - self.time_to_first_token_s
        if decode_s > 0:
            parts.insert(1, f"{(len(self.tokens) - 1) / decode_s:.0f} tokens/s")
        if self.forced_tokens:
            parts.append("branched at token " + ", ".join(str(position + 1) for position in sorted(self.forced_tokens)))
        if self.timed_out:
            parts.append(f"stopped after {DEADLINE_S} seconds")
        elif self.finish_reason:
            parts.append(f"ended by {self.tokens[-1].ended_by}")
        return " · ".join(parts)


def generate(model, tokenizer, prompt: str, params: SamplingParams, forced_tokens=None, parent=None, interventions=()):
    """Yields the growing Generation at its first token, then at most every REDRAW_S seconds, and at its end.

    Raises gr.Error.
    """
    if not isinstance(prompt, str):
        raise user_error(ValueError(f"prompt is {prompt!r:.60}; it must be text."))
    if params.seed is None:
        params = replace(params, seed=random.randrange(2**31))
    generation = Generation(prompt, params, forced_tokens, parent)
    generation.checkpoint = model.name_or_path
    generation.lines.append(head_line(sorted(routers(model)), num_experts(model.config), prompt))
    start, last_update = time.monotonic(), 0.0
    tokens = model_registry.stream(model, tokenizer, prompt, params, generation.forced_tokens, interventions)
    with user_errors(), closing(tokens):
        for token in tokens:
            generation.tokens.append(token)
            generation.lines.append(generated_line(token))
            now = time.monotonic()
            generation.seconds = now - start
            generation.time_to_first_token_s = generation.time_to_first_token_s or generation.seconds
            generation.timed_out = generation.seconds > DEADLINE_S
            if generation.finish_reason:
                break
            if now - last_update > max(REDRAW_S, model_registry.num_active_requests() / MAX_UPDATES_PER_S):
                last_update = now
                yield generation
    yield generation


def first_difference(a: Generation, b: Generation) -> int | None:
    """The first position at which two outputs differ, None where one is the beginning of the other."""
    pairs = enumerate(zip(a.tokens, b.tokens))
    return next((position for position, (token_a, token_b) in pairs if token_a.id != token_b.id), None)


def interleave(sides: list):
    """Yields (Generation, Generation) while two `generate`s take turns. The strips mark the first difference."""
    latest, marked = (None, None), False
    try:
        for updates in zip_longest(*sides):  # None for a side that has ended
            latest = tuple(update or previous for update, previous in zip(updates, latest))
            position = first_difference(*latest)
            if position is not None and not marked:
                for generation in latest:
                    generation.lines.append(mark_line(position))
                marked = True
            yield latest
    finally:
        for side in sides:
            side.close()
