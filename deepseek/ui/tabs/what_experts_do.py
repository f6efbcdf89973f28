"""The tab What experts do: every section of `expert_sections` on the reader's kinds of text, beside chance, and the report."""

import tempfile
from functools import partial
from pathlib import Path

import gradio as gr

from deepseek.interpret.chance import CHANCE
from deepseek.interpret.moe_layers import why_no_experts
from deepseek.ui.components import sections
from deepseek.ui.components.expert_sections import SECTIONS
from deepseek.ui.components.kinds import MAX_NAME_CHARACTERS, named_kinds, stopped_in_time, trace_kinds
from deepseek.ui.components.report_page import TABLE, Subject, report_html
from deepseek.ui.components.sections import Section
from deepseek.ui.components.shared_outputs import SharedOutputs
from deepseek.ui.components.token_detail import ASSETS
from deepseek.ui.components.token_strip import script_json
from deepseek.ui.components.traces import EXAMPLE_TEXTS
from deepseek.ui.components.view import connect_view, figure, tab_id, text_lines
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import MODEL_QUEUE, QUICK_QUEUE
from deepseek.ui.server import model_registry
from deepseek.ui.tabs.long_text import layer_choices, read_file

NO_OTHER = "none"


class Stopped(Exception):
    """The user has pressed Stop, or asked for something else."""


def progress_of(turn):
    """A function that shows (fraction done, what is done); raises Stopped once `turn` is over, and ValueError when too late."""
    progress = gr.Progress()

    def step(fraction, what):
        if turn.is_over():
            raise Stopped
        progress(fraction, desc=what)

    return stopped_in_time(step)


