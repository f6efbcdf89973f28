"""What a reader does: generate, watch, stop, and look at the panels."""

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect
from small import randomized
from transformers import MixtralConfig, MixtralForCausalLM

WIDE_AND_PHONE = pytest.mark.parametrize("page", [1280, 375], indirect=True, ids=["wide", "phone"])


def begin(page, prompt=None):
    """Generates, and waits until the text before is gone. (What is told of a short text may be gone before it is seen.)"""
    if prompt:
        page.get_by_label("prompt").first.fill(prompt)
    page.locator("#strip .token").first.evaluate("token => token.classList.add('of-the-last-text')")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#strip .of-the-last-text")).to_have_count(0)


def settle(page):
    expect(page.locator("#stats")).to_contain_text("ended by")


def generate(page, prompt=None):
    begin(page, prompt)
    settle(page)


def texts(page, strip):
    return page.locator(f"#{strip} .token").all_text_contents()


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():  # on a phone the last tabs are behind a menu
        page.get_by_label("More tabs").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def plotted(page, index):
    """The traces that the index-th visible plot has drawn."""
    plot = page.locator(".js-plotly-plot:visible").nth(index)
    expect(plot).to_be_visible()
    return plot.evaluate("plot => plot.data.map(trace => ({x: [...trace.x], type: trace.type}))")


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
    expect(page.get_by_text("times as much")).to_be_visible()
    open_tab(page, "Model")
    expect(page.get_by_text("cache of a token")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@WIDE_AND_PHONE
def test_text_streams_and_both_panels_draw_it(page):
    # Counted in the page itself, for a quick text may have ended by the time that a look from outside comes.
    page.evaluate(
        """() => {
          const strip = document.querySelector('#strip .tokens'); window.counts = [];
          new MutationObserver(() => counts.push(strip.querySelectorAll('.token').length)).observe(strip, {childList: true});
        }"""
    )
    generate(page, "The little fox")
    expect(page.locator("#strip .prompt")).to_have_text("The little fox")
    generated = texts(page, "strip")
    grew = [count for count in page.evaluate("counts") if count < len(generated)]
    assert grew and grew == sorted(grew), grew
    open_tab(page, "Experts")
    expect(page.locator("#experts-strip .tokens")).to_contain_text("The little fox")
    whole = "".join(texts(page, "experts-strip"))
    assert "".join(generated).replace("⏹", "")[:60] in whole
    names = plotted(page, 1)[0]["x"]
    assert any("fox" in name for name in names)
    open_tab(page, "Attention")
    expect(page.locator(".js-plotly-plot:visible .xtick", has_text="fox").first).to_be_attached()
    assert any("fox" in name for name in plotted(page, 0)[0]["x"])


@WIDE_AND_PHONE
def test_stop_keeps_what_is_there(page):
    box = page.locator("label, .form", has_text="new tokens").locator("input[type=number]").last
    box.fill("400")
    box.press("Tab")
    begin(page)
    expect(page.locator("#strip .token").nth(5)).to_be_attached()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_timeout(700)
    count = page.locator("#strip .token").count()
    page.wait_for_timeout(700)
    assert 5 < count == page.locator("#strip .token").count() < 400


def test_same_seed_same_text(page):
    page.get_by_label("keep this seed").check()
    runs = []
    for _ in range(2):
        generate(page)
        runs.append(texts(page, "strip"))
    assert runs[0] == runs[1]


def test_a_token_is_selected_by_click_and_by_key(page):
    page.locator("#strip .token").nth(4).click()
    expect(page.locator("#strip .detail")).to_contain_text("token 5 ")
    page.locator("#strip .tokens").press("ArrowRight")
    expect(page.locator("#strip .detail")).to_contain_text(re.compile(r"token 6 .*probability"))


def test_bad_input_is_told_and_costs_nothing(page):
    before = texts(page, "strip")
    page.get_by_label("prompt").first.fill("   ")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_text("prompt is empty").first).to_be_visible()
    assert texts(page, "strip") == before
    page.get_by_label("prompt").first.fill("word " * 3000)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_text("the model reads").first).to_be_visible()
    assert texts(page, "strip") == before


