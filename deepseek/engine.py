"""The decode loop: `stream` yields one TokenTrace a token, with everything that happened to it.

Our own loop, because transformers' `generate` takes no random generator, hides the stages, and cannot be stopped
between tokens from outside.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

from deepseek.decode import Decoder
from deepseek.model import DeepseekV3ForCausalLM, LatentCache
from deepseek.sampling import LONGEST_STOP, Context, SamplingParams, apply, entropy
from deepseek.text import TextStream, prompt_ids
from deepseek.trace import context_length, recorded_routing, strongest_first

TOP = 10  # candidates recorded: this many of the model's and of the sampler's first choices


@dataclass
class Candidate:
    """A token that could have come, with its probability after each stage; 0 once removed."""

    id: int
    text: str
    probabilities: list[float]  # raw, then one a stage
    removed_by: str | None  # the stage that removed it


@dataclass
class Stage:
    """One step of the sampler: whether the settings asked for it, whether it changed anything, who was left."""

    name: str
    active: bool
    changed: bool
    survivors: int


@dataclass
class TokenTrace:
    """One generated token. The texts of all tokens of a stream join to its whole text."""

    id: int
    text: str
    position: int  # in prompt and output together, from 0
    probability: float  # under the model
    sampler_probability: float  # after all stages: the chance with which it was drawn
    rank: int  # under the model, 1 is the most likely
    entropy: float  # of the model's distribution, nats
    temperature: float  # the one used; 0 is greedy
    stages: list[Stage]
    candidates: list[Candidate]  # the sampler's first choices, then the model's others; empty without `record`
    experts: dict[int, list[tuple[int, float]]]  # MoE layer: (expert, weight) this token was sent to, strongest first
    milliseconds: float
    finish: str | None = None  # on the last token: "end of text", "stop string", "length" or "context full"

    def as_dict(self) -> dict:
        """As JSON has it: layers become texts."""
        return {**asdict(self), "experts": {str(layer): chosen for layer, chosen in self.experts.items()}}


def stream(
    model,
    tokenizer,
    prompt,
    params: SamplingParams | None = None,
    force: Mapping[int, int] | None = None,
    record: bool = True,
) -> Iterator[TokenTrace]:
    """Continues `prompt` (text or ids) on any transformers causal language model, a TokenTrace at a time.

    The same seed, settings and checkpoint give the same tokens, whatever else runs: a draw depends on the seed, the
    position and the text before it alone. So `force`, ids by their place in the output from 0, puts single tokens in
    another's place and leaves the text before them as it was. Closing the generator ends the work. Without `record`
    candidates, stages and the last token's experts stay empty.
    Raises ValueError for a prompt that is empty or too long, an id that is not in the vocabulary, and damaged weights.
    """
    params, force = params or SamplingParams(), force or {}
    for token in force.values():
        if not 0 <= token < model.config.get_text_config().vocab_size:
            raise ValueError(
                f"force holds id {token}; it must be in the vocabulary of {model.config.vocab_size:,} tokens."
            )
    limit = context_length(model)
    ids = prompt_ids(tokenizer, prompt, limit)
    generator = torch.Generator()
    seed = generator.seed() if params.seed is None else params.seed
    room = min(params.max_new_tokens, limit - len(ids)) if limit else params.max_new_tokens
    cache = decoder = None
    if isinstance(model, DeepseekV3ForCausalLM):
        cache, decoder = LatentCache(model.config, len(ids) + room), Decoder(model)
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or [])
    text, tail = TextStream(tokenizer), ""
    context = Context(ids, [])
    logits_V, cache, _ = _forward(model, ids, cache, None)
    while len(context.output) < room:
        began = time.perf_counter()
        position = len(ids) + len(context.output)
        generator.manual_seed((seed * 1_000_003 + position) % 2**63)
        forced = force.get(len(context.output))
        token, how = _draw(logits_V, params, context, generator, tokenizer, record, forced)
        context.output.append(token)
        chunk = text.push(token)
        tail = tail[-LONGEST_STOP:] + chunk
        finish = None
        if token in ends:
            finish = "end of text"
        elif any(stop in tail for stop in params.stop):
            finish = "stop string"
        elif len(context.output) == room:
            finish = "length" if room == params.max_new_tokens else "context full"
        experts = {}
        if record or not finish:
            logits_V, cache, experts = _forward(model, [token], cache, decoder)
        yield TokenTrace(
            id=token,
            text=chunk + text.end() if finish else chunk,
            position=position,
            experts=experts,
            milliseconds=(time.perf_counter() - began) * 1e3,
            finish=finish,
            **how,
        )
        if finish:
            return


@torch.inference_mode()
def _forward(model, ids: list[int], cache, decoder: Decoder | None):
    """Logits (vocabulary,) in float32 after the last of `ids`, the grown cache, and that token's experts by layer."""
    with recorded_routing(model) as record:
        if decoder:
            logits_V = decoder(ids[0], cache)
        else:
            tokens = torch.tensor([ids], device=model.device)
            output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits_V, cache = output.logits[0, -1].float(), output.past_key_values
    experts = {}
    for layer, (weights, indices, _) in record.items():
        weights, indices = strongest_first(weights[-1:], indices[-1:])
        experts[layer] = list(zip(indices[0].tolist(), weights[0].tolist()))
    return logits_V.cpu(), cache, experts


