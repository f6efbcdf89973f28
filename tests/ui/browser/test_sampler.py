"""The sampler's settings in the page: order, samplers, bias, scopes, presets and number boxes."""

import re

from playwright.sync_api import expect
from ui.browser.actions import (
    button,
    generate,
    make_link,
    number_box,
    open_page,
    open_tab,
    settle,
    shown,
    slide,
    texts,
    titles,
)  # fmt: skip


def test_order_stop_strings_and_neutral(page):
    shown(page, "order").click()
    page.get_by_role("button", name="llama.cpp", exact=True).locator("visible=true").click()
    slide(page, "min-p", 0.05)
    slide(page, "max new tokens", 400)
    stop = page.get_by_label("stop strings").locator("visible=true")
    stop.fill(" the\n was")
    stop.press("Tab")
    generate(page)
    order = "model → repetition → top-k → top-p → min-p → temperature"
    expect(page.locator("#token-heading")).to_contain_text("Samplers in use: " + order)
    expect(page.locator(".lines:visible").first).to_have_text(order)
    expect(page.locator("#stats")).to_contain_text("ended by stop string")
    text = "".join(texts(page, "strip"))
    assert (" the" in text) + (" was" in text) == 1
    names = page.locator("#funnel .xtick, #funnel .x2tick").all_text_contents()
    assert [name for name in names if name.startswith("min-p")] and names[-1].startswith("temperature")
    page.get_by_role("button", name="Neutral", exact=True).locator("visible=true").click()
    for name, value in (("temperature", "1"), ("top-k", "0"), ("top-p", "1"), ("min-p", "0")):
        expect(number_box(page, name)).to_have_value(value)
    expect(page.locator(".lines:visible").first).to_have_text("model")
    transformers = page.get_by_role("button", name="transformers", exact=True).locator("visible=true")
    expect(transformers).to_have_attribute("aria-pressed", "true")


def test_samplers_are_dragged_and_moved_by_keys_and_the_order_is_used(page):
    shown(page, "order").click()
    stages, chain = page.locator(".order .stages li:visible"), page.locator(".lines:visible").first
    expect(chain).to_have_text("model → repetition → temperature → top-k → top-p")
    stages.filter(has_text="top-k").focus()
    page.keyboard.press("Shift+Home")
    expect(stages.first).to_be_focused()
    expect(chain).to_contain_text(
        "model → top-k → repetition → temperature → top-p ⚠ repetition after top-k brings back no token"
    )
    temperature, first = stages.filter(has_text="temperature").bounding_box(), stages.first.bounding_box()
    page.mouse.move(temperature["x"] + 9, temperature["y"] + 9)
    page.mouse.down()
    page.mouse.move(first["x"] + 5, first["y"] + 9, steps=6)
    page.mouse.up()
    expect(chain).to_contain_text("model → temperature → top-k → repetition → top-p")
    generate(page)
    expect(page.locator("#token-heading")).to_contain_text(
        "Samplers in use: model → temperature → top-k → repetition → top-p"
    )
    link = make_link(page)
    expect(link).to_have_value(re.compile("order=temperature%2Ctop-k%2C"))


def test_the_tokens_that_a_bias_names_are_shown(page):
    shown(page, "bias and bans").click()
    box = page.get_by_role("textbox", name="logit bias").locator("visible=true")
    box.fill(" fox=3\n<b>=1")
    expect(page.locator(".lines:visible").last).to_have_text(
        re.compile(r"^\+3 on “·fox” \d+\s\+1 on each of “<” \d+ “b”")
    )


def test_why_not_this_word_and_what_decided(page):
    shown(page, "why not this word?").click()
    page.locator("#why-not-word textarea, #why-not-word input").fill("purple")
    button(page, "Ask").click()
    expect(page.locator("#why-not textarea")).to_have_value(re.compile("Token 1. “·pur.* removed it."))
    expect(page.locator("#why-not-table tbody tr").last).to_contain_text("removed")
    colours = page.get_by_label("colour the tokens by").first
    for colour, legend in (
        ("sampler probability", "less likely after the sampler"),
        ("decided by", "added most of the"),
    ):
        colours.select_option(colour)
        expect(page.locator("#strip .legend")).to_contain_text(legend)


