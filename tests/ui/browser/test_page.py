"""What a user does: generate, watch, stop, and look at the panels."""

import re

import pytest
from playwright.sync_api import expect
from running import wait_until
from ui.browser.actions import (
    ask_for_a_long_sample,
    begin,
    branch,
    button,
    generate,
    make_link,
    number_box,
    open_tab,
    plotted,
    settle,
    shown,
    slide,
    texts,
    visible_box,
)

WIDE_AND_PHONE = pytest.mark.parametrize("page", [1280, 375], indirect=True, ids=["wide", "phone"])


@WIDE_AND_PHONE
def test_first_visit_shows_an_example(page):
    assert len(texts(page, "strip")) > 20
    open_tab(page, "Experts")
    assert [trace["type"] for trace in plotted(page, 0)] == ["scatter", "scatter"]
    assert plotted(page, 1)[0]["type"] == "heatmap"
    assert len(plotted(page, 2)) == 8
    open_tab(page, "Attention")
    assert plotted(page, 0)[0]["type"] == "heatmap"
    assert len(plotted(page, 1)) == 9
    open_tab(page, "Layers")
    assert [trace["type"] for trace in plotted(page, 0)] == ["heatmap", "scatter"]
    assert [trace["type"] for trace in plotted(page, 1)] == ["bar", "bar"]
    assert [trace["type"] for trace in plotted(page, 2)] == ["scatter", "scatter"]
    expect(page.get_by_text("× as many")).to_be_visible()
    open_tab(page, "Model")
    expect(page.get_by_text("KV cache per token")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    if page.viewport_size["width"] == 375:
        opacity = "all => all.map(bar => getComputedStyle(bar).opacity)"
        bars = page.locator(".js-plotly-plot .modebar-container").evaluate_all(opacity)
        assert bars and set(bars) == {"0"}, "plotly's toolbar would cover the legends"


def test_a_page_that_nobody_uses_rests(page):
    """Whatever asks for a frame after each frame takes 7 % of a core."""
    page.add_init_script("""
      const request = window.requestAnimationFrame;
      window.framesAsked = 0;
      window.requestAnimationFrame = draw => (window.framesAsked++, request(draw));
    """)
    page.reload()
    expect(page.locator("#strip .token").first).to_be_visible()
    half_a_second = "(window.framesAsked = 0, new Promise(done => setTimeout(() => done(window.framesAsked), 500)))"
    wait_until(lambda: page.evaluate(half_a_second) == 0, 60)


def test_a_sample_streams_and_both_panels_show_it(page):
    # Counted in the page itself: a short sample may end before a query from outside arrives.
    page.evaluate(
        """() => {
          const strip = document.querySelector('#strip .tokens'); window.counts = [];
          new MutationObserver(() => counts.push(strip.querySelectorAll('.token').length)).observe(strip, {childList: true});
        }"""
    )
    generate(page, "The little fox")
    expect(page.locator("#strip .prompt")).to_have_text("The little fox")
    generated = texts(page, "strip")
    partial = [count for count in page.evaluate("counts") if count < len(generated)]
    assert partial and partial == sorted(partial), partial
    open_tab(page, "Experts")
    expect(page.locator("#experts-strip .tokens")).to_contain_text("The little fox")
    assert "".join(generated).replace("⏹", "")[:60] in "".join(texts(page, "experts-strip"))
    names = plotted(page, 1)[0]["x"]
    assert any("fox" in name for name in names)
    open_tab(page, "Attention")
    expect(page.locator(".js-plotly-plot:visible .xtick", has_text="fox").first).to_be_attached()
    assert any("fox" in name for name in plotted(page, 0)[0]["x"])


def test_a_newer_text_replaces_one_that_still_grows_everywhere(page):
    ask_for_a_long_sample(page)
    begin(page, "Once upon")
    link = make_link(page)
    expect(link).to_have_value(re.compile("prompt=Once"))
    page.get_by_label("prompt").first.fill("The little fox")
    page.get_by_label("prompt").first.press("Enter")
    expect(page.locator("#strip .prompt")).to_have_text("The little fox")
    expect(link).to_be_hidden()  # it is the older text's
    # In the page itself: the sample may end before a click from outside arrives.
    page.evaluate(
        """() => {
          const strip = document.querySelector('#strip .tokens'); window.prompts = new Set();
          const stop = [...document.querySelectorAll('button')].find(button => button.textContent.trim() === 'Stop');
          const older = strip.querySelector('.token');
          new MutationObserver(() => {
            prompts.add(strip.querySelector('.prompt')?.textContent);
            if (older.isConnected || strip.querySelectorAll('.token').length < 20) return;
            stop.click();
            window.stopped = true;
          }).observe(strip, {childList: true});
        }"""
    )
    button(page, "Generate").click()  # no click is ignored
    page.wait_for_function("window.stopped")
    page.get_by_text("the text as a table").click()
    page.wait_for_function(
        """() => document.querySelectorAll('#text-table tbody tr').length
          === document.querySelectorAll('#strip .token').length"""
    )
    assert 0 < len(texts(page, "strip")) < 400
    button(page, "Make a link to this text").click()
    expect(link).to_have_value(re.compile(r"prompt=The\+little\+fox"))
    assert page.evaluate("[...prompts]") == ["The little fox"]
    open_tab(page, "Experts")
    expect(page.locator("#experts-strip .tokens")).to_contain_text("The little fox")


def test_same_seed_same_text(page):
    keep = page.get_by_label("keep this seed")
    visible_box(page, "seed").fill("")
    visible_box(page, "seed").press_sequentially(f"{2**62 + 1}")  # more than a browser's numbers hold
    expect(keep).to_be_checked()
    keep.uncheck()
    visible_box(page, "seed").dispatch_event("paste")
    expect(keep).to_be_checked()
    runs = []
    for _ in range(2):
        generate(page)
        runs.append(texts(page, "strip"))
        expect(page.locator("#stats")).to_contain_text(f"seed {2**62 + 1}")
    assert runs[0] == runs[1]


def test_a_token_is_selected_by_click_and_by_key(page):
    page.locator("#strip .token").nth(4).click()
    expect(page.locator("#strip .detail")).to_contain_text("token 5 ")
    page.locator("#strip .tokens").press("ArrowRight")
    expect(page.locator("#strip .detail")).to_contain_text(re.compile(r"token 6 .*probability"))


def test_bad_input_is_refused_and_changes_nothing(page):
    before = texts(page, "strip")
    for prompt, message in (("   ", "prompt is empty"), ("word " * 3000, "the model reads")):
        page.get_by_label("prompt").first.fill(prompt)
        button(page, "Generate").click()
        expect(page.get_by_text(message).first).to_be_visible()
        assert texts(page, "strip") == before
    shown(page, "save and share").click()
    page.get_by_label("save these settings").fill("stories")
    button(page, "Save").click()
    expect(page.get_by_text("name is 'stories'").first).to_be_visible()


@WIDE_AND_PHONE
def test_a_selected_token_shows_its_funnel_and_branches(page):
    before = texts(page, "strip")
    page.locator("#strip .token").nth(7).click()
    expect(page.locator("#funnel .js-plotly-plot")).to_be_visible()
    candidate = branch(page, 7)
    after = texts(page, "strip")
    assert after[:7] == before[:7]
    assert after[7].replace(" ", "·").replace("↵\n", "↵") == candidate
    tree = page.locator("#branch-tree .label")
    expect(tree).to_have_text(["first text", "token 8"])
    tree.first.click()
    expect(page.locator("#stats")).not_to_contain_text("branched")
    assert texts(page, "strip") == before
    expect(tree.first).to_have_attribute("aria-pressed", "true")
    box = page.get_by_label("compare this text with").first
    option = page.locator("ul[role=listbox] li", has_text="token 8")

    def is_listed():  # an answer that comes later closes the list
        box.blur()
        box.click()
        page.wait_for_timeout(500)
        return option.count()

    wait_until(is_listed)
    option.click()
    expect(page.locator("#strip-other .token.diverged")).to_have_count(1)
    assert texts(page, "strip-other") == after


def test_a_link_opened_elsewhere_gives_the_same_text(page, browser):
    slide(page, "temperature", 1.15)
    generate(page, "The little fox")
    link = make_link(page)
    expect(link).to_have_value(re.compile("^http.*seed="))
    with browser.new_context() as context:
        other = context.new_page()
        other.goto(link.input_value())
        expect(other.get_by_label("keep this seed")).to_be_checked()
        expect(number_box(other, "temperature")).to_have_value("1.15")
        expect(other.locator("#strip .prompt")).to_have_text("The little fox")
        settle(other)
        assert texts(other, "strip") == texts(page, "strip")


def test_a_page_that_is_loaded_again_shows_its_own_text_and_prompt(page, app_url):
    slide(page, "temperature", 1.15)
    generate(page, "The little fox")
    before = texts(page, "strip")
    page.get_by_label("prompt").first.fill("The little fox and")
    page.wait_for_function(
        "sessionStorage.getItem('deepseek-text').includes('fox and')"
    )  # gradio answers an input later
    page.reload()
    expect(page.locator("#strip .prompt")).to_have_text("The little fox")
    settle(page)
    assert texts(page, "strip") == before
    expect(page.get_by_label("prompt").first).to_have_value("The little fox and")
    expect(number_box(page, "temperature")).to_have_value("1.15")
    expect(page.get_by_label("keep this seed")).not_to_be_checked()
    page.goto(f"{app_url}/?prompt=A+dog&max_new_tokens=3")  # another address has its own
    expect(page.locator("#strip .prompt")).to_have_text("A dog")


@pytest.mark.long
def test_eight_windows_of_one_browser_work(browser, app_url):
    """A browser opens six connections to a host; none must be held by a window that waits."""
    with browser.new_context() as context:
        for _ in range(8):
            window = context.new_page()
            window.goto(app_url, wait_until="commit")
        expect(window.locator("#strip .token").first).to_be_visible()
        generate(window, "The little fox")
