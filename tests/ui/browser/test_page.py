"""What a user does: generate, watch, stop, and look at the panels."""

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect
from small import randomized
from transformers import MixtralConfig, MixtralForCausalLM
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
)  # fmt: skip

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
    page.get_by_label("compare this text with").first.click()
    page.locator("ul[role=listbox] li", has_text="token 8").click()
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
    rows.locator(".label").first.press("Enter")
    expect(rows.first).to_have_class("row whole")
    page.get_by_role("button", name="Stop").locator("visible=true").last.click()
    expect(page.locator("#sweep .js-plotly-plot")).to_be_visible()


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
    page.wait_for_function("before => JSON.stringify([...document.querySelector("
                           "'#attention-received .js-plotly-plot')._fullData[0].y]) !== before",
                           arg=str(before).replace(" ", ""))  # fmt: skip
    page.get_by_label("tokens", exact=True).fill("5-24")
    page.get_by_label("tokens", exact=True).press("Enter")
    expect(page.get_by_text("drawn: 5 to 24")).to_be_visible()
    assert len(plot.evaluate(bars)) == 20
    page.get_by_label("tokens", exact=True).fill("24-5")
    page.get_by_label("tokens", exact=True).press("Enter")
    expect(page.get_by_text("it must be a range such as").first).to_be_visible()


@pytest.fixture(scope="module")
def moe_folder(mixtral, tokenizer, tmp_path_factory):
    """The folder of a Mixtral whose numbers of layers and heads are not the demo's."""
    folder = tmp_path_factory.mktemp("models") / "mixtral"
    config = MixtralConfig(**{**mixtral.config.to_dict(), "num_hidden_layers": 3, "max_position_embeddings": 1024})
    randomized(MixtralForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_opened_by_folder_is_that_of_all_tabs(page, moe_folder):
    open_tab(page, "Model")
    box = page.get_by_label("checkpoint").locator("visible=true").first
    expect(box).to_have_value("assets/demo")
    box.fill("/nowhere")
    box.press("Enter")
    button(page, "Open").click()
    expect(page.get_by_text("neither a folder nor a Hub id").first).to_be_visible()
    expect(page.locator("#which")).to_contain_text("assets/demo")
    box.fill(moe_folder)
    box.press("Enter")
    button(page, "Open").click()
    expect(page.locator("#which")).to_contain_text(moe_folder)
    expect(page.get_by_text("MixtralForCausalLM")).to_be_visible()
    open_tab(page, "Playground")
    settle(page)
    expect(page.locator("#token-heading")).to_contain_text("layer 0:")  # the demo's first layer has no experts
    open_tab(page, "Attention")
    expect(page.locator("#attention .gtitle")).to_have_text("layer 1, head 0")
    expect(page.locator("#attention-maps .js-plotly-plot").get_by_text("head 3")).to_be_visible()
    expect(page.locator("#attention-maps .js-plotly-plot").get_by_text("head 4")).to_have_count(0)
    layer = page.get_by_label("range slider for layer", exact=True).locator("visible=true")
    expect(layer).to_have_attribute("max", "2")
    open_tab(page, "Layers")
    expect(page.get_by_text("this model has no latent attention")).to_be_visible()
    assert len(plotted(page, 0)) == 2
    expect(page.locator("#csv-latent-norms")).to_be_hidden()
    open_tab(page, "Experts")
    expect(page.locator("#experts-strip .key")).to_have_count(4)
    page.reload()  # the address holds the checkpoint
    expect(page.locator("#which")).to_contain_text(moe_folder)


def test_compare_has_two_checkpoints(page, app_url, moe_folder):
    page.goto(f"{app_url}/?checkpoint={moe_folder}")
    expect(page.locator("#which")).to_contain_text(moe_folder)
    open_tab(page, "Compare")
    before = texts(page, "strip-a")
    page.get_by_text("settings of B").click()
    page.get_by_label("checkpoint").locator("visible=true").last.click()
    page.get_by_role("option", name="assets/demo", exact=True).click()
    button(page, "Compare").click()
    expect(page.get_by_role("gridcell", name=moe_folder)).to_be_visible()  # the settings that differ are shown last
    assert texts(page, "strip-a") != before  # the random model's
    expect(page.locator("#strip-b .token").nth(100)).to_be_attached()


def test_a_text_above_the_limit_is_drawn_in_ranges_that_the_user_chooses(page, app_url, moe_folder, tokenizer):
    page.goto(f"{app_url}/?checkpoint={moe_folder}")
    expect(page.locator("#which")).to_contain_text(moe_folder)
    open_tab(page, "Attention")
    expect(page.locator("#attention .gtitle")).to_have_text("layer 1, head 0")
    box = visible_box(page, "text")
    expect(box).not_to_have_value(re.compile("there was"))  # it has the text of this model, and no newer one comes
    text = "fox ran over 9 dogs. " * 80
    tokens = len(tokenizer(text)["input_ids"])
    assert 600 < tokens <= 1024
    box.fill(text)
    button(page, "Trace").locator("visible=true").click()
    expect(
        page.get_by_text(f"{tokens:,} tokens · drawn: 1 to 512; “tokens” takes a range of at most 512")
    ).to_be_visible()
    page.get_by_label("tokens", exact=True).fill(f"300-{tokens}")
    page.get_by_label("tokens", exact=True).press("Enter")
    expect(page.get_by_text(f"drawn: 300 to {tokens:,}")).to_be_visible()
    assert len(page.locator("#attention .js-plotly-plot").evaluate("plot => [...plot._fullData[0].x]")) == tokens - 299


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


def test_a_link_opens_the_checkpoint_of_its_sample(page, browser, app_url, moe_folder):
    settings = {"max_new_tokens": 9, "temperature": 7.25, "stop": "\n\n"}  # a slider ends at 2, a line has no line end
    page.goto(f"{app_url}/?" + urlencode({"prompt": "Once upon", "seed": 3, "checkpoint": moe_folder, **settings}))
    expect(page.locator("#which")).to_contain_text(moe_folder)
    settle(page)
    expect(page.locator("#stats")).to_contain_text("seed 3")
    expect(page.locator("#strip .prompt")).to_have_text("Once upon")
    generate(page)
    expect(make_link(page)).to_have_value(re.compile("temperature=7.25&.*stop=%0A%0A&seed=3&checkpoint="))


def test_eight_windows_of_one_browser_work(browser, app_url):
    """A browser opens six connections to a host; none must be held by a window that waits."""
    with browser.new_context() as context:
        for _ in range(8):
            window = context.new_page()
            window.goto(app_url, wait_until="commit")
        expect(window.locator("#strip .token").first).to_be_visible()
        generate(window, "The little fox")
