"""Why another word was not written: the panel that asks it of the selected token."""

from collections.abc import Iterable
from contextlib import closing

import gradio as gr

from deepseek.data.tokenizer import show_invisible
from deepseek.inference.token_trace import TokenTrace
from deepseek.inference.why_not import MAX_CHARACTERS, first_tokens, percent, why_not
from deepseek.ui.components.token_detail import script_table
from deepseek.ui.components.token_strip import script_json
from deepseek.ui.errors import user_errors
from deepseek.ui.server import model_registry

HEADERS = ["token", "after", "rank", "probability", ""]


def probed(generation, index: int, ids: Iterable[int]) -> TokenTrace:
    """The token at `index` of a Generation once more, with its record of the tokens `ids`.

    The tokens before it are forced, so that it has the same samplers, random numbers and state along the text. Raises
    ValueError.
    """
    model, tokenizer = model_registry.get_model(generation.checkpoint)
    forced = dict(enumerate(token.id for token in generation.tokens[: index + 1]))
    request = model, tokenizer, generation.prompt_ids, [generation.params], forced, generation.interventions
    with closing(model_registry.stream_batch(*request, probe=ids)) as tokens:
        for _ in range(index):
            next(tokens)
        return next(tokens)[0]


def rows(answers: Iterable[dict]) -> list[list[str]]:
    """The rows of HEADERS: of each answer one of the model and one of every active sampler that its token reached."""
    return [
        [show_invisible(answer["text"]), step["after"]]
        + ([f"{step['rank']:,}", percent(step["probability"]), ""] if step["rank"] else ["", "", "removed"])
        for answer in answers
        for step in answer["steps"]
    ]


@user_errors()
def answer(generation, word: str) -> tuple[str, str]:
    """(sentences, value of the table) on a word in place of the selected token. Raises gr.Error."""
    index = min(generation.selected, len(generation.tokens) - 1)
    _, tokenizer = model_registry.get_model(generation.checkpoint)
    ids = first_tokens(word, tokenizer)
    answers = why_not(probed(generation, index, ids), ids, is_forced=index in generation.forced_tokens)
    return f"Token {index + 1}. {' '.join(each['sentence'] for each in answers)}", script_json(rows(answers))


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
