"""The report: one HTML file with the figures of every section and part of one checkpoint, or of two side by side; it needs no
network."""

import html
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tomllib import loads
from typing import NamedTuple

from deepseek.checkpoints.loading import fingerprint
from deepseek.interpret.chance import CHANCE, NUM_PERMUTATIONS, SIGNIFICANT
from deepseek.interpret.corpus import Corpus
from deepseek.interpret.moe_layers import moe_layers, why_no_experts
from deepseek.ui.components import report_parts, sections
from deepseek.ui.components.expert_sections import SECTIONS
from deepseek.ui.components.report_parts import PARTS, Part
from deepseek.ui.components.sections import Section
from deepseek.ui.plots.style import plotly_script

ROOT = Path(__file__).resolve().parents[3]
MAX_DETAILED = 6  # layers of which the figures of single layers are drawn
NUMBER_HEADERS = ("what", "layer", "observed", "spread of the average", "chance", "its standard deviation", "verdict")
DIFFERENCE_HEADERS = ("what", "layer", "A less chance", "B less chance", "difference", "verdict")
PART_HEADERS = ("what", "A", "B", "B less A", "its standard error")
TABLE = (
    '<div class="sorted"><input type="search" aria-label="search the table" placeholder="search"> <span class="found"></span>'
    '<div class="scroll"><table><thead></thead><tbody></tbody></table></div></div>'
)


class Subject(NamedTuple):
    """A checkpoint, and the kinds of text {name: text} that it read as `corpus`."""

    model: object
    tokenizer: object
    texts: Mapping[str, str]
    corpus: Corpus


def settings(subject: Subject) -> list[tuple[str, str]]:
    """Rows (what, value) that say what was measured, on what, and with which versions."""
    model, corpus = subject.model, subject.corpus
    experts = sorted({(layer.num_experts, layer.top_k) for layer in moe_layers(model).values()})
    texts = ", ".join(f"{kind} {tokens:,} tokens" for kind, tokens in zip(corpus.kinds, corpus.num_tokens))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "plotly"))
    return [
        ("checkpoint", model.name_or_path),
        ("SHA-256 of its weights", fingerprint(model.name_or_path) or "none: it is no folder of weights"),
        ("architecture", f"{type(model).__name__}, computing in {str(model.dtype).removeprefix('torch.')}"),
        (
            "experts",
            "; ".join(f"{top_k} of {count} in each of {len(corpus.layers)} layers" for count, top_k in experts),
        ),
        ("texts", texts + "".join(f"; only the beginning of {kind}" for kind in corpus.cut)),
        ("SHA-256 of the texts", corpus.digest),
        ("left out", "the first token of every window of the model's context"),
        ("chance", f"{NUM_PERMUTATIONS} permutations from seed 0; {SIGNIFICANT:g} standard deviations"),
        ("hidden states compared", f"{len(corpus.sample_S)} tokens, evenly spread"),
        ("versions", f"deepseek {own_version()}, {packages}, Python {platform.python_version()}"),
    ]


def own_version() -> str:
    """The version of this package in pyproject.toml; "unknown" without that file."""
    file = ROOT / "pyproject.toml"
    return loads(file.read_text("utf-8"))["project"]["version"] if file.is_file() else "unknown"


def detailed_layers(count: int) -> list[int]:
    """The indices of at most MAX_DETAILED of `count` layers, the first and the last among them."""
    if count <= MAX_DETAILED:
        return list(range(count))
    return [round(i * (count - 1) / (MAX_DETAILED - 1)) for i in range(MAX_DETAILED)]


def difference_rows(section: Section, a: sections.Measured, b: sections.Measured) -> list[list[str]]:
    """How much further above chance a number of B is than that of A, for names and layers that both have.

    It counts as different beyond SIGNIFICANT standard deviations of both sides' chance together.
    """
    rows = []
    for name in a.series.keys() & b.series.keys():
        for layer in sorted({*a.layers} & {*b.layers}):
            sides = [numbers.series[name][numbers.layers.index(layer)] for numbers in (a, b)]
            above = [float(side.observed - side.chance) for side in sides]
            spread = sum(float(side.spread) ** 2 for side in sides) ** 0.5
            gap = above[1] - above[0]
            words = (
                "no difference beyond chance" if not abs(gap) > SIGNIFICANT * spread else "more" if gap > 0 else "less"
            )
            if gap == gap:
                rows.append([name, str(layer), *(format(value, "+" + section.form) for value in (*above, gap)), words])
    order = list(a.series)
    return sorted(rows, key=lambda row: (order.index(row[0]), int(row[1])))