def test_hostile_text_is_only_text(page):
    hostile = "${1+1} `x` <img src=x onerror=\"document.title='owned'\"> \\u0041 \u202eevil\u202c a\u200bb {{value}}"
    page.get_by_label("prompt").first.fill(hostile)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#strip .prompt")).to_contain_text("${1+1} `x` <img src=x onerror=")
    expect(page.locator("#strip .prompt")).to_contain_text("U+202E")
    settle(page)
    for name in ("Experts", "Attention", "Layers"):
        open_tab(page, name)
        page.wait_for_timeout(1500)
        assert page.locator("img[src=x]").count() == 0
    open_tab(page, "Compare")
    page.locator("textarea:visible").first.fill(hostile)
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#strip-a .prompt")).to_contain_text("<img src=x onerror=")
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "owned"


@WIDE_AND_PHONE
def test_a_selected_token_shows_its_funnel_and_branches(page):
    before = texts(page, "strip")
    page.locator("#strip .token").nth(7).click()
    expect(page.locator("#token-heading")).to_contain_text("Token 8")
    expect(page.locator("#funnel .js-plotly-plot")).to_be_visible()
    page.get_by_text("candidates: click one").click()
    other = page.locator("#candidates tbody button:not([disabled])").first
    wanted = other.text_content()
    other.click()
    expect(page.locator("#stats")).to_contain_text("branched at token 8")
    settle(page)
    after = texts(page, "strip")
    assert after[:7] == before[:7]
    assert after[7].replace(" ", "·").replace("↵\n", "↵") == wanted
    page.get_by_role("button", name="Back to the text before the branch").click()
    expect(page.locator("#stats")).not_to_contain_text("branched")
    assert texts(page, "strip") == before


def test_a_link_opened_elsewhere_gives_the_same_text(page, browser):
    slide(page, "temperature", 1.15)
    page.get_by_label("prompt").first.fill("The little fox")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#strip .prompt")).to_have_text("The little fox")
    settle(page)
    page.get_by_text("keep and share").click()
    page.get_by_role("button", name="Make a link to this text").click()
    link = page.locator("#link").locator("textarea, input")
    expect(link).to_have_value(re.compile("^http.*seed="))
    stranger = browser.new_context().new_page()
    stranger.goto(link.input_value())
    expect(stranger.get_by_label("keep this seed")).to_be_checked()
    temperature = stranger.get_by_label("number input for temperature", exact=True).locator("visible=true").first
    expect(temperature).to_have_value("1.15")
    expect(stranger.locator("#strip .prompt")).to_have_text("The little fox")
    settle(stranger)
    assert texts(stranger, "strip") == texts(page, "strip")
    stranger.context.close()


def test_presets_are_kept_across_a_reload(page):
    page.get_by_text("keep and share").click()
    page.get_by_label("keep these settings as a preset").fill("mine")
    page.get_by_role("button", name="Keep", exact=True).click()
    expect(page.get_by_label("keep these settings as a preset")).to_have_value("")
    page.reload()
    expect(page.locator("#strip .token").first).to_be_visible()
    page.get_by_label("preset", exact=True).first.click()
    page.get_by_role("option", name="mine").click()


@WIDE_AND_PHONE
def test_compare_streams_two_texts_and_marks_where_they_part(page):
    open_tab(page, "Compare")
    assert texts(page, "strip-a") and texts(page, "strip-b")
    expect(page.get_by_text("repeated 4-grams").first).to_be_visible()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#strip-a .token").nth(100)).to_be_attached()
    expect(page.locator("#strip-b .token").nth(100)).to_be_attached()
    expect(page.locator("#strip-a .diverged")).to_have_count(1)
    expect(page.locator("#strip-b .diverged")).to_have_count(1)
    expect(page.get_by_text("repeated 4-grams").first).to_be_visible()
    marked = "all => all.findIndex(e => e.classList.contains('diverged'))"
    (a, place), (b, other) = (
        (texts(page, strip), page.locator(f"#{strip} .token").evaluate_all(marked)) for strip in ("strip-a", "strip-b")
    )
    assert place == other and a[:place] == b[:place] and a[place] != b[place]
    expect(page.get_by_text("repetition penalty").locator("visible=true").first).to_be_visible()


def slide(page, label, value):
    box = page.get_by_label("number input for " + label, exact=True).locator("visible=true").first
    box.fill(str(value))
    box.press("Tab")


