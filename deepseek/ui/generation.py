"""TODO"""

import os
import random
import time
from dataclasses import replace

from deepseek.inference.engine import TokenTrace
from deepseek.inference.sampling import SamplingParams
from deepseek.interpret.trace import routers
from deepseek.model.config import num_experts
from deepseek.ui.components.token_strip import generated_line, head_line, mark_line
from deepseek.ui.errors import user_error
from deepseek.ui.server import model_registry

EXAMPLES = [
    "Once upon a time",
    "In the depths of space",
    "Music Festivals Across America",
    "The most interesting scientific discovery",
    "When I think about consciousness",
    "Neutrino Masses and Oscillations",
]
REDRAW_S = 0.15  # seconds between two updates of a page; more often costs the engine and pegs the browser
MAX_UPDATES_PER_S = 30  # updates a second of all pages together
DEADLINE_S = 120  # seconds that one text may take
NUM_WORKERS = 2  # jobs on the model at a time
NUM_THREADS = max(
    1, (os.cpu_count() or 1) // NUM_WORKERS
)  # of each: with a thread a core they would wait for one another
MODEL_QUEUE = dict(
    concurrency_id="model", concurrency_limit=NUM_WORKERS
)  # looking at texts shares these places in the queue
GENERATION_QUEUE = dict(concurrency_id="texts", concurrency_limit=64)  # and writing them, many at once, these


class Generation:
    """One text as it grows: shared by the tabs of one reader.

    Not a dataclass: gradio would turn a dataclass in a State into a dictionary at every update.
    """

    def __init__(self, prompt: str, params: SamplingParams, forced: dict[int, int] | None = None, parent=None):
        self.prompt, self.params = prompt, params
        self.forced = forced or {}  # tokens that the reader put there, by place in the output
        self.parent = parent  # the Generation that this one branched off
        self.selected = max(self.forced, default=0)  # place of the token that the reader looks at
        self.tokens: list[TokenTrace] = []
        self.lines: list[str] = []  # of the token strip
        self.seconds = self.first = 0.0  # until the newest token, and until the first
        self.late = False
        self.checkpoint = ""  # the path of the model that writes it

    @property
    def text(self) -> str:
        return self.prompt + "".join(token.text for token in self.tokens)

    @property
    def ended(self) -> bool:
        return self.late or bool(self.tokens and self.tokens[-1].finish_reason)

    @property
    def strip(self) -> str:
        return "".join(self.lines)

    @property
    def stats(self) -> str:
        parts = [f"{len(self.tokens)} tokens", f"seed {self.params.seed}"]
        if self.seconds > self.first:  # the first waits for the prompt to be read
            parts.insert(1, f"{(len(self.tokens) - 1) / (self.seconds - self.first):.0f} tokens/s")
        if self.forced:
            parts.append("branched at token " + ", ".join(str(place + 1) for place in sorted(self.forced)))
        if self.late:
            parts.append(f"stopped after {DEADLINE_S} seconds")
        elif self.tokens and self.tokens[-1].finish_reason:
            parts.append(f"ended by {self.tokens[-1].finish_reason}")
        return " · ".join(parts)


def generate(model, tokenizer, prompt: str, params: SamplingParams, forced_tokens=None, parent=None, interventions=()):
    """Yields the Generation, written under `interventions`, at most every REDRAW seconds and at its end. Raises gr.Error."""
    if not isinstance(prompt, str):
        raise user_error(ValueError(f"prompt is {prompt!r:.60}; it must be text."))
    if params.seed is None:
        params = replace(params, seed=random.randrange(2**31))
    experts = num_experts(model.config)
    generation = Generation(prompt, params, forced_tokens, parent)
    generation.checkpoint = model.name_or_path
    generation.lines.append(head_line(sorted(routers(model)), experts, prompt))
    began, shown = time.monotonic(), 0.0  # the first token is shown at once
    tokens = model_registry.stream(model, tokenizer, prompt, params, generation.forced, interventions)
    try:
        for token in tokens:
            generation.tokens.append(token)
            generation.lines.append(generated_line(token))
            now = time.monotonic()
            generation.seconds = now - began
            generation.first = generation.first or generation.seconds
            generation.late = generation.seconds > DEADLINE_S
            if generation.ended:
                break
            if now - shown > max(REDRAW_S, model_registry.num_active_requests() / MAX_UPDATES_PER_S):
                shown = now
                yield generation
    except ValueError as error:
        raise user_error(error) from error
    finally:
        tokens.close()
    yield generation


UNQUEUED = dict(api_visibility="private", queue=False)  # for events that need no model


def first_difference(a: Generation, b: Generation) -> int | None:
    """The first place at which the two outputs differ, None where one is the beginning of the other."""
    pairs = enumerate(zip(a.tokens, b.tokens))
    return next((place for place, (one, other) in pairs if one.id != other.id), None)


def side_by_side(model_a, model_b, prompt: str, a: SamplingParams, b: SamplingParams):
    """`in_turn` of one prompt on two sides; models are (model, tokenizer)."""
    return interleave([generate(*model_a, prompt, a), generate(*model_b, prompt, b)])


def interleave(sides: list):
    """Yields (Generation, Generation) while two `generate`s grow in turn.

    As soon as the outputs differ, the strips of both mark the place.
    """
    latest, marked = [None, None], False
    try:
        while any(sides):
            for index, side in enumerate(sides):
                if side:
                    latest[index] = next(side)
                    if latest[index].ended:
                        sides[index] = None
            place = first_difference(*latest)
            if place is not None and not marked:
                for generation in latest:
                    generation.lines.append(mark_line(place))
                marked = True
            yield tuple(latest)
    finally:
        for side in filter(None, sides):
            side.close()
