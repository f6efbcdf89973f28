"""The data that a figure's CSV button downloads, against what plotly has drawn."""

import csv
import html
import json

import pytest
from playwright.sync_api import expect

TABS = [
    ["Playground"],
    ["Experts", "This text"],
    ["Experts", "Long text"],
    ["Experts", "Domains"],
    *(["What experts do", name] for name in ("Vocabulary", "Kinds of text", "Partners", "Repetition", "Geometry")),
    ["Intervene", "Importance"],
    ["Intervene", "Steer"],
    ["Attention"],
    ["Layers"],
]
DRAWN = """plot => plot._fullData.map(trace => ({
  type: trace.type, name: plot.data[trace.index].meta || plot.data[trace.index].name,
  x: trace.x && [...trace.x], y: trace.y && [...trace.y], z: trace.z && trace.z.map(row => [...row]),
  labels: trace.node && [...trace.node.label],
  links: trace.link && [...trace.link.value].map((v, i) => [trace.link.source[i], trace.link.target[i], v]),
}))"""


@pytest.fixture
def page(one_page):
    return one_page


def rows(trace):
    """(series, x or source, y or target, value) of every mark of a trace."""
    if trace["type"] == "sankey":
        return [(trace["name"], trace["labels"][s], trace["labels"][t], value) for s, t, value in trace["links"]]
    if trace["type"] == "heatmap":
        x, y = (trace[axis] or range(len(trace["z"][0])) for axis in "xy")
        cells = [(x[c], y[r], value) for r, row in enumerate(trace["z"]) for c, value in enumerate(row)]
        return [(trace["name"], *cell) for cell in cells]
    return [(trace["name"], x, y, None) for x, y in zip(trace["x"] or range(len(trace["y"])), trace["y"])]


def equal(cell, drawn):
    if drawn is None or drawn != drawn:
        return cell in (None, "")
    if isinstance(drawn, str):
        return cell.removeprefix("'") == html.unescape(drawn).replace("<br>", " ")
    return float(cell) == pytest.approx(drawn)


def downloaded(page, click):
    """(suggested file name, rows) of the CSV file that `click()` downloads."""
    with page.expect_download() as download:
        click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        return download.value.suggested_filename, list(csv.DictReader(file))


@pytest.mark.parametrize("tab", TABS, ids=" ".join)
def test_every_figure_downloads_what_it_shows(page, tab):
    for name in tab:
        page.get_by_role("tab", name=name, exact=True).click()
    if tab == ["Playground"]:
        page.get_by_text("entropy and temperature along the text").click()
    if tab[0] == "What experts do":
        expect(page.locator(".verdicts:visible")).to_contain_text("chance")  # measured when it is first opened
    if tab[-1] == "Steer":
        expect(page.locator("#steer-effect-note")).to_contain_text("Held-out loss")
    if tab[-1] == "Importance":
        expect(page.locator("#runner-ups .ytick > text")).to_have_count(5)  # drawn layer by layer
    figures = page.locator(".figure:visible")
    expect(figures.first).to_be_visible()
    expect(page.locator(".js-plotly-plot:visible")).to_have_count(figures.count())
    for figure in figures.all():
        name, cells = downloaded(page, figure.locator(".csv").click)
        expected = [row for trace in figure.locator(".js-plotly-plot").evaluate(DRAWN) for row in rows(trace)]
        assert name.endswith(".csv") and len(cells) == len(expected) > 0
        for row, (series, x, y, value) in zip(cells, expected):
            columns = ("source", "target") if "source" in row else ("x", "y")
            assert equal(row.get("series"), series) and equal(row.get("value"), value)
            assert equal(row[columns[0]], x) and equal(row[columns[1]], y)


def test_a_label_becomes_neither_a_formula_nor_a_column(page):
    with open("assets/figure.js", encoding="utf-8") as file:
        script = file.read()
    names = ["=1+1", "+1", "-1", "@x", "\tx", 'a,"b"', "line\nend", "&lt;b&gt; &amp;amp;", "-5"]
    figure = {"data": [{"type": "bar", "x": names, "y": [-5, 1.5, 2, 3, 4, 5, 6, None, 1e-9]}]}
    call, plot = "([script, plot]) => eval('(' + script + ')')(plot, 'name')", {"plot": json.dumps(figure)}
    _, cells = downloaded(page, lambda: page.evaluate(call, [script, plot]))
    shown = ["'=1+1", "'+1", "'-1", "'@x", "'\tx", 'a,"b"', "line\nend", "<b> &amp;", "'-5"]
    assert [row["x"] for row in cells] == shown
    assert [row["y"] for row in cells] == ["-5", "1.5", "2", "3", "4", "5", "6", "", "1e-9"]
