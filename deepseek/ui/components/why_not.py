"""Why another word was not written: its rank and probability after every sampler, and which one removed it."""

from collections.abc import Iterable
from contextlib import closing

import gradio as gr

from deepseek.inference.token_trace import Candidate, TokenTrace
from deepseek.ui.components.token_detail import script_table
from deepseek.ui.components.token_strip import script_json
from deepseek.ui.errors import user_errors
from deepseek.ui.plots.style import show_invisible
from deepseek.ui.server import model_registry

HEADERS = ["token", "after", "rank", "probability", ""]
MAX_CHARACTERS = 100


def first_tokens(word: str, tokenizer) -> list[int]:
    """The first token of the word after a space or as written, whichever takes fewer tokens; both if they take as many.

    Raises ValueError.
    """
    word = word if isinstance(word, str) else ""
    if not word.strip() or len(word) > MAX_CHARACTERS:
        raise ValueError(f"word is {word!r:.60}; it must be 1 to {MAX_CHARACTERS} characters.")
    texts = [word] if word[0].isspace() else [" " + word, word]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return list(dict.fromkeys(ids[0] for ids in encoded if ids and len(ids) == min(map(len, encoded))))


def percent(probability: float) -> str:
    """A probability in percent; a tiny one is not 0."""
    return f"{probability:.2%}" if probability >= 5e-5 else "under 0.01%"


def probed(generation, index: int, ids: Iterable[int]) -> TokenTrace:
    """The token at `index` of a Generation once more, with its record of the tokens `ids`.

    The tokens before it are forced, so that it has the same samplers, random numbers and state along the text. Raises
    ValueError.
    """
    model, tokenizer = model_registry.get_model(generation.checkpoint)
    forced = dict(enumerate(token.id for token in generation.tokens[: index + 1]))
    request = model, tokenizer, generation.prompt_ids, [generation.params], forced
    with closing(model_registry.stream_batch(*request, probe=ids)) as tokens:
        for _ in range(index):
            next(tokens)
        return next(tokens)[0]


def verdict(candidate: Candidate, token: TokenTrace, is_forced: bool) -> str:
    """One sentence on a probed token; `is_forced`: the user chose the token that was written."""
    name, rank = f"“{show_invisible(candidate.text)}”", candidate.ranks[0]
    model = f"number {rank:,} under the model with {percent(candidate.probabilities[0])}"
    if candidate.id == token.id:
        return (
            f"{name} is the token that was written: {model}, {percent(candidate.probabilities[-1])} after the sampler."
        )
    if candidate.removed_by:
        return f"{name} was {model}; {candidate.removed_by} removed it."
    left = f"number {candidate.ranks[-1]:,} with {percent(candidate.probabilities[-1])} after the sampler"
    chosen = f"{'you chose' if is_forced else 'the draw fell on'} “{show_invisible(token.text)}”"
    return f"{name} was {model}, {left}: it stayed in, and {chosen}."


def rows(candidates: list[Candidate], token: TokenTrace) -> list[list]:
    """The rows of HEADERS: for each candidate one of the model and one of every active sampler that it reached."""
    table = []
    stages = [("model", 0), *((stage.name, i) for i, stage in enumerate(token.stages, 1) if stage.active)]
    for candidate in candidates:
        for name, index in stages:
            row = [show_invisible(candidate.text), name]
            if candidate.removed_by == name:
                table.append([*row, "", "", "removed"])
                break
            table.append([*row, f"{candidate.ranks[index]:,}", percent(candidate.probabilities[index]), ""])
    return table


@user_errors()
def answer(generation, word: str) -> tuple[str, str]:
    """(sentences, value of the table) on a word in place of the selected token. Raises gr.Error."""
    index = min(generation.selected, len(generation.tokens) - 1)
    _, tokenizer = model_registry.get_model(generation.checkpoint)
    ids = first_tokens(word, tokenizer)
    token = probed(generation, index, ids)
    found = {candidate.id: candidate for candidate in token.candidates}
    candidates, is_forced = [found[each] for each in ids], index in generation.forced_tokens
    sentences = " ".join(verdict(candidate, token, is_forced) for candidate in candidates)
    return f"Token {index + 1}. {sentences}", script_json(rows(candidates, token))


def build() -> tuple[gr.Textbox, gr.Button, list[gr.components.Component]]:
    """Draws the panel; returns the word's box, the button, and the outputs of `answer`."""
    with gr.Accordion("why not this word?", open=False):
        with gr.Row():
            info = "a word in place of the selected token; its first token is looked up"
            word = gr.Textbox(label="word", info=info, max_length=MAX_CHARACTERS, scale=3, elem_id="why-not-word")
            ask = gr.Button("Ask", scale=1, min_width=80)
        sentence = gr.Textbox(label="answer", interactive=False, lines=2, max_lines=6, elem_id="why-not")
        label = "the word's tokens after every sampler"
        table = script_table("table.js", "candidates long", label, HEADERS, "[]", "why-not-table")
    return word, ask, [sentence, table]