def middle_layer(model) -> dict:
    """`layer_choices`, at first the layer in the middle: the last one has no next."""
    choices = layer_choices(model)
    layers = [layer for _, layer in choices["choices"]]
    return choices | {"value": layers[len(layers) // 2] if layers else None}


def draw_section(section: Section, model, tokenizer, texts: dict[str, str], layer: int | None, step) -> list:
    """[lines, figure by layer, figures of one layer, value of the table] of a section. Raises gr.Error."""
    corpus = trace_kinds(model, tokenizer, texts, partial(step, what="reading the texts"))
    if not corpus.routing:
        return [why_no_experts(model), None, *(None for _ in section.headings), ""]
    with user_errors():
        numbers = sections.measured(section, corpus, partial(step, what="comparing with chance"))
    index = corpus.layers.index(layer) if layer in corpus.layers else -1
    detail = section.detail(corpus, index % len(corpus.layers))
    lines = "\n".join(sections.summary(section, numbers))
    table = script_json({"headers": detail.headers, "rows": detail.rows})
    return [lines, sections.overview(section, numbers), *detail.figures, table]


def build(model, checkpoint: gr.State, tab: gr.Tab) -> None:
    """Draws the tab; each section is computed when it is first opened, and again for other texts or another checkpoint."""
    gr.Markdown(
        "Do experts specialize, and is it more than chance? The figures of the papers, on this model and on texts of yours."
        f"\n\n{CHANCE}"
    )
    names, texts = _build_texts()
    with gr.Row():
        measure = gr.Button("Measure", variant="primary", min_width=120)
        stop = gr.Button("Stop", min_width=120)
    boxes = [*names, *texts]
    with gr.Tabs():
        for section in SECTIONS:
            with gr.Tab(section.name, elem_id=tab_id(section.name)) as this:
                opened = [tab.select, this.select, measure.click]
                view = _build_section(section, model, boxes, checkpoint, opened, this)
                view.stop_on(stop.click)
        with gr.Tab("Report"):
            _build_report(boxes, checkpoint, stop)


def _build_texts() -> tuple[list[gr.Textbox], list[gr.Textbox]]:
    names, texts = [], []
    with gr.Accordion("kinds of text: a story, an encyclopedia entry and Python code, or texts of yours", open=False):
        with gr.Row():
            for number, (kind, text) in enumerate(EXAMPLE_TEXTS.items(), 1):
                with gr.Column(min_width=240):
                    names.append(gr.Textbox(kind, label=f"name of kind {number}", max_length=MAX_NAME_CHARACTERS))
                    texts.append(gr.Textbox(text, label=f"text of kind {number}", lines=4, max_lines=8))
                    upload = gr.UploadButton("Open a text file", file_types=["text"], size="sm")
                    upload.upload(_open_file, upload, [names[-1], texts[-1]], **QUICK_QUEUE)
        reset = gr.Button("Back to the examples", size="sm")
    reset.click(lambda: [*EXAMPLE_TEXTS, *EXAMPLE_TEXTS.values()], None, [*names, *texts], **QUICK_QUEUE)
    return names, texts


def _open_file(file: str) -> tuple[str, str]:
    return Path(file).stem[:MAX_NAME_CHARACTERS], read_file(file)


def _build_section(
    section: Section, model, boxes: list, checkpoint: gr.State, opened: list, tab: gr.Tab
) -> SharedOutputs:
    id, layers = f"experts-{section.name.lower().replace(' ', '-')}", middle_layer(model)
    gr.Markdown(f"### {section.title}\n{section.words}")
    with gr.Column(elem_classes="verdicts"):
        lines = text_lines("")
    plot = figure(None, id, elem_classes="wide")
    layer = gr.Dropdown(**layers, label="layer")
    plots = []
    for number, heading in enumerate(section.headings, 1):
        gr.Markdown(f"#### {heading}")
        plots.append(figure(None, f"{id}-{number}", elem_classes=["wide", "inked"]))
    with gr.Accordion(
        f"{'every number' if plots else 'the numbers'} of this layer, to search and sort", open=not plots
    ):
        code = (ASSETS / "sorted_table.js").read_text("utf-8")
        table = gr.HTML(html_template=TABLE, js_on_load=code, value="", elem_id=f"{id}-table")

    def redraw(turn, model, tokenizer, *values):
        *values, layer = values
        half, step = len(values) // 2, progress_of(turn)
        try:
            yield draw_section(section, model, tokenizer, named_kinds(values[:half], values[half:]), layer, step)
        except Stopped:
            return

    fitting = dict(fitted=[layer], fit=lambda model: [middle_layer(model)], is_drawn=False, tab=tab)
    inputs, outputs = [*boxes, layer], [lines, plot, *plots, table]
    view = connect_view(redraw, inputs, outputs, checkpoint, [layer.input], opened, num_watched=len(boxes), **fitting)
    return view


def _build_report(boxes: list, checkpoint: gr.State, stop: gr.Button) -> None:
    gr.Markdown(
        "### Report\nEvery section, importance and steering in one HTML file that opens without the network: figures with their "
        "data, settings, hashes and versions. With a second checkpoint it holds both and their differences. The same from the "
        "command line: "
        "`python -m deepseek.report CHECKPOINT --texts FILES --out report.html`."
    )
    current = checkpoint.value
    choices = [(NO_OTHER, NO_OTHER), *((path, path) for path in model_registry.choices(current))]
    other = gr.Dropdown(choices, value=NO_OTHER, label="beside", info="a second checkpoint", allow_custom_value=True)
    make = gr.Button("Make the report", variant="primary")
    note = text_lines("")
    file = gr.File(label="the report", visible=False, elem_id="report-file")

    def make_report(turn, path, other, *values):
        half, step = len(values) // 2, progress_of(turn)
        texts = named_kinds(values[:half], values[half:])
        with user_errors():
            opened = [model_registry.open_model(path)]
            opened += [model_registry.open_requested(other, current)] if other not in (NO_OTHER, None, "") else []
        try:
            read = partial(step, what="reading the texts")
            subjects = [
                Subject(model, tokenizer, texts, trace_kinds(model, tokenizer, texts, read))
                for model, tokenizer in opened
            ]
            with user_errors():
                report = report_html(subjects, step)
        except Stopped:
            return
        target = Path(tempfile.mkdtemp(prefix="report-")) / "report.html"
        target.write_text(report, "utf-8")
        yield f"{len(report.encode()) / 1e6:.1f} MB", gr.update(value=str(target), visible=True)

    options = dict(show_progress="minimal", show_progress_on=[note], **MODEL_QUEUE)
    shared = SharedOutputs([note, file], **options)
    shared.on(make.click, make_report, [checkpoint, other, *boxes])
    shared.stop_on(stop.click)
