"""A part of the page that follows the user's checkpoint: redrawn on request, and on opening its tab if it is out of date."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import gradio as gr

from deepseek.ui.generation import MODEL_QUEUE
from deepseek.ui.server import model_registry


def text_box(text: str) -> tuple[gr.Textbox, gr.Button]:
    """A box with the text to trace, and its button."""
    box = gr.Textbox(text, label="text", info="the current sample, or any text of yours", lines=2, max_lines=6)
    return box, gr.Button("Trace", variant="primary")


def checkpoint_choice(path: str, current: str) -> dict:
    """The update of a dropdown of checkpoints to the user's, `path`, on a page built for `current`."""
    return gr.update(choices=list(dict.fromkeys([*model_registry.choices(current), path])), value=path)


@dataclass
class View:
    """`redraw(model, tokenizer, *values of inputs)` yields the values of `outputs`.

    The view is out of date if it shows another checkpoint than the user's, or other values of the first `num_watched` inputs.
    For another checkpoint `fit(model)` gives the properties (value, choices, maximum) of the inputs in `fitted`.
    """

    redraw: Callable[..., Iterator]
    inputs: list
    outputs: list
    num_watched: int = 0
    fitted: list = field(default_factory=list)
    fit: Callable[..., list[dict]] = lambda model: []

    def connect(
        self, checkpoint: gr.State, requested: list, opened: list, drawn: tuple | None, sub_tab=None, **options
    ):
        """Redraws on the events `requested`, and if out of date on the events `opened`; returns both lists of listeners.

        `drawn` is what the view shows now: (checkpoint, *watched values), None for nothing. A view in a sub-tab gives
        `sub_tab`, (State with the open sub-tab's name, its own name). `options` are those of a gradio event.
        """
        drawn = gr.State(drawn, time_to_live=3600)
        open_tab, name = sub_tab or (checkpoint, None)
        inputs, outputs = [checkpoint, *self.inputs], [*self.outputs, drawn]
        options = {**dict(api_visibility="private", show_progress="minimal"), **MODEL_QUEUE, **options}

        # The page shows a redraw's gr.Progress only if some function has it as a default.
        def on_request(_progress=gr.Progress(), path="", *values):  # noqa: B008
            for shown in self.redraw(*model_registry.get_model(path), *values):
                yield [*shown, (path, *values[: self.num_watched])]

        def on_open(open_name, drawn, path, *values):
            now = (path, *values[: self.num_watched])
            updates = [gr.skip() for _ in self.fitted]
            if drawn and tuple(drawn) == now or name is not None and open_name != name:
                yield [*(gr.skip() for _ in outputs), *updates]
                return
            if not drawn or path != drawn[0]:
                properties = self.fit(model_registry.get_model(path)[0])
                updates = [gr.update(**each) for each in properties]
                fitted_value = {self.inputs.index(block): each["value"] for block, each in zip(self.fitted, properties)}
                values = [fitted_value.get(index, value) for index, value in enumerate(values)]
            for drawing in on_request(None, path, *values):
                yield [*drawing, *updates]

        return (
            [event(on_request, inputs, outputs, **options) for event in requested],
            [event(on_open, [open_tab, drawn, *inputs], [*outputs, *self.fitted], **options) for event in opened],
        )
