"""What the Experts and Attention tabs look at: the text just generated, or one of the reader's own."""

from collections.abc import Callable
from dataclasses import dataclass, field

import gradio as gr

from deepseek.trace import Trace, trace
from deepseek.ui.controls import QUIET, refusal
from deepseek.ui.playground import MODEL


@dataclass
class View:
    """The parts of a tab that shows a text: `redraw(text, *choices)` makes the values of `outputs`."""

    box: gr.Textbox
    button: gr.Button
    redraw: Callable
    outputs: list
    choices: list = field(default_factory=list)


def look(model, tokenizer, text: str) -> Trace:
    """The trace of a text. Raises gr.Error with one sentence for a text that cannot be read."""
    try:
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r:.60}; it must be text.")
        return trace(model, tokenizer, text)
    except ValueError as error:
        raise refusal(error) from error


def subject_box(text: str):
    """A box with the text to look at, and its button."""
    box = gr.Textbox(text, label="text", info="what was just generated, or any text of yours", lines=2, max_lines=6)
    return box, gr.Button("Look", variant="primary")


def connect(view: View, tab: gr.Tab, text: str, generation: gr.State, ended: list) -> None:
    """Redraws the view when asked to, and on opening the tab if its text is another one than the `text` last drawn.

    After each of the events `ended` the view's text is that of the reader's `generation`.
    """
    drawn = gr.State(text, time_to_live=3600)
    inputs, outputs = [view.box, *view.choices], [*view.outputs, drawn]
    options = dict(show_progress="minimal", api_visibility="private", **MODEL)

    def always(text, *choices):
        return [*view.redraw(text, *choices), text]

    def when_new(drawn, text, *choices):
        return [gr.skip() for _ in outputs] if text == drawn else always(text, *choices)

    tab.select(when_new, [drawn, *inputs], outputs, **options)
    view.button.click(always, inputs, outputs, **options)
    view.box.submit(always, inputs, outputs, **options)
    for choice in view.choices:
        choice.release(always, inputs, outputs, **options)
    for event in ended:
        event.then(lambda generation: generation.text, generation, view.box, **QUIET)
