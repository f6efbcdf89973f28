"""The data that a figure's CSV button downloads, against what plotly has drawn."""

import csv
import html
import json

import pytest
from playwright.sync_api import expect

TABS = [
    ["Playground"],
    ["Experts", "This text"],
    ["Experts", "Longer"],
    ["Experts", "Kinds"],
    ["Intervene"],
    ["Attention"],
    ["Layers"],
]
DRAWN = """plot => plot._fullData.map(trace => ({
  type: trace.type, name: plot.data[trace.index].name,
  x: trace.x && [...trace.x], y: trace.y && [...trace.y], z: trace.z && trace.z.map(row => [...row]),
  labels: trace.node && [...trace.node.label],
  links: trace.link && [...trace.link.value].map((v, i) => [trace.link.source[i], trace.link.target[i], v]),
}))"""


def rows(trace):
    """(series, x or source, y or target, value) of every mark of a trace."""
    if trace["type"] == "sankey":
        return [(trace["name"], trace["labels"][s], trace["labels"][t], value) for s, t, value in trace["links"]]
    if trace["type"] == "heatmap":
        x, y = (trace[axis] or range(len(trace["z"][0])) for axis in "xy")
        cells = [(x[c], y[r], value) for r, row in enumerate(trace["z"]) for c, value in enumerate(row)]
        return [(trace["name"], *cell) for cell in cells]
    return [(trace["name"], x, y, None) for x, y in zip(trace["x"] or range(len(trace["y"])), trace["y"])]


def same(written, drawn):
    if drawn is None or drawn != drawn:
        return written in (None, "")
    if isinstance(drawn, str):
        return written.removeprefix("'") == html.unescape(drawn).replace("<br>", " ")
    return float(written) == pytest.approx(drawn)


@pytest.mark.parametrize("tab", TABS, ids=" ".join)
def test_every_figure_downloads_what_it_shows(browser, app_url, tab):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(app_url)
    expect(page.locator("#strip .token").first).to_be_visible()
    for name in tab:
        page.get_by_role("tab", name=name, exact=True).click()
    if tab == ["Playground"]:
        page.get_by_text("entropy and temperature along the text").click()
    expect(page.locator(".js-plotly-plot:visible").first).to_be_visible()
    page.wait_for_timeout(2000)
    figures = page.locator(".figure:visible", has=page.locator(".js-plotly-plot"))
    assert figures.count() == page.locator(".js-plotly-plot:visible").count() > 0
    for figure in figures.all():
        with page.expect_download() as download:
            figure.locator(".csv").click()
        with open(download.value.path(), newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        expected = [row for trace in figure.locator(".js-plotly-plot").evaluate(DRAWN) for row in rows(trace)]
        assert len(found) == len(expected) > 0
        for written, (series, one, other, value) in zip(found, expected):
            sankey = "source" in written
            assert same(written.get("series"), series)
            assert same(written["source" if sankey else "x"], one) and same(written["target" if sankey else "y"], other)
            assert same(written.get("value"), value)
        assert download.value.suggested_filename.endswith(".csv")
    page.close()


@pytest.fixture(scope="module")
def script():
    """The page's own script, to be called with any figure."""
    with open("assets/figure.js", encoding="utf-8") as file:
        return file.read()


def test_texts_cannot_become_formulas_or_columns(browser, app_url, script):
    page = browser.new_page()
    page.goto(app_url)
    names = ["=1+1", "+1", "-1", "@x", "\tx", 'a,"b"', "line\nend", "&lt;b&gt; &amp;amp;", "-5"]
    figure = {"data": [{"type": "bar", "x": names, "y": [-5, 1.5, 2, 3, 4, 5, 6, None, 1e-9]}]}
    with page.expect_download() as download:
        page.evaluate(
            "([script, plot]) => eval('(' + script + ')')(plot, 'name')", [script, {"plot": json.dumps(figure)}]
        )
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    shown = ["'=1+1", "'+1", "'-1", "'@x", "'\tx", 'a,"b"', "line\nend", "<b> &amp;", "'-5"]
    assert [row["x"] for row in found] == shown
    assert [row["y"] for row in found] == ["-5", "1.5", "2", "3", "4", "5", "6", "", "1e-9"]
    page.close()