def report_html(
    subjects: Sequence[Subject],
    step: Callable[[float, str], None] = lambda fraction, what: None,
    chapters: Sequence[Section | Part] = (*SECTIONS, *PARTS),
) -> str:
    """The report of one subject, or of two beside each other, as HTML.

    `step` is told the fraction done and what is measured; it may raise to stop the work. Raises ValueError for a model without
    experts.
    """
    for model in (subject.model for subject in subjects if not subject.corpus.routing):
        raise ValueError(f"checkpoint {model.name_or_path!r} cannot be reported on. {why_no_experts(model)}")
    names = [""] if len(subjects) == 1 else ["A", "B"]
    body = [_settings_table(zip(names, map(settings, subjects)))]
    figures = Figures()
    for number, chapter in enumerate(chapters):

        def told(fraction, number=number, chapter=chapter):
            step((number + fraction) / len(chapters), chapter.title)

        write = _section if isinstance(chapter, Section) else _part
        body.append(write(chapter, list(zip(names, subjects)), figures, told))
    title = "What experts do: " + " and ".join(subject.model.name_or_path for subject in subjects)
    contents = " · ".join(f'<a href="#{_anchor(chapter)}">{html.escape(chapter.title)}</a>' for chapter in chapters)
    header = f"<h1>{html.escape(title)}</h1><p>{html.escape(CHANCE)}</p><nav>{contents}</nav>"
    assets = {
        name: (ROOT / "assets" / name).read_text("utf-8")
        for name in ("report.css", "figure.js", "sorted_table.js", "report.js")
    }
    script = (
        f"const downloadCsv = {assets['figure.js']};\n"
        f"const drawTable = (element, props, watch) => {{\n{assets['sorted_table.js']}\n}};\n{assets['report.js']}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">"
        f"<style>{assets['report.css']}</style></head><body><main>{header}{''.join(body)}</main>"
        f'<script type="application/json" id="data">{figures.json()}</script>'
        f"<script>{plotly_script()}</script><script>{script}</script></body></html>"
    )


class Figures:
    """The data of a report's figures and tables, which its script draws when they come into view."""

    def __init__(self):
        self.figures: dict[str, str] = {}
        self.tables: dict[str, dict] = {}

    def figure(self, figure, name: str, heading: str = "") -> str:
        """The place of a figure in the page, with its CSV button; nothing for None."""
        if figure is None:
            return ""
        name = f"{name}-{len(self.figures)}"
        self.figures[name] = figure.to_json()
        heading = f"<h4>{html.escape(heading)}</h4>" if heading else ""
        height = figure.layout.height
        wide = "" if _fits_a_phone(figure) else " wide"
        plot = f'<div class="plot{wide}" style="min-height:{height}px" data-figure="{name}"></div>'
        button = f'<button class="csv" data-csv="{name}">CSV</button>'
        return f'<div class="figure">{heading}<div class="scroll">{plot}</div>{button}</div>'

    def table(self, headers: Iterable[str], rows: list[list]) -> str:
        """The place of a table in the page."""
        name = f"table-{len(self.tables)}"
        self.tables[name] = {"headers": list(headers), "rows": rows}
        return f'<div data-table="{name}">{TABLE}</div>'

    def json(self) -> str:
        """All data as JSON that no text within it can end early."""
        parsed = {name: json.loads(figure) for name, figure in self.figures.items()}
        return json.dumps({"figures": parsed, "tables": self.tables}).replace("<", "\\u003c")


def _fits_a_phone(figure) -> bool:
    """Whether a figure is of lines, points or level bars over its whole width: the others scroll where there is no room."""
    spans = figure.layout.xaxis.domain in (None, (0.0, 1.0))
    return spans and all(
        trace.type == "scatter" or trace.type == "bar" and trace.orientation == "h" for trace in figure.data
    )


