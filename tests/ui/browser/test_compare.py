"""The Compare tab: two samples beside each other, and one setting over a range of values."""

import pytest
from playwright.sync_api import expect
from ui.browser.actions import (
    button,
    open_tab,
    texts,
)


@pytest.fixture
def page(one_page):
    return one_page


def test_compare_streams_two_samples_and_marks_where_they_part(page):
    open_tab(page, "Compare")
    assert texts(page, "strip-a") and texts(page, "strip-b")
    expect(page.get_by_text("repeated 4-grams").first).to_be_visible()
    button(page, "Compare").click()
    expect(page.locator("#strip-a .token").nth(100)).to_be_attached()
    expect(page.locator("#strip-b .token").nth(100)).to_be_attached()
    expect(page.locator("#strip-a .diverged")).to_have_count(1)
    expect(page.locator("#strip-b .diverged")).to_have_count(1)
    expect(page.get_by_text("repeated 4-grams").first).to_be_visible()
    marked = "all => all.findIndex(e => e.classList.contains('diverged'))"
    a, b = texts(page, "strip-a"), texts(page, "strip-b")
    position, position_b = (page.locator(f"#{strip} .token").evaluate_all(marked) for strip in ("strip-a", "strip-b"))
    assert position == position_b and a[:position] == b[:position] and a[position] != b[position]
    expect(page.get_by_text("repetition penalty").locator("visible=true").first).to_be_visible()


def test_a_sweep_shows_a_sample_for_each_value_and_a_chart(page):
    open_tab(page, "Compare")
    button(page, "Sweep").click()
    rows = page.locator("#sweep-texts .row")
    expect(rows).to_have_count(8)
    expect(rows.locator(".label")).to_have_text(
        [f"temperature {value:g}" for value in (0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6)]
    )
    label = rows.locator(".label").first
    label.evaluate("label => label.classList.add('still')")  # a button that is pressed while texts grow is not replaced
    label.press("Enter")
    expect(rows.first).to_have_class("row whole")
    page.get_by_role("button", name="Stop").locator("visible=true").last.click()
    expect(page.locator("#sweep .js-plotly-plot")).to_be_visible()
    expect(label).to_have_class("label still")
