"""Sampling for the page: a Generation that grows token by token, alone or beside a second one, and the queues it runs in."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, zip_longest
from math import inf

from deepseek.checkpoints.progress import waiting
from deepseek.data.chat import is_chat, rendered
from deepseek.data.tokenizer import encode_prompt
from deepseek.inference.sampling import SamplingParams
from deepseek.inference.token_trace import TokenTrace
from deepseek.interpret.interventions import Intervention
from deepseek.interpret.model_parts import decoder_layers
from deepseek.interpret.moe_layers import moe_layers
from deepseek.interpret.trace import context_length
from deepseek.ui.components.token_strip import generated_line, head_line, mark_line
from deepseek.ui.errors import user_error, user_errors
from deepseek.ui.server import model_registry

EXAMPLES = {  # of the demo's own kinds of text, stories first, which it continues best; and of others
    "try": [
        "Once upon a time",
        "The little fox",
        "One day, a boy named Tom",
        "There was once a poor woodcutter",
        "The city is the capital of",
        "import os",
    ],
    "beyond the demo's training": [
        "In the depths of space",
        "Music Festivals Across America",
        "The most interesting scientific discovery",
        "When I think about consciousness",
        "Neutrino Masses and Oscillations",
    ],
}
REDRAW_S = 0.15  # between two updates of a page; more of them slow down decoding and keep the browser busy
MAX_UPDATES_PER_S = 30  # of all pages together
DEADLINE_S = 120  # for one sample
# gradio's queues: of forward passes over a whole text, of models being downloaded and opened, which nobody else waits for,
# of streamed samples, and of events that need no model. Every event has one: the page shows no other event's refusal.
MODEL_QUEUE = dict(concurrency_id="model", concurrency_limit=model_registry.NUM_WORKERS)
OPENING_QUEUE = dict(concurrency_id="opening", concurrency_limit=16)
GENERATION_QUEUE = dict(concurrency_id="texts", concurrency_limit=64)
QUICK_QUEUE = dict(concurrency_id="quick", concurrency_limit=None, api_visibility="private", show_progress="hidden")


Branch = tuple[tuple[int, int], ...]  # the forced tokens of a text, (position, id), ascending; () is the first text


def add_branch(branches: dict, branch: Branch, generation=None) -> None:
    """Adds a branch and those that it branched off, in a tree that `sorted` lists from the first text on."""
    for length in range(len(branch)):
        branches.setdefault(branch[:length])
    branches[branch] = generation or branches.get(branch)


class Generation:
    """One sample as it grows, shared by the tabs of a user's page.

    Not a dataclass: gradio would turn a dataclass in a State into a dictionary at every update.
    """

    def __init__(
        self,
        prompt: str,
        params: SamplingParams,
        forced_tokens: dict[int, int] | None = None,
        branches: dict | None = None,
        interventions: Iterable[Intervention] = (),
        messages: Sequence[dict] = (),
    ):
        self.prompt, self.params, self.interventions = prompt, params, list(interventions)
        self.messages = list(messages)  # of a chat, of which `prompt` is the rendered text
        self.forced_tokens = forced_tokens or {}  # position in the output -> token id
        # Every text of this prompt and seed that was tried, by its `branch`; None for one that is not sampled yet.
        self.branches: dict[Branch, Generation | None] = {} if branches is None else branches
        self.selected = max(self.forced_tokens, default=0)  # position of the token whose details the page shows
        self.select_order = 0  # of the page's event that selected it
        self.prompt_ids: list[int] = []
        self.tokens: list[TokenTrace] = []
        self.lines: list[str] = []  # of the token strip
        self.seconds = self.time_to_first_token_s = 0.0
        self.timed_out = False
        self.progress = ""  # until the first token, of a model whose experts are read from their files
        self.checkpoint = ""  # path of the model

    def add(self, token: TokenTrace, seconds: float) -> None:
        """Appends a token that came `seconds` after the start."""
        if not self.tokens:
            add_branch(self.branches, self.branch, self)
        self.tokens.append(token)
        self.lines.append(generated_line(token))
        self.seconds = seconds
        self.time_to_first_token_s = self.time_to_first_token_s or seconds
        self.timed_out = seconds > DEADLINE_S

    @property
    def branch(self) -> "Branch":
        """What tells this text from others of its prompt, settings and seed."""
        return tuple(sorted(self.forced_tokens.items()))

    @property
    def request(self) -> str | list[dict]:
        """What it was sampled from, as `generate` takes it: the messages of a chat, else the prompt."""
        return self.messages or self.prompt

    @property
    def output(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def text(self) -> str:
        return self.prompt + self.output

    @property
    def ids(self) -> tuple[int, ...]:
        """Of prompt and output, as sampled. Reading `text` anew may give others."""
        return (*self.prompt_ids, *(token.id for token in self.tokens))

    @property
    def finish_reason(self) -> str | None:
        """As OpenAI's API has it: "stop" or "length", and besides "context" or "time"; None while it grows."""
        return "time" if self.timed_out else self.tokens[-1].finish_reason if self.tokens else None

    @property
    def strip(self) -> str:
        return "".join(self.lines)

    @property
    def stats(self) -> str:
        if not self.tokens and self.progress:
            return f"{self.progress}…"
        parts = [f"{len(self.tokens)} tokens", f"seed {self.params.seed}"]
        decode_s = self.seconds - self.time_to_first_token_s
        if decode_s > 0:
            parts.insert(1, f"{(len(self.tokens) - 1) / decode_s:.0f} tokens/s")
        if self.forced_tokens:
            parts.append("branched at token " + ", ".join(str(position + 1) for position in sorted(self.forced_tokens)))
        if self.interventions:
            parts.append("under " + ", ".join(map(str, self.interventions)))
        if self.timed_out:
            parts.append(f"stopped after {DEADLINE_S} seconds")
        elif self.finish_reason:
            parts.append(f"ended by {self.tokens[-1].ended_by}")
        return " · ".join(parts)


