"""The Walk: its picture, what it tells about a part, its steps, and what if an expert had not run."""

import pytest
from playwright.sync_api import expect
from ui.browser.actions import open_tab, texts

from deepseek import trace
from deepseek.interpret.what_if import what_if
from deepseek.ui.plots.style import show_invisible


@pytest.fixture
def page(one_page):
    return one_page


def part(page, kind):
    return page.locator(f"#walk .part.{kind}").first


def facts(page):
    """The numbers told about the chosen part, row by row."""
    return [row.locator("th, td").all_text_contents() for row in page.locator("#walk .facts tbody tr").all()]


def at(page, position):
    expect(page.locator("#walk .text .token").nth(position)).to_have_attribute("aria-selected", "true")


def test_a_token_is_walked_through_the_model(page, demo):
    text = "".join([page.locator("#strip .prompt").text_content(), *texts(page, "strip")])
    traced = trace(*demo, text)
    open_tab(page, "Walk")
    expect(part(page, "token")).to_be_visible()
    prompt = len(demo[1]("Once upon a time")["input_ids"])
    at(page, prompt)  # the first token that was sampled
    page.locator("#walk .text .token").nth(20).click()
    at(page, 20)
    walk = traced.walk(20)
    expect(page.locator("#walk .part.token .large")).to_have_text(show_invisible(walk["token"]))
    expect(page.locator("#walk .part.layer")).to_have_count(6)
    expect(page.locator("#walk .part.head")).to_have_count(9)  # one layer is open

    part(page, "router").press("Enter")  # the numbers in full, the definition, and its paper
    router = walk["layers"][1]["router"]
    for row, score, bias in zip(facts(page), router["scores"], router["bias"], strict=True):
        assert abs(float(row[1]) - score) < 1e-2 and abs(float(row[2]) - bias) < 1e-6
    detail = page.locator("#walk .detail")
    expect(detail).to_contain_text("chosen = top-k(s + b)")
    assert "arxiv.org/abs/2412.19437" in detail.locator(".paper a").get_attribute("href")
    detail.get_by_role("button", name="matrix row of 3").click()
    expect(detail).to_contain_text("model.layers.1.mlp.gate.weight[3]: 576 numbers")

    expert, runner_up = router["chosen"][0]["expert"], router["runner_up"]
    for label, action in ((f"expert {expert} off", "off"), (f"{runner_up} in place of {expert}", "runner-up")):
        detail.get_by_role("button", name=label, exact=True).click()
        expected = what_if(traced, 20, 1, expert, action)
        ran = ", ".join(f"{one['expert']}" for one in expected["chosen"] if one["weight"])
        expect(detail.locator(".kl")).to_contain_text(f"experts that ran: {ran.split(',')[0]}")
        told = float(detail.locator(".kl").get_attribute("data-tip"))
        assert abs(told - expected["kl"]) < 0.05 * expected["kl"] + 1e-4
        assert detail.locator(".sides .wordbar").count() == 16

    head = part(page, "head")
    head.hover()
    assert page.locator("#walk .text .token[style*=background]").count() > 1  # the text, by the head's weights
    page.locator("#walk .part.experts .score").first.hover()
    expect(page.locator("#walk .tip")).to_contain_text(f"expert {expert}, weight 0.")

    page.get_by_role("button", name="Open or close all layers").click()
    expect(page.locator("#walk .part.head")).to_have_count(54)
    stages = page.locator("#walk .part.sampler")
    names = page.locator("#walk .part.sampler .name").all_text_contents()
    assert names[:3] == ["model", "repetition", "temperature"]
    off = stages.last.text_content()
    assert "min-p" in off and "n-gram" in off and not set(names) & set(off.split(", "))
    page.get_by_role("button", name="Open or close all layers").click()
    expect(page.locator("#walk .part.head")).to_have_count(0)
    page.locator("#walk .part.layer").nth(1).press("Enter")
    expect(page.locator("#walk .part.head")).to_have_count(9)


def test_steps_keys_and_other_tabs_move_the_walk(page):
    open_tab(page, "Walk")
    expect(part(page, "token")).to_be_visible()
    first = int(page.locator("#walk .text .chosen").get_attribute("id").removeprefix("walk-token-"))
    part(page, "layer").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    at(page, first + 1)
    page.wait_for_function("document.activeElement.dataset.part")  # the focus stays on the part
    page.keyboard.press("ArrowLeft")
    at(page, first)
    walk = page.locator("#walk")
    page.evaluate("""() => {
        window.walked = [];
        const chosen = () => +document.querySelector('#walk .text .chosen')?.id.split('-').at(-1);
        new MutationObserver(() => chosen() === walked.at(-1) || walked.push(chosen()))
            .observe(document.querySelector('#walk'), {subtree: true, childList: true, attributes: true});
    }""")
    walk.get_by_role("button", name="play", exact=True).click()
    page.wait_for_function(f"walked.includes({first + 2})")  # it goes on while this looks
    walked = [position for position in page.evaluate("walked") if position != first]
    assert walked[:2] == [first + 1, first + 2]
    walk.get_by_role("button", name="pause").click()
    position = int(walk.locator(".text .chosen").get_attribute("id").removeprefix("walk-token-"))
    expect(walk.locator(".part.token .quiet")).to_contain_text(f"token {position + 1} of")  # the picture follows
    open_tab(page, "Layers")
    layers = page.locator("#layers-strip .token")
    layers.nth(3).click()
    open_tab(page, "Walk")
    at(page, 3)
    expect(walk.locator(".part.token .quiet")).to_contain_text("token 4 of")
    for width in (375, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
        drawn = "document.querySelector('#walk svg').viewBox.baseVal.width"
        page.wait_for_function(f"Math.abs({drawn} - document.querySelector('#walk .stage').clientWidth) < 60")
    assert (
        page.evaluate("performance.getEntriesByName('walk', 'measure').length") > 3
    )  # as tests/measure/walk.py reads them


def test_an_answer_about_one_token_is_not_shown_under_the_next(page):
    open_tab(page, "Walk")
    page.locator("#walk .text .token").nth(20).click()
    expect(page.locator("#walk .part.token .quiet")).to_contain_text("token 21 of")
    part(page, "router").press("Enter")
    held = []
    page.route("**/queue/join**", lambda route: route.continue_() if held else held.append(route))
    page.locator("#walk .detail .buttons button").first.click()
    expect(page.locator("#walk .detail .answer")).to_have_text("Computing…")
    page.locator("#walk .text .token").nth(21).click()
    expect(page.locator("#walk .part.token .quiet")).to_contain_text("token 22 of")
    with page.expect_response("**/queue/data**"):
        page.unroute("**/queue/join**")
    page.wait_for_timeout(1000)
    expect(page.locator("#walk .detail .answer")).to_have_text("")
