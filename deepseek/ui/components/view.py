"""What tabs are built from: figures, controls, and views that follow the user's checkpoint."""

import functools
import inspect
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field
from pathlib import Path

import gradio as gr

from deepseek.settings.schema import holds_several, item_type
from deepseek.ui.components.shared_outputs import SharedOutputs
from deepseek.ui.generation import MODEL_QUEUE, QUICK_QUEUE
from deepseek.ui.server import model_registry

CSV_SCRIPT = (Path(__file__).parents[3] / "assets" / "figure.js").read_text("utf-8")

DRAW_LINES = """
const lines = element.querySelector('.lines'), draw = () => { lines.textContent = props.value || ''; };
watch('value', draw);
draw();
"""
IS_OPEN_JS = """async (turns, time, open, ...values) => {
    time = performance.now();
    await new Promise(drawn => setTimeout(drawn));  // the event of a tab that opens comes before it is shown
    return [turns, time, document.querySelector('%s')?.checkVisibility() ?? false, ...values];
}"""
EDITED_JS = """
const tab = element.closest('[role=tabpanel]');
watch('value', () => { if (tab.checkVisibility()) trigger('edit'); });
"""


def tab_id(name: str) -> str:
    """The id of a tab's panel in the page."""
    return f"{name.lower().replace(' ', '-')}-tab"


def figure(value, name: str, **options) -> gr.Plot:
    """A gr.Plot of `value`, with the id `name` and a button that downloads its data as `name`.csv.

    `options` are those of gr.Plot. The browser writes the file from the figure it shows. The style sheet hides the button of
    an empty plot.
    """
    with gr.Column(elem_classes="figure"):
        plot = gr.Plot(value, show_label=False, **{"elem_id": name, **options})
        button = gr.Button("CSV", size="sm", elem_classes="csv", elem_id=f"csv-{name}")
    button.click(None, plot, None, js=f"plot => ({CSV_SCRIPT})(plot, {json.dumps(name)})", **QUICK_QUEUE)
    return plot


def changed(shown: dict, panel: str, content) -> bool:
    """Whether `panel` does not show `content` yet; notes in `shown` that it does now.

    `shown` ({panel: checksum}) lies in the page and travels with every poll. Were it kept here, an answer that is
    overtaken by another would leave its panel out of date for good.
    """
    before, shown[panel] = shown.get(panel), zlib.crc32(repr(content).encode())
    return before != shown[panel]


def text_lines(value: str) -> gr.HTML:
    """Lines that are shown as text, whatever they hold."""
    template = '<div class="lines" aria-live="polite"></div>'
    return gr.HTML(html_template=template, js_on_load=DRAW_LINES, value=value, min_width=320)


def text_box(text: str) -> tuple[gr.Textbox, gr.Button]:
    """A box with the text to trace, and its button."""
    info = "the current sample, or any text of yours, which stays; empty it to follow the samples again"
    with gr.Row():
        box = gr.Textbox(text, label="text", info=info, lines=2, max_lines=6, scale=1, min_width=240)
        return box, gr.Button("Trace", variant="primary", min_width=100)


def sample_watch() -> gr.HTML:
    """A hidden element whose value changes with the user's sample and checkpoint; `edit` is its event if its tab is open then.

    A tab that is opened while a text grows has drawn the text before.
    """
    return gr.HTML(html_template="<div></div>", js_on_load=EDITED_JS, value="", visible="hidden")


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


def on_pick(
    dropdown: gr.Dropdown, function: Callable, inputs: Sequence, outputs: Sequence, js: str = "(...values) => values"
) -> None:
    """Has `function(*inputs)`, the last of which is the `dropdown`, answer once an option is picked.

    gradio's input event also comes when a dropdown is only left, and after a choice a second time: what the user had set by
    then would be overwritten. `js` is a function of the page that the inputs go through first.
    """

    def respond(*values):
        return gr.skip() if values[-1] is None else function(*values)

    js = f"(...values) => {{ values = ({js})(...values); return [...values.slice(0, -1), picked() ? values.at(-1) : null] }}"
    dropdown.input(respond, inputs, outputs, js=js, trigger_mode="multiple", **QUICK_QUEUE)


def checkpoints_offered(path: str, current: str) -> dict:
    """The update of what a dropdown of checkpoints offers to a user of `path`, on a page built for `current`.

    The user's own is always among them: the list may be open, and gradio 6.31 raises an error where an open list gets shorter.
    """
    return gr.update(choices=list(dict.fromkeys([*model_registry.choices(current), path])))


def checkpoint_choice(path: str, current: str) -> dict:
    """`checkpoints_offered`, with the user's chosen."""
    return {**checkpoints_offered(path, current), "value": path}


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
    tab: gr.Tab | None = None,
    **options,
) -> SharedOutputs:
    """Redraws a view on the events `requested`, and if out of date on the events `opened`.

    Returns the view's SharedOutputs. `redraw(model, tokenizer, *values of inputs)` returns the values of `outputs`, or
    `redraw(turn, model, ...)` yields them as they grow, until `turn.is_over()`. The view is out of date unless it shows the
    user's checkpoint and the present values of the first `num_watched` inputs; at first it shows nothing, or if `is_drawn` the
    page's own checkpoint. For another checkpoint `fit(model)` gives the properties (value, choices, maximum) of the inputs in
    `fitted`, also where a request overtakes the event that opened the view. With a `tab`, which has an id, the events `opened`
    redraw it only if that tab is open. `options` are those of a gradio event.
    """
    shows = (checkpoint.value, *(block.value for block in inputs[:num_watched])) if is_drawn else None
    drawn = gr.State(shows, time_to_live=3600)
    all_inputs = [checkpoint, *inputs]
    streams = inspect.isgeneratorfunction(redraw)
    options = dict(show_progress="minimal", show_progress_on=list(outputs), **MODEL_QUEUE) | options
    view = SharedOutputs([*outputs, drawn, *fitted], **options)

    def draw(turn, drawn, path, values):
        opened = model_registry.get_model(path)
        updates = [gr.skip() for _ in fitted]
        fitted_to = drawn[0] if drawn else checkpoint.value if drawn is None else None  # None: an Expired state
        if path != fitted_to:  # the page's controls are still those of another checkpoint
            properties = fit(opened[0])
            updates = [gr.update(**each) for each in properties]
            fitted_value = {inputs.index(block): each["value"] for block, each in zip(fitted, properties)}
            values = [fitted_value.get(index, value) for index, value in enumerate(values)]
        drawings = redraw(turn, *opened, *values) if streams else [redraw(*opened, *values)]
        for drawing in drawings:
            yield [*drawing, (path, *values[:num_watched]), *updates]

    # The page shows a redraw's gr.Progress only if some function has it as a default.
    def on_request(turn, _progress=gr.Progress(), drawn=None, path="", *values):  # noqa: B008
        yield from draw(turn, drawn, path, values)

    def on_open(turn, is_open, drawn, path, *values):
        if not is_open or drawn and tuple(drawn) == (path, *values[:num_watched]):
            yield gr.skip()
            return
        yield from draw(turn, drawn, path, values)

    handlers = (on_request, on_open) if streams else (first_of(on_request), first_of(on_open))
    view.on(requested, handlers[0], [drawn, *all_inputs])
    is_open, js = gr.Checkbox(True, label="is open", visible=False), IS_OPEN_JS % (f"#{tab.elem_id}" if tab else "body")
    view.on(opened, handlers[1], [is_open, drawn, *all_inputs], js=js)
    return view