@torch.inference_mode()
def _draw(logits_V, params, context, generator, tokenizer, record: bool, forced: int | None):
    """Draws the next token; returns it and the fields of TokenTrace that tell how."""
    if logits_V.isnan().any():
        raise ValueError("the model's answer is not a number; its weights are damaged.")
    rows, names, active = [logits_V], ["raw"], [True]
    for name, was_active, after in apply(logits_V, params, context):
        names.append(name)
        active.append(was_active)
        rows.append(after)
    final = rows[-1].softmax(-1)
    token = _pick(final, generator) if forced is None else forced
    raw = logits_V.softmax(-1)
    stages, candidates = [], []
    if record:
        stages, candidates = _record(rows, names, active, token, tokenizer)
    return token, dict(
        probability=float(raw[token]),
        sampler_probability=float(final[token]),
        rank=int((logits_V > logits_V[token]).sum()) + 1,
        entropy=entropy(logits_V),
        temperature=context.temperature,
        stages=stages,
        candidates=candidates,
    )


def _pick(probabilities_V, generator) -> int:
    """A draw by one uniform number: where it falls on the cumulated probabilities.

    (torch.multinomial draws a number for each token, so that texts of one seed would share their unlikely tokens.)
    """
    total_V = probabilities_V.double().cumsum(0)
    uniform = torch.rand(1, dtype=torch.float64, generator=generator)
    return int(torch.searchsorted(total_V, uniform * total_V[-1], right=True))


def _record(rows, names, active, token: int, tokenizer) -> tuple[list[Stage], list[Candidate]]:
    """Stages and candidates from the logits before the first and after each stage."""
    top = min(TOP, len(rows[0]))
    ids = torch.cat([rows[-1].topk(top).indices, torch.tensor([token]), rows[0].topk(top).indices])
    ids = torch.tensor(list(dict.fromkeys(ids.tolist())))
    stages, columns, logits = [], [], []
    for before, after, name, was_active in zip([rows[0], *rows], rows, names, active):
        same = after is before and stages
        columns.append(columns[-1] if same else after.softmax(-1)[ids])
        logits.append(logits[-1] if same else after[ids])
        survivors = stages[-1].survivors if same else int(after.isfinite().sum())
        stages.append(Stage(name, was_active, not same and not torch.equal(before, after), survivors))
    table = torch.stack(columns, 1).tolist()
    gone = torch.stack(logits, 1).isneginf().tolist()
    candidates = []
    for candidate, probabilities, out in zip(ids.tolist(), table, gone):
        removed_by = names[out.index(True)] if True in out else None
        candidates.append(Candidate(candidate, tokenizer.decode([candidate]), probabilities, removed_by))
    candidates.sort(key=lambda c: (-c.probabilities[-1], -c.probabilities[0]))
    return stages[1:], candidates
