"""One prompt under several values of a setting, decoded as one batch, and where the outputs part.

All have one seed, so what differs between them is the setting's doing. With the seed itself as the setting they are samples
of one distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from deepseek.inference.decode_model import DecodeModel
from deepseek.inference.engine import stream_batch
from deepseek.inference.sampling import SamplingParams
from deepseek.inference.token_trace import TokenTrace
from deepseek.settings.schema import holds_several, item_type

NUM_VALUES = 8
SETTINGS = {f.name: f for f in fields(SamplingParams) if item_type(f) in (int, float) and not holds_several(f)}


def sweep_params(params: SamplingParams, name: str, values: Sequence) -> list[SamplingParams]:
    """`params` with the setting `name` at each of `values`. Two numbers stand for NUM_VALUES evenly spaced ones.

    Raises ValueError naming the setting or the value that is wrong.
    """
    if not isinstance(name, str) or name not in SETTINGS:
        raise ValueError(f"setting is {name!r:.60}; it must be one of {', '.join(SETTINGS)}.")
    if not isinstance(values, (list, tuple)) or not 2 <= len(values) <= NUM_VALUES or None in values:
        raise ValueError(f"values are {values!r:.60}; they must be the ends of a range, or 3 to {NUM_VALUES} numbers.")
    swept = [replace(params, **{name: value}) for value in values]
    if len(swept) > 2:
        return swept
    first, last = (getattr(each, name) for each in swept)
    if first == last:
        raise ValueError(f"values are {values!r:.60}; the ends of a range must differ.")
    return [replace(params, **{name: value}) for value in _evenly_spaced(first, last, item_type(SETTINGS[name]) is int)]


def _evenly_spaced(first, last, whole: bool) -> list:
    """NUM_VALUES values from first to last, fewer if there are fewer whole ones between them."""
    steps = NUM_VALUES - 1
    if whole:  # in integers: a seed may have more digits than a float
        return list(dict.fromkeys(first + (2 * (last - first) * i + steps) // (2 * steps) for i in range(NUM_VALUES)))
    return [round(first + (last - first) * i / steps, 6) for i in range(NUM_VALUES)]


def sample_batch(
    model, tokenizer, prompt, batch: Sequence[SamplingParams], decode_model: DecodeModel | None = None
) -> list[list[TokenTrace]]:
    """The outputs of one prompt, one for each of the settings in `batch`. Raises ValueError as `stream` does."""
    outputs = [[] for _ in batch]
    for tokens in stream_batch(model, tokenizer, prompt, batch, record=False, decode_model=decode_model):
        for output, token in zip(outputs, tokens):
            if token:
                output.append(token)
    return outputs


@dataclass(frozen=True)
class SharedTokens:
    """The tokens that several outputs share from a position on, and how they go on where they part."""

    samples: list[int]  # indices of the outputs
    position: int  # of the first token, in the output from 0
    tokens: list[TokenTrace]  # none where the outputs part at once, or where one ends
    children: list["SharedTokens"]  # by the token that follows


def token_tree(outputs: Sequence[Sequence[TokenTrace]]) -> SharedTokens:
    """The prefix tree of outputs of one prompt: each node's children begin with the first tokens at which they part."""

    def grow(samples: list[int], start: int) -> SharedTokens:
        end, tokens = start, outputs[samples[0]]
        while len({outputs[sample][end].id if end < len(outputs[sample]) else None for sample in samples}) == 1:
            if end == len(tokens):  # all end here
                return SharedTokens(samples, start, list(tokens[start:]), [])
            end += 1
        groups = {}
        for sample in samples:
            following = outputs[sample][end].id if end < len(outputs[sample]) else None
            groups.setdefault(following, []).append(sample)
        return SharedTokens(samples, start, list(tokens[start:end]), [grow(group, end) for group in groups.values()])

    return grow(list(range(len(outputs))), 0)
