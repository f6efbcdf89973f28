"""The Walk tab: one token's way through the whole model in one picture."""

import gradio as gr

from deepseek.interpret.walk import matrix_row
from deepseek.interpret.what_if import what_if
from deepseek.ui.components.shared_outputs import SharedOutputs
from deepseek.ui.components.token_strip import event_int
from deepseek.ui.components.traces import as_sampled, trace_text
from deepseek.ui.components.view import connect_view, sample_watch, text_box
from deepseek.ui.components.walk_picture import answer_value, answers, picture, picture_value
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import MODEL_QUEUE, QUICK_QUEUE
from deepseek.ui.server import model_registry


def build(generation: gr.State, checkpoint: gr.State, tab: gr.Tab) -> tuple[gr.Textbox, gr.HTML]:
    """Draws the tab for the user's `generation`; returns the box of the text and its `sample_watch`.

    The picture is drawn when the tab is first opened, and while it is open it follows the page's selected token
    (assets/selection.js), whose position in the text's ids, prompt and output, a hidden component holds.
    """
    gr.Markdown("Follow one token through the whole model: what every layer reads, adds, and would predict by then.")
    with gr.Accordion("the text", open=False):
        box, button = text_box(generation.value.text)
    position = gr.Number(
        len(generation.value.prompt_ids),
        precision=0,
        minimum=0,
        label="position",
        elem_id="walk-position",
        visible="hidden",
    )
    drawing, watch = picture(), sample_watch()
    answer = answers()
    traced = gr.State(
        None, time_to_live=3600
    )  # the text drawn, as ids where they are known, and whose checkpoint drew it

    def redraw(model, tokenizer, text, position, generation):
        text = as_sampled(text, generation, model)
        trace = trace_text(model, tokenizer, text)
        return [picture_value(trace, int(position), generation), (text, model.name_or_path)]

    view = connect_view(
        redraw,
        [box, position, generation],
        [drawing, traced],
        checkpoint,
        [button.click, box.submit],
        [tab.select, position.change, watch.edit],
        num_watched=2,
        is_drawn=False,
        tab=tab,
        show_progress="hidden",
    )

    def select(event: gr.EventData):
        index = event_int(event, "index")
        return gr.skip() if index is None or index < 0 else index

    SharedOutputs([position]).add(drawing.select, select, [], position, **QUICK_QUEUE)

    def reply(traced, event: gr.EventData, compute):
        """The answer to a request of the picture: what `compute` says of the trace that is drawn. Raises gr.Error."""
        ask = event_int(event, "ask")
        if ask is None or traced is None:
            return gr.skip()
        model, tokenizer = model_registry.get_model(traced[1])
        trace = trace_text(model, tokenizer, traced[0])
        with user_errors():
            return answer_value(ask, **compute(trace))

    def show_row(traced, event: gr.EventData):
        of, numbers = getattr(event, "of", None), (event_int(event, name) for name in ("index", "layer"))
        return reply(traced, event, lambda trace: {"row": matrix_row(trace.model, of, *numbers)})

    def show_what_if(traced, event: gr.EventData):
        numbers = [event_int(event, name) for name in ("position", "layer", "expert")]
        action = getattr(event, "action", None)
        return reply(traced, event, lambda trace: {"what_if": what_if(trace, *numbers, action)})

    for event, function in ((drawing.row, show_row), (drawing.what_if, show_what_if)):
        view.add(event, function, [traced], answer, **MODEL_QUEUE)
    return box, watch
