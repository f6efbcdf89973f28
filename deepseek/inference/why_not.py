"""Why another word was not written: its rank and probability after every sampler, and which one removed it.

A word is probed by its first token: `stream` with `probe=first_tokens(word, tokenizer)` records what the samplers did to it.
"""

from collections.abc import Iterable

from deepseek.data.tokenizer import show_invisible
from deepseek.inference.token_trace import Candidate, TokenTrace

MAX_CHARACTERS = 100


def first_tokens(word: str, tokenizer) -> list[int]:
    """The first token of the word after a space or as written, whichever takes fewer tokens; both if they take as many.

    Raises ValueError.
    """
    if not isinstance(word, str) or not word.strip() or len(word) > MAX_CHARACTERS:
        raise ValueError(f"why_not is {word!r:.60}; it must be a word of 1 to {MAX_CHARACTERS} characters.")
    word = word.encode("utf-8", "replace").decode()  # a lone surrogate is no character
    texts = [word] if word[0].isspace() else [" " + word, word]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return list(dict.fromkeys(ids[0] for ids in encoded if ids and len(ids) == min(map(len, encoded))))


def why_not(token: TokenTrace, ids: Iterable[int], is_forced: bool = False) -> list[dict]:
    """What became of each of the probed `ids` at `token`, in JSON's types; `is_forced`: the user chose the token itself.

    {"id", "text", "removed_by" (a sampler, or None), "steps": [{"after" ("model" or a sampler), "rank", "probability"}] of
    the model and every active sampler up to the one that removed it, with rank and probability 0, "sentence"}.
    """
    candidates = {candidate.id: candidate for candidate in token.candidates}
    return [
        {
            "id": id,
            "text": candidates[id].text,
            "removed_by": candidates[id].removed_by,
            "steps": _steps(candidates[id], token),
            "sentence": _sentence(candidates[id], token, is_forced),
        }
        for id in ids
    ]


def percent(probability: float) -> str:
    """A probability in percent; a tiny one is not 0."""
    return f"{probability:.2%}" if probability >= 5e-5 else "under 0.01%"


def chain(answer: dict) -> str:
    """An answer of `why_not` in one line: rank and probability after each sampler."""
    words = [
        f"{step['after']} {step['rank']:,} ({percent(step['probability'])})" if step["rank"] else f"{step['after']} ✕"
        for step in answer["steps"]
    ]
    return f"“{show_invisible(answer['text'])}”: {' → '.join(words)}"


def _steps(candidate: Candidate, token: TokenTrace) -> list[dict]:
    active = [("model", 0), *((stage.name, index) for index, stage in enumerate(token.stages, 1) if stage.active)]
    if candidate.removed_by:
        active = active[: [name for name, _ in active].index(candidate.removed_by) + 1]
    ranks, probabilities = candidate.ranks, candidate.probabilities
    return [dict(after=name, rank=ranks[index], probability=probabilities[index]) for name, index in active]


def _sentence(candidate: Candidate, token: TokenTrace, is_forced: bool) -> str:
    name, rank = f"“{show_invisible(candidate.text)}”", candidate.ranks[0]
    model = f"number {rank:,} under the model with {percent(candidate.probabilities[0])}"
    if candidate.id == token.id:
        written = f"{name} is the token that was written: {model}"
        if candidate.removed_by:
            return f"{written}; {candidate.removed_by} removed it, and you chose it."
        return f"{written}, {percent(candidate.probabilities[-1])} after the sampler."
    if candidate.removed_by:
        return f"{name} was {model}; {candidate.removed_by} removed it."
    left = f"number {candidate.ranks[-1]:,} with {percent(candidate.probabilities[-1])} after the sampler"
    chosen = f"{'you chose' if is_forced else 'the draw fell on'} “{show_invisible(token.text)}”"
    return f"{name} was {model}, {left}: it stayed in, and {chosen}."