def test_the_scope_of_a_penalty_is_chosen_used_and_shared(page):
    info = page.locator("[data-testid=block-info]", has_text="scope of presence and frequency")
    scope = page.locator(".block", has=info).locator("visible=true").last
    shown(page, "penalties").click()
    slide(page, "presence", 2)
    samples = []
    for choice in ("output only", "prompt and output"):
        scope.get_by_label(choice, exact=True).check()
        page.get_by_label("keep this seed").check()
        generate(page, "Lily and her mom and Lily and her dad")
        samples.append(texts(page, "strip"))
    assert samples[0] != samples[1]
    link = make_link(page)
    expect(link).to_have_value(re.compile("penalty_scope=all"))
    page.goto(link.input_value())
    expect(page.locator("#strip .prompt")).to_contain_text("Lily and her dad")
    settle(page)
    assert texts(page, "strip") == samples[1]
    shown(page, "penalties").click()
    expect(scope.get_by_label("prompt and output", exact=True)).to_be_checked()


def test_dynamic_temperature_shows_its_figures(page):
    shown(page, "dynamic temperature").click()
    page.get_by_label("use dynamic temperature").locator("visible=true").check()
    generate(page)
    page.locator("#strip .token").nth(2).click()
    figures = re.compile(r"dynamic temperature (\d\.\d\d), from \d\.\d\d nats over [\d,]+ candidates")
    expect(page.locator("#token-heading")).to_contain_text(figures)
    assert len({re.search(r"temperature ([\d.]+)", title)[1] for title in titles(page)}) > 3
    page.get_by_text("entropy and temperature along the text").click()
    lines = "plot => plot._fullData.map(t => t.name)"
    assert page.locator("#along .js-plotly-plot").evaluate(lines) == ["entropy, nats", "temperature"]


def test_presets_are_kept_in_every_window_until_they_are_deleted(browser, app_url):
    with browser.new_context() as context:
        windows = [context.new_page() for _ in range(2)]
        for page in windows:
            open_page(page, app_url)
            shown(page, "save and share").click()
        for page, name, temperature in zip(windows, ("<b>cold</b>", "cool"), (0.35, 0.4)):
            slide(page, "temperature", temperature)
            expect(preset_box(page)).to_have_value("custom")
            page.get_by_label("save these settings as a preset").fill(name)
            button(page, "Save").click()
            expect(preset_box(page)).to_have_value(name)
        first, second = windows
        choose_preset(first, "cool", 0.4)
        slide(first, "temperature", 0.7)
        expect(preset_box(first)).to_have_value("stories")
        choose_preset(first, "<b>cold</b>", 0.35)
        button(first, "Delete the chosen preset").click()
        expect(preset_box(first)).to_have_value("custom")
        open_page(second, app_url)
        open_tab(second, "Compare")
        second.get_by_role("button", name="settings of A").click()
        choose_preset(second, "cool", 0.4)
        preset_box(second).click()
        expect(second.get_by_role("option", name="stories")).to_be_visible()
        assert second.get_by_role("option", name="cold").count() == 0


def preset_box(page):
    """The visible dropdown of presets."""
    return page.get_by_label("preset", exact=True).locator("visible=true").first


def choose_preset(page, name, temperature):
    preset_box(page).click()
    page.get_by_role("option", name=name).click()
    expect(number_box(page, "temperature")).to_have_value(str(temperature))


def test_a_number_box_takes_a_decimal_comma_and_keeps_its_number_when_emptied(page):
    box = number_box(page, "temperature")
    box.fill("")
    box.press_sequentially("0,35")
    box.press("Enter")
    expect(box).to_have_value("0.35")
    box.fill("")
    box.press("Tab")
    expect(box).to_have_value("0.35")
    expect(preset_box(page)).to_have_value("custom")
