"""Sections of figures that the page and the report draw alike: words, numbers of every layer beside chance, figures, a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from deepseek.interpret.chance import SIGNIFICANT, Comparison, verdict
from deepseek.interpret.corpus import Corpus
from deepseek.ui.plots.specialization import by_layer

Step = Callable[[float], None]  # is told the fraction done; may raise to stop the work


@dataclass
class Measured:
    """A section's numbers: {name: Comparison of (layers,)}, and where they are averages {name: their standard deviations}."""

    series: dict[str, Comparison]
    layers: list[int]
    deviations: dict[str, torch.Tensor] = field(default_factory=dict)
    over: str = ""  # what they are averages over
    panels: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # of the figure: {heading: {line: its series}}, or one of all


class Detail(NamedTuple):
    """The figures of one layer, one for each of the section's headings (None for one that it lacks), and a table."""

    figures: list
    headers: list[str]
    rows: list[list]


@dataclass(frozen=True)
class Section:
    """One part of the page and of the report. `words` say what it shows, how to read it, and what chance would give."""

    name: str
    title: str
    words: str
    unit: str  # of the numbers by layer
    measure: Callable[[Corpus, Step], Measured]
    headings: tuple[str, ...]  # of the figures of one layer
    detail: Callable[[Corpus, int], Detail]
    form: str = ".1%"  # plotly's format of the numbers


def measured(section: Section, corpus: Corpus, step: Step = lambda fraction: None) -> Measured:
    """The numbers of a section on a corpus, which keeps them."""
    if section.name not in corpus.measured:
        corpus.measured[section.name] = section.measure(corpus, step)
    return corpus.measured[section.name]


def overview(section: Section, numbers: Measured):
    """The figure of a section's numbers by layer."""
    series = {name: (each.observed, each.chance, each.spread) for name, each in numbers.series.items()}
    panels = numbers.panels or {"": {name: name for name in series}}
    lines = {heading: {line: series[name] for line, name in panel.items()} for heading, panel in panels.items()}
    return by_layer(lines, numbers.layers, section.unit, section.form, SIGNIFICANT)


def summary(section: Section, numbers: Measured) -> list[str]:
    """A line for each series: mean over the layers with its spread, chance, and whether it is better."""
    lines = []
    for name, each in numbers.series.items():
        observed = each.observed[~each.observed.isnan()]
        if not len(observed):
            lines.append(f"{name}: nothing to measure")
            continue
        columns = observed, each.chance, each.spread
        mean, chance, spread = (format_number(float(values.nanmean()), section.form) for values in columns)
        line = f"{name}: {mean}"
        if len(observed) > 1:
            line += f" ± {format_number(float(observed.std()), section.form)} over {len(observed)} layers"
        if name in numbers.deviations:
            line += f" (± {format_number(float(numbers.deviations[name].nanmean()), section.form)} over {numbers.over})"
        lines.append(f"{line}; chance {chance} ± {spread}: {verdict(each)}")
    return lines


def number_rows(section: Section, numbers: Measured) -> list[list[str]]:
    """Rows (what, layer, observed, spread of the average, chance, its standard deviation, verdict) of a section's numbers."""
    words = {1: "above chance", -1: "below chance", 0: "no better than chance"}
    return [
        [
            name,
            str(layer),
            format_number(float(each.observed[index]), section.form),
            format_number(float(numbers.deviations[name][index]), section.form) if name in numbers.deviations else "",
            format_number(float(each.chance[index]), section.form),
            format_number(float(each.spread[index]), section.form),
            words[int(each.side[index])],
        ]
        for name, each in numbers.series.items()
        for index, layer in enumerate(numbers.layers)
    ]


def format_number(value: float, form: str) -> str:
    """A number in plotly's and Python's common format; nothing for NaN."""
    return "" if value != value else format(value, form)


def sections_json(sections: Sequence[Section], corpus: Corpus, layer: int, step: Step) -> dict:
    """The numbers of all sections as JSON, and with a decoder layer (not -1) the tables of its experts."""
    answer = {"kinds": corpus.kinds, "tokens": corpus.num_tokens, "layers": corpus.layers, "sections": {}}
    for section in sections if corpus.routing else ():
        numbers, series = measured(section, corpus, step), {}
        for name, each in numbers.series.items():
            columns = {"observed": each.observed, "chance": each.chance, "spread": each.spread}
            series[name] = {key: _json_list(values) for key, values in columns.items()}
            series[name]["deviations"] = _json_list(numbers.deviations[name]) if name in numbers.deviations else None
            series[name]["side"] = each.side.tolist()
        part = answer["sections"][section.name] = {"title": section.title, "words": section.words, "series": series}
        if layer != -1:
            detail = section.detail(corpus, corpus.layers.index(layer))
            part["table"] = {"headers": detail.headers, "rows": detail.rows}
    return answer


def _json_list(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