def _anchor(chapter: Section | Part) -> str:
    return chapter.name.lower().replace(" ", "-")


def _settings_table(sides) -> str:
    names, rows = zip(*sides)
    head = "".join(f'<th scope="col">{name}</th>' for name in names) if len(names) > 1 else ""
    lines = ""
    for cells in zip(*rows):
        values = "".join(f"<td>{html.escape(value)}</td>" for _, value in cells)
        lines += f'<tr><th scope="row">{html.escape(cells[0][0])}</th>{values}</tr>'
    return f'<div class="scroll"><table class="settings">{f"<tr><th></th>{head}</tr>" if head else ""}{lines}</table></div>'


def _section(section: Section, subjects: list[tuple[str, Subject]], figures: Figures, step) -> str:
    """One section: its words, then for each subject the verdicts, figures and tables, then the differences."""
    anchor, sides, numbers = _anchor(section), [], []
    for number, (name, subject) in enumerate(subjects):

        def told(fraction, number=number):
            step((number + fraction) / len(subjects))

        measured = sections.measured(section, subject.corpus, told)
        numbers.append(measured)
        lines = _heading_and_lines(name, subject, sections.summary(section, measured))
        drawn = figures.figure(sections.overview(section, measured), f"{anchor}{name}")
        table = figures.table(NUMBER_HEADERS, sections.number_rows(section, measured))
        sides.append(
            f"<div>{lines}{drawn}<details><summary>the numbers, layer by layer</summary>{table}</details>"
            f"{_details(section, subject.corpus, figures, f'{anchor}{name}')}</div>"
        )
    rows = difference_rows(section, *numbers) if len(numbers) == 2 else None
    return _chapter(section, sides, rows and figures.table(DIFFERENCE_HEADERS, rows))


def _part(part: Part, subjects: list[tuple[str, Subject]], figures: Figures, step) -> str:
    """One part: its words, then for each subject what it found, then the differences."""
    anchor, sides, found = _anchor(part), [], []
    for number, (name, subject) in enumerate(subjects):

        def told(fraction, number=number):
            step((number + fraction) / len(subjects))

        findings = part.measure(subject.model, subject.tokenizer, subject.texts, told)
        found.append(findings)
        lines = _heading_and_lines(name, subject, findings.lines)
        drawn = "".join(figures.figure(each, f"{anchor}{name}", heading) for heading, each in findings.figures.items())
        tables = "".join(
            f"<details><summary>{summary}</summary>{figures.table(*table)}</details>"
            for summary, table in findings.tables.items()
        )
        sides.append(f"<div>{lines}{drawn}{tables}</div>")
    rows = report_parts.difference_rows(*found) if len(found) == 2 else None
    return _chapter(part, sides, rows and figures.table(PART_HEADERS, rows))


def _heading_and_lines(name: str, subject: Subject, lines: list[str]) -> str:
    heading = f"<h3>{name}: {html.escape(subject.model.name_or_path)}</h3>" if name else ""
    return f"{heading}<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _chapter(chapter: Section | Part, sides: list[str], differences: str | None) -> str:
    """A chapter of the page from its parts in HTML, with a table of differences if there is one."""
    pair = ' class="pair"' if len(sides) > 1 else ""
    words = html.escape(chapter.words).replace("*", "")
    beside = f"<h3>B less A</h3>{differences}" if differences else ""
    heading = f"<h2>{html.escape(chapter.title)}</h2><p>{words}</p>"
    return f'<section id="{_anchor(chapter)}">{heading}<div{pair}>{"".join(sides)}</div>{beside}</section>'


def _details(section: Section, corpus: Corpus, figures: Figures, name: str) -> str:
    parts = []
    for index in detailed_layers(len(corpus.layers)):
        detail = section.detail(corpus, index)
        drawn = "".join(
            figures.figure(figure, f"{name}-layer-{corpus.layers[index]}", heading)
            for heading, figure in zip(section.headings, detail.figures)
        )
        table = figures.table(detail.headers, detail.rows)
        parts.append(f"<details><summary>layer {corpus.layers[index]}</summary>{drawn}{table}</details>")
    return "".join(parts)
