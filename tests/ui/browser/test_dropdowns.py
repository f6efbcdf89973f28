"""Dropdowns whose choice sets other controls: picked by mouse and by keys, and left without a choice."""

import pytest
from playwright.sync_api import expect
from ui.browser.actions import labelled, number_box, open_form, open_tab, visible_box


@pytest.fixture
def page(one_page):
    return one_page


def leave(page, box):
    """Tabs over a dropdown without a choice, and waits for what the server says to that."""
    page.wait_for_timeout(300)  # for what was asked before
    with page.expect_response("**/queue/data**"):
        box.focus()
        page.keyboard.press("Tab")
    page.wait_for_timeout(500)


def test_a_swept_setting_offers_its_range_when_it_is_picked_and_not_when_it_is_left(page):
    open_tab(page, "Compare")
    setting, low, high = (visible_box(page, label) for label in ("setting", "from", "to"))
    setting.click()
    page.get_by_role("option", name="top p", exact=True).click()
    expect(high).to_have_value("1")
    setting.fill("min new")
    setting.press("Enter")
    expect(setting).to_have_value("min new tokens")
    expect(high).to_have_value("100")
    low.fill("7")
    leave(page, setting)
    assert (low.input_value(), high.input_value()) == ("7", "100")


def test_a_model_size_sets_what_suits_it_when_it_is_picked_and_not_when_it_is_left(page):
    open_tab(page, "Train")
    open_form(page)
    size, steps = labelled(page, "model size"), labelled(page, "max steps")
    before = steps.input_value()
    size.fill("tiny")
    size.press("Enter")
    expect(steps).not_to_have_value(before)
    steps.fill("77")
    leave(page, size)
    assert steps.input_value() == "77"


def test_a_preset_is_applied_once(page):
    """A second answer to the same choice would undo what the user has set in the meantime."""
    open_tab(page, "Playground")
    preset = page.get_by_label("preset", exact=True).locator("visible=true").first
    asked = []
    page.on("request", lambda request: asked.append(request.post_data or ""))
    preset.click()
    page.get_by_role("option", name="greedy", exact=True).click()
    expect(number_box(page, "temperature")).to_have_value("0")
    page.wait_for_timeout(300)
    assert sum('"greedy"' in data for data in asked) == 1
