"""What tabs are built from: figures, controls, and views that follow the user's checkpoint."""

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field
from pathlib import Path

import gradio as gr

from deepseek.settings.schema import holds_several, item_type
from deepseek.ui.generation import MODEL_QUEUE, UNQUEUED
from deepseek.ui.server import model_registry

CSV_SCRIPT = (Path(__file__).parents[3] / "assets" / "figure.js").read_text("utf-8")


def figure(value, name: str, **options) -> gr.Plot:
    """A gr.Plot of `value`, with the id `name` and a button that downloads its data as `name`.csv.

    `options` are those of gr.Plot. The browser writes the file from the figure it shows. The style sheet hides the button of
    an empty plot.
    """
    with gr.Column(elem_classes="figure"):
        plot = gr.Plot(value, show_label=False, **{"elem_id": name, **options})
        button = gr.Button("CSV", size="sm", elem_classes="csv", elem_id=f"csv-{name}")
    button.click(None, plot, None, js=f"plot => ({CSV_SCRIPT})(plot, {json.dumps(name)})", **UNQUEUED)
    return plot


def text_box(text: str) -> tuple[gr.Textbox, gr.Button]:
    """A box with the text to trace, and its button."""
    box = gr.Textbox(text, label="text", info="the current sample, or any text of yours", lines=2, max_lines=6)
    return box, gr.Button("Trace", variant="primary")


def setting_control(field: Field, value, label: str, **options) -> gr.components.Component:
    """The control of a setting that settings.schema declares, with `value` in it; `options` are gradio's."""
    metadata = field.metadata
    options = dict(value=value, label=label, info=metadata["help"], **options)
    if metadata.get("slider"):
        low, high, step = metadata["slider"]
        return gr.Slider(low, high, step=step, **options)
    if metadata["choices"]:
        return gr.Dropdown(metadata["choices"], **options)
    if holds_several(field):
        options |= dict(value="\n".join(map(str, value)), info=f"{metadata['help']}; one per line")
        return gr.Textbox(lines=1, max_lines=4, **options)
    if item_type(field) is str:
        return gr.Textbox(max_lines=2, **options)
    if item_type(field) is bool:
        return gr.Checkbox(**options)
    return gr.Number(precision=0 if item_type(field) is int else None, **options)


def checkpoint_choice(path: str, current: str) -> dict:
    """The update of a dropdown of checkpoints to the user's, `path`, on a page built for `current`."""
    return gr.update(choices=list(dict.fromkeys([*model_registry.choices(current), path])), value=path)


def first_of(generator: Callable[..., Iterator]) -> Callable:
    """The function that returns what `generator` yields first."""

    @functools.wraps(generator)
    def first(*arguments):
        return next(generator(*arguments))

    return first


def connect_view(
    redraw: Callable,
    inputs: Sequence,
    outputs: Sequence,
    checkpoint: gr.State,
    requested: list,
    opened: list,
    num_watched: int = 0,
    fitted: Sequence = (),
    fit: Callable[..., list[dict]] = lambda model: [],
    is_drawn: bool = True,
    sub_tab: tuple[gr.State, str] | None = None,
    **options,
):
    """Redraws a view on the events `requested`, and if out of date on the events `opened`; returns both lists of listeners.

    `redraw(model, tokenizer, *values of inputs)` returns the values of `outputs`, or yields them as they grow. The view is out
    of date unless it shows the user's checkpoint and the present values of the first `num_watched` inputs; at first it shows
    nothing, or if `is_drawn` the page's own checkpoint. For another checkpoint `fit(model)` gives the properties (value,
    choices, maximum) of the inputs in `fitted`. A view in a sub-tab gives (State with the open sub-tab's name, its own name).
    `options` are those of a gradio event.
    """
    shows = (checkpoint.value, *(block.value for block in inputs[:num_watched])) if is_drawn else None
    drawn = gr.State(shows, time_to_live=3600)
    open_tab, name = sub_tab or (checkpoint, None)
    all_inputs, all_outputs = [checkpoint, *inputs], [*outputs, drawn]
    options = {**dict(api_visibility="private", show_progress="minimal"), **MODEL_QUEUE, **options}
    streams = inspect.isgeneratorfunction(redraw)

    # The page shows a redraw's gr.Progress only if some function has it as a default.
    def on_request(_progress=gr.Progress(), path="", *values):  # noqa: B008
        drawings = redraw(*model_registry.get_model(path), *values)
        for drawing in drawings if streams else [drawings]:
            yield [*drawing, (path, *values[:num_watched])]

    def on_open(open_name, drawn, path, *values):
        updates = [gr.skip() for _ in fitted]
        if drawn and tuple(drawn) == (path, *values[:num_watched]) or name is not None and open_name != name:
            yield [*(gr.skip() for _ in all_outputs), *updates]
            return
        if not drawn or path != drawn[0]:
            properties = fit(model_registry.get_model(path)[0])
            updates = [gr.update(**each) for each in properties]
            fitted_value = {inputs.index(block): each["value"] for block, each in zip(fitted, properties)}
            values = [fitted_value.get(index, value) for index, value in enumerate(values)]
        for drawing in on_request(None, path, *values):
            yield [*drawing, *updates]

    handlers = on_request, on_open
    if not streams:  # gradio sends twice what a generator yields last
        handlers = first_of(on_request), first_of(on_open)
    return (
        [event(handlers[0], all_inputs, all_outputs, **options) for event in requested],
        [event(handlers[1], [open_tab, drawn, *all_inputs], [*all_outputs, *fitted], **options) for event in opened],
    )