def generate(model, tokenizer, prompt, params: SamplingParams, forced_tokens=None, branches=None, **options):
    """`generate_batch` of one Generation, which it yields alone."""
    with closing(generate_batch(model, tokenizer, prompt, [params], forced_tokens, branches, **options)) as updates:
        for (generation,) in updates:
            yield generation


def generate_batch(
    model,
    tokenizer,
    prompt: str | list[dict],
    batch: list[SamplingParams],
    forced_tokens=None,
    branches=None,
    interventions=(),
    is_over: Callable[[], bool] = lambda: False,
    probe: Iterable[int] = (),
):
    """Yields the growing Generations of a prompt, text or the messages of a chat, one for each of the settings in `batch`: at
    their first token, then at most every REDRAW_S seconds, and at their end; before it where experts are read from their files.

    They end early once `is_over()`; `probe` are ids to record at every token, as `stream` has them. Raises gr.Error.
    """
    if not isinstance(prompt, str) and not is_chat(prompt):
        raise user_error(ValueError(f"prompt is {prompt!r:.60}; it must be text."))
    seeded = [p if p.seed is not None else replace(p, seed=random.randrange(2**31)) for p in batch]
    messages = prompt if is_chat(prompt) else ()
    start, last_update = time.monotonic(), -inf
    with user_errors():
        prompt = rendered(tokenizer, prompt)
        prompt_ids = encode_prompt(tokenizer, prompt, context_length(model), add_special_tokens=not messages)
    options = forced_tokens, branches, interventions, messages
    generations = [Generation(prompt, params, *options) for params in seeded]
    layers, depth = moe_layers(model), len(decoder_layers(model))
    experts = max((layer.num_experts for layer in layers.values()), default=0)
    head = head_line(layers, experts, prompt, prompt_ids, depth)
    for generation in generations:
        generation.checkpoint, generation.prompt_ids = model.name_or_path, prompt_ids
        generation.lines.append(head)
    forced_tokens = generations[0].forced_tokens
    steps = model_registry.stream_batch(model, tokenizer, prompt_ids, seeded, forced_tokens, interventions, probe)
    with user_errors(), closing(steps):
        first = []
        if getattr(model, "expert_cache", None):  # which takes as long as its files take to be read
            with closing(waiting(lambda: first.append(next(steps)))) as updates:
                for progress in updates:
                    for generation in generations:
                        generation.progress = progress
                    yield generations
        for tokens in chain(first, steps):
            seconds = time.monotonic() - start
            for generation, token in zip(generations, tokens):
                if token:
                    generation.add(token, seconds)
            if is_over() or all(generation.finish_reason for generation in generations):
                break
            if seconds - last_update > max(REDRAW_S, model_registry.num_active_requests() / MAX_UPDATES_PER_S):
                last_update = seconds
                yield generations
    yield generations


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
