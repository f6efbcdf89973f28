"""What the Experts, Attention and Layers tabs look at: the text just generated, or one of the reader's own."""

from collections.abc import Callable
from dataclasses import dataclass, field

import gradio as gr

from deepseek.interpret.routing_stats import MAX_CHARACTERS
from deepseek.interpret.trace import Trace
from deepseek.ui.errors import user_error
from deepseek.ui.generation import MODEL_QUEUE, UNQUEUED
from deepseek.ui.server import model_registry


@dataclass
class TextView:
    """The parts of a tab that shows a text: `redraw(model, tokenizer, text, *choices)` makes the values of `outputs`.

    `fit(model)` gives the updates of `choices`, less a State, when the model is another one.
    """

    box: gr.Textbox
    button: gr.Button
    redraw: Callable
    outputs: list
    choices: list = field(default_factory=list)
    fit: Callable | None = None


def look(model, tokenizer, text: str) -> Trace:
    """The trace of a text. Raises gr.Error with one sentence for a text that cannot be read."""
    try:
        if not isinstance(text, str):
            raise ValueError(f"text is {text!r:.60}; it must be text.")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"text has {len(text):,} characters; it must have at most {MAX_CHARACTERS:,}.")
        return model_registry.cached_trace(model, tokenizer, text)
    except ValueError as error:
        raise user_error(error) from error


def subject_box(text: str):
    """A box with the text to look at, and its button."""
    box = gr.Textbox(text, label="text", info="what was just generated, or any text of yours", lines=2, max_lines=6)
    return box, gr.Button("Look", variant="primary")


def connect(view: TextView, tab: gr.Tab, text: str, checkpoint: gr.State, generation: gr.State, ended: list) -> None:
    """Redraws the view when asked to, and on opening the tab if the reader's text or checkpoint is not the one last drawn.

    It shows `text` by the page's first checkpoint now; after each of the events `ended` its text is that of `generation`.
    """
    drawn = gr.State((checkpoint.value, text), time_to_live=3600)
    inputs, outputs = [checkpoint, view.box, *view.choices], [*view.outputs, drawn]
    fitted = [choice for choice in view.choices if view.fit and not isinstance(choice, gr.State)]
    options = dict(show_progress="minimal", api_visibility="private", **MODEL_QUEUE)

    def always(path, text, *choices):
        return [*view.redraw(*model_registry.get_model(path), text, *choices), (path, text)]

    def when_new(drawn, path, text, *choices):
        if (path, text) == tuple(drawn):
            return [gr.skip() for _ in [*outputs, *fitted]]
        updates = [gr.skip() for _ in fitted]
        if fitted and path != drawn[0]:
            updates = view.fit(model_registry.get_model(path)[0])
        values = [update.get("value", value) for update, value in zip(updates, choices)]
        return [*always(path, text, *values, *choices[len(values) :]), *updates]

    tab.select(when_new, [drawn, *inputs], [*outputs, *fitted], **options)
    view.button.click(always, inputs, outputs, **options)
    view.box.submit(always, inputs, outputs, **options)
    for choice in view.choices:
        events = (getattr(choice, name, None) for name in ("release", "submit", "input"))
        changed = next(filter(None, events), None)
        if changed:  # a State is only read
            changed(always, inputs, outputs, **options)
    for event in ended:
        event.then(lambda generation: generation.text, generation, view.box, **UNQUEUED)