@WIDE_AND_PHONE
def test_a_click_shows_what_a_token_looked_at(page):
    open_tab(page, "Attention")
    strip = page.locator("#attention-strip")
    expect(strip.locator(".token").first).to_be_visible()
    plot = page.locator("#attention .js-plotly-plot")
    expect(plot).to_be_visible()
    row = plot.evaluate("plot => [...plot._fullData[0].z[12]]")
    strip.locator(".token").nth(12).click()
    most = max(range(13), key=row.__getitem__)
    title = strip.locator(".token").nth(most)
    expect(title).to_have_attribute("title", re.compile(f"gets {row[most]} % of the attention"))
    assert "rgba(230, 159, 0" in title.evaluate("e => getComputedStyle(e).backgroundColor")
    shares = strip.locator(".token").evaluate_all("all => all.map(e => +/gets (\\d+) %/.exec(e.title)[1])")
    assert shares == row
    slide(page, "layer", 4)  # the token stays selected
    expect(page.locator("#attention .gtitle")).to_have_text("layer 4, head 0")
    expect(strip.locator(".detail")).to_contain_text("token 13 ")


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
def mixture(mixtral, tokenizer, tmp_path_factory):
    """The folder of a Mixtral with other layers and heads than the demo."""
    folder = tmp_path_factory.mktemp("models") / "mixtral"
    config = MixtralConfig(**{**mixtral.config.to_dict(), "num_hidden_layers": 3, "max_position_embeddings": 1024})
    randomized(MixtralForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@WIDE_AND_PHONE
def test_a_model_opened_by_folder_is_that_of_all_tabs(page, mixture):
    open_tab(page, "Model")
    box = page.get_by_label("checkpoint").locator("visible=true").first
    box.fill("/nowhere")
    box.press("Enter")
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.get_by_text("neither a folder nor a Hub id").first).to_be_visible()
    expect(page.locator("#which")).to_contain_text("assets/demo")
    box.fill(mixture)
    box.press("Enter")
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.locator("#which")).to_contain_text(mixture)
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
    expect(page.get_by_text("this model has no latents")).to_be_visible()
    assert len(plotted(page, 0)) == 2
    expect(page.locator("#csv-latent-norms")).to_be_hidden()
    open_tab(page, "Experts")
    expect(page.locator("#experts-strip .key")).to_have_count(4)
    page.reload()  # the address holds the checkpoint
    expect(page.locator("#which")).to_contain_text(mixture)


def test_compare_has_two_checkpoints(page, app_url, mixture):
    page.goto(f"{app_url}/?checkpoint={mixture}")
    expect(page.locator("#which")).to_contain_text(mixture)
    open_tab(page, "Compare")
    before = texts(page, "strip-a")
    page.get_by_text("settings of B").click()
    page.get_by_label("checkpoint").locator("visible=true").last.click()
    page.get_by_role("option", name="assets/demo", exact=True).click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("gridcell", name=mixture)).to_be_visible()  # what differed is told last
    assert texts(page, "strip-a") != before  # the random model's
    expect(page.locator("#strip-b .token").nth(100)).to_be_attached()


def test_a_text_beyond_the_cap_is_drawn_in_windows_that_the_reader_chooses(page, app_url, mixture, tokenizer):
    page.goto(f"{app_url}/?checkpoint={mixture}")
    expect(page.locator("#which")).to_contain_text(mixture)
    open_tab(page, "Attention")
    expect(page.locator("#attention .gtitle")).to_have_text("layer 1, head 0")
    text = "fox ran over 9 dogs. " * 80
    tokens = len(tokenizer(text)["input_ids"])
    assert 600 < tokens <= 1024
    page.locator("textarea:visible").first.fill(text)
    page.get_by_role("button", name="Look", exact=True).locator("visible=true").click()
    expect(page.get_by_text(f"{tokens:,} tokens · drawn: 1 to 512; a range of at most 512 can be set")).to_be_visible()
    page.get_by_label("tokens", exact=True).fill(f"300-{tokens}")
    page.get_by_label("tokens", exact=True).press("Enter")
    expect(page.get_by_text(f"drawn: 300 to {tokens:,}")).to_be_visible()
    assert len(page.locator("#attention .js-plotly-plot").evaluate("plot => [...plot._fullData[0].x]")) == tokens - 299


def test_a_link_opens_the_checkpoint_of_its_text(page, browser, app_url, mixture):
    link = f"{app_url}/?" + urlencode({"prompt": "Once upon", "seed": 3, "max_new_tokens": 9, "checkpoint": mixture})
    page.goto(link)
    expect(page.locator("#which")).to_contain_text(mixture)
    settle(page)
    expect(page.locator("#stats")).to_contain_text("seed 3")
    expect(page.locator("#strip .prompt")).to_have_text("Once upon")
    page.get_by_text("keep and share").click()
    page.get_by_role("button", name="Make a link to this text").click()
    made = page.locator("#link").locator("textarea, input")
    expect(made).to_have_value(re.compile("checkpoint="))
