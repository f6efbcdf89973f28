"""The Attention tab: what a token looked at, over layers, ranges of tokens and a part of the text."""

import re

import pytest
from playwright.sync_api import expect
from ui.browser.actions import (
    open_tab,
    slide,
)


@pytest.fixture
def page(one_page):
    return one_page


def test_a_click_shows_the_attention_of_a_token(page):
    open_tab(page, "Attention")
    strip = page.locator("#attention-strip")
    expect(strip.locator(".token").first).to_be_visible()
    plot = page.locator("#attention .js-plotly-plot")
    expect(plot).to_be_visible()
    row = plot.evaluate("plot => [...plot._fullData[0].z[12]]")
    strip.locator(".token").nth(12).click()
    strongest = max(range(13), key=row.__getitem__)
    token = strip.locator(".token").nth(strongest)
    expect(token).to_have_attribute("title", re.compile(f"gets {row[strongest]} % of the attention"))
    assert "rgba(230, 159, 0" in token.evaluate("e => getComputedStyle(e).backgroundColor")
    percents = strip.locator(".token").evaluate_all("all => all.map(e => +/gets (\\d+) %/.exec(e.title)[1])")
    assert percents == row
    slide(page, "layer", 4)  # the token stays selected
    expect(page.locator("#attention .gtitle")).to_have_text("layer 4, head 0")
    expect(strip.locator(".detail")).to_contain_text("token 13 ")
    for _ in range(2):
        page.get_by_label("range slider for head").first.press("ArrowRight")
    expect(page.locator("#attention .gtitle")).to_have_text("layer 4, head 2")
    assert plot.evaluate("plot => plot._fullData[0].x[12]").startswith("13 "), "the number that the strip has"


def test_attention_over_layers_over_ranges_and_of_a_part(page):
    open_tab(page, "Attention")
    maps = page.locator("#attention-maps .js-plotly-plot")
    expect(maps.get_by_text("head 8")).to_be_visible()
    page.get_by_text("this head in all layers").click()
    expect(maps.get_by_text("layer 5")).to_be_visible()
    expect(maps.get_by_text("head 8")).to_have_count(0)
    bars = "plot => [...plot._fullData[0].y]"
    plot = page.locator("#attention-received .js-plotly-plot")
    before = plot.evaluate(bars)
    slide(page, "layers from", 5)
    page.wait_for_function(
        "before => JSON.stringify([...document.querySelector("
        "'#attention-received .js-plotly-plot')._fullData[0].y]) !== before",
        arg=str(before).replace(" ", ""),
    )
    page.get_by_label("tokens", exact=True).fill("5-24")
    page.get_by_label("tokens", exact=True).press("Enter")
    expect(page.get_by_text("drawn: 5 to 24")).to_be_visible()
    assert len(plot.evaluate(bars)) == 20
    page.get_by_label("tokens", exact=True).fill("24-5")
    page.get_by_label("tokens", exact=True).press("Enter")
    expect(page.get_by_text("it must be a range such as").first).to_be_visible()
