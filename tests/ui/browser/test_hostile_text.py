"""Markup and control characters stay text in every panel, label, hover, download and refusal, and nothing in them runs."""

import csv
import json
import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect
from small import randomized
from ui.browser.actions import (
    button,
    fill,
    open_form,
    open_page,
    open_tab,
    settle,
    slide,
    visible_box,
    watched_page,
)  # fmt: skip

from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.training.config import TrainConfig
from deepseek.training.trainer import train
from deepseek.ui.plots.style import show_invisible

# What runs calls canary(); what is fetched has "evil" in its address.
MARKUP = [
    "<img src=/evil onerror=canary()>",
    "<script>canary()</script>",
    "</textarea></style><svg/onload=canary()>",
    '"><iframe srcdoc="<script>parent.canary()</script>">',
    "${canary()} `${canary()}` {{canary()}}",
    "\\u003cimg src=/evil onerror=canary()\\u003e",
    "[x](javascript:canary()) ![x](/evil.png)",
    '<a href="javascript:canary()">x</a>',
    "$$\\href{javascript:canary()}{x}$$ \\(x\\)",
    "%{text} %{x} <extra>y</extra> <b>z</b>",
    "&lt;img src=/evil onerror=canary()&gt; &#60;b&#62;",
    "=cmd|' /C calc'!A0",
]
CHARACTERS = [
    "\u202edlrow\u202c \u2066x\u2069 \u200fשלום\u200e",
    "a\u200bb\u200cc\u200dd\ufeffe\u2060f",
    "Z" + "\u0301\u0323\u0360" * 8,
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "a\x01b\x1b[31mc\x07d\x7f\x85e",
    "line\u2028paragraph\u2029end",
    "﷽ ＜script＞ \U000e0041 \ue000",
]
TOKENS = [  # short enough to be a whole label
    "<b>x</b>", "<i>", "<a href=//evil>", "<br>", "&lt;b&gt;", "%{x}", "%{customdata}", "${canary()}", "$$x^2$$", "`x`",
    "</script>", "=1+1", "@SUM(1)", '","x', "\u202ex", "a\x01\x1bb", "👩‍👧",
]  # fmt: skip
CAUGHT = (
    "img[src*=evil], iframe[srcdoc], [onerror], [onload], a[href^='javascript:'], a[href*=evil], svg a[*|href*=evil]"
)


@pytest.fixture
def page(context, training_app):
    """The page; fails at the end if anything ran, was fetched, opened a dialog or a window, or became an element."""
    url, _ = training_app
    with watched_page(context, url) as (page, complaints):
        page.url_of_app = url
        page.add_init_script("window.canary = () => { window.ran = true }")
        page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        page.on("popup", lambda popup: complaints.append(popup.url))
        page.on("request", lambda r: complaints.append(r.url) if r.url.endswith(("/evil", "evil.png")) else None)
        open_page(page, url)
        yield page
        harmless(page)


def harmless(page):
    """Checks that nothing ran and no text became an element."""
    assert not page.evaluate("window.ran")
    assert page.locator(CAUGHT).count() == 0


def hovered(page) -> str:
    """All hover texts of plotly while the mouse moves over the visible figures."""
    labels = []
    page.wait_for_timeout(300)  # what is asked for is pending a moment later
    page.wait_for_function("!document.querySelector('.pending')")
    for plot in page.locator(".js-plotly-plot:visible").all():
        expect(plot).to_be_visible()  # another may have replaced it
        plot.evaluate("plot => plot.scrollIntoView({block: 'center'})")
        box = plot.bounding_box()
        for part in (0.2, 0.35, 0.5, 0.65):
            page.mouse.move(box["x"] + part * box["width"], box["y"] + part * box["height"])
            page.wait_for_timeout(60)
            labels += plot.locator(".hoverlayer text").all_text_contents()
        harmless(page)
    return "\n".join(labels)


def assert_hover(page, name, column, text):
    """Moves the mouse to the middle of a column of the plot with this id until plotly's hover text contains `text`.

    plotly follows the mouse a little later, and not at all to a figure that replaces the one under the mouse.
    """
    plot = page.locator(f"#{name} .js-plotly-plot")
    plot.scroll_into_view_if_needed()
    x, y = plot.evaluate(
        """(plot, column) => {
          const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
          return [box.x + xaxis._offset + xaxis.c2p(column), box.y + yaxis._offset + yaxis._length / 2];
        }""",
        column,
    )
    for tries in range(100):
        page.mouse.move(x + tries % 2, y)
        page.wait_for_timeout(80)
        hover = plot.locator(".hoverlayer text").all_text_contents()
        if any(text in line for line in hover):
            return
    raise AssertionError(f"{text!r} is not in {hover}")


def generate(page, prompt):
    page.get_by_label("prompt").first.fill(prompt)
    button(page, "Generate").click()


def test_every_panel_shows_it_as_text(page):
    lines, drawn = [*MARKUP, *CHARACTERS], [MARKUP[0], "⟨U+202E⟩dlrow"]
    hostile = "\n".join(lines)

    def shows(strip):
        for text in drawn:
            expect(page.locator(strip)).to_contain_text(text)

    slide(page, "max new tokens", 4)
    generate(page, hostile)
    shows("#strip .prompt")
    settle(page)
    for text in filter(str.isprintable, lines):
        expect(page.locator("#strip .prompt")).to_contain_text(text)
    assert hovered(page)
    for name in ("Experts", "Attention", "Layers"):
        open_tab(page, name)
        expect(visible_box(page, "text")).to_have_value(re.compile(re.escape(lines[-1])))
        expect(page.locator(".js-plotly-plot:visible").first).to_be_visible()
        if name != "Layers":
            shows(".strip:visible .tokens")
        assert hovered(page)
    open_tab(page, "Walk")
    expect(page.locator("#walk .part").first).to_be_visible()
    expect(page.locator("#walk .text")).to_contain_text(MARKUP[0])
    open_tab(page, "Experts")
    open_tab(page, "Long text")
    visible_box(page, "text").fill(hostile * 3)
    note = page.locator("#long-text-note").text_content()
    button(page, "Trace").click()
    expect(page.locator("#long-text-note")).not_to_have_text(note)
    assert hovered(page)
    open_tab(page, "Domains")
    visible_box(page, "C").fill(hostile)
    before = page.locator("#domains-summary").text_content()
    button(page, "Compare routing").click()
    expect(page.locator("#domains-summary")).not_to_have_text(before)
    for tab, go, strip in (("Intervene", "Generate both", "changed"), ("Compare", "Compare", "a")):
        open_tab(page, tab)
        visible_box(page, "prompt").fill(hostile)
        button(page, go).click()
        shows(f"#strip-{strip} .prompt")


@pytest.fixture(scope="module")
def hostile_model(tokenizer, tmp_path_factory):
    """The folder of a model with a hostile name and card, whose vocabulary holds TOKENS."""
    folder = tmp_path_factory.mktemp("models") / "`x`<img src=x onerror=canary()> $$x$$ *b* [x](javascript:canary())"
    tokenizer.save_pretrained(folder)
    vocabulary = type(tokenizer).from_pretrained(folder)
    vocabulary.add_tokens(TOKENS)
    model = randomized(DeepseekV3ForCausalLM(preset("tiny", vocab_size=len(vocabulary), max_position_embeddings=512)))
    model.save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    (folder / "README.md").write_text("\n\n".join(MARKUP))
    return str(folder)


def test_tokens_that_are_hostile_stay_text_in_labels_hovers_and_files(page, hostile_model):
    query = {"prompt": "".join(TOKENS), "seed": 1, "max_new_tokens": 6, "checkpoint": hostile_model}
    page.goto(f"{page.url_of_app}/?{urlencode(query)}")
    expect(page.locator("#which")).to_contain_text("<img src=x onerror=canary()> $$x$$ *b* [x](javascript:canary())")
    settle(page)
    open_tab(page, "Walk")
    expect(page.locator("#walk .text")).to_contain_text("".join(TOKENS[:4]))
    for position in (1, 6):
        page.locator("#walk .text .token").nth(position).click()
        expect(page.locator("#walk .part.token .large")).to_have_text(TOKENS[position - 1])
        for part in ("layer", "head", "logits"):
            page.locator(f"#walk .part.{part}").first.press("Enter")
            harmless(page)
    open_tab(page, "Experts")
    expect(page.locator("#experts-strip")).to_contain_text(TOKENS[0])
    strip = page.locator("#experts-strip .token").all_text_contents()
    assert set(TOKENS[:14]) <= set(strip)
    labels = page.locator("#expert-map .xtick text")
    expect(labels.filter(has_text="<b>x</b>")).to_have_count(1)
    assert {show_invisible(token) for token in TOKENS} <= set(labels.all_text_contents())
    page.locator("#experts-strip .token").nth(1).click()
    expect(page.locator("#token-path .gtitle")).to_contain_text("<b>x</b>")
    for position, token in enumerate(TOKENS, 1):
        assert_hover(page, "expert-map", position, f"{position + 1} {show_invisible(token)}")
    open_tab(page, "Long text")
    visible_box(page, "text").fill("".join(TOKENS) * 3)
    button(page, "Trace").click()
    cells = page.locator("#expert-tokens .heatmaplayer text")
    expect(cells.filter(has_text="=1+1").first).to_be_attached()
    hovered(page)
    with page.expect_download() as download:
        page.locator("#csv-expert-tokens").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        texts = {row["text"].split(": ")[0] for row in csv.DictReader(file) if row["text"]}
    assert {"'=1+1", "'@SUM(1)", "<b>x</b>", "&lt;b&gt;", '","x'} <= texts
    for name in ("Attention", "Layers"):
        open_tab(page, name)
        expect(page.locator(".js-plotly-plot:visible .xtick", has_text="<b>x</b>").first).to_be_attached()
        assert hovered(page)
    open_tab(page, "Model")
    expect(page.get_by_text("model card")).to_be_visible()
    page.get_by_text("model card").click()
    expect(page.locator(".cm-content:visible")).to_contain_text(MARKUP[0])


def test_a_refusal_quotes_it_as_text(page):
    def refused(text):
        expect(page.get_by_test_id("toast-text").filter(has_text=text).first).to_be_visible()
        harmless(page)
        page.evaluate("document.querySelectorAll('[data-testid=toast-close]').forEach(one => one.click())")

    short = "<img src=/evil onerror=canary()>"
    open_tab(page, "Attention")
    visible_box(page, "tokens").fill(short)
    visible_box(page, "tokens").press("Enter")
    refused(f"tokens are '{short}'")
    open_tab(page, "Model")
    for text in [text for text in MARKUP if not set(text) & set("'\\")]:
        visible_box(page, "checkpoint").fill(text)
        visible_box(page, "checkpoint").press("Enter")
        button(page, "Open").click()
        refused(text)
    open_tab(page, "Train")
    open_form(page)
    fill(page, "name", short)
    page.get_by_label("Hub dataset").check()
    fill(page, "Hub id", "<b>x</b> ${canary()}")
    button(page, "Start").click()
    refused(f"name is '{short}'")
    open_tab(page, "Playground")
    for word in ("a" * 100_000, "🦊" * 25_000):
        generate(page, word)
        refused("the model reads")
    query = {"prompt": "x", "order": short}
    page.goto(f"{page.url_of_app}/?{urlencode(query)}")
    refused(short)


def test_a_run_and_a_file_with_a_hostile_name(page, training_app, tmp_path):
    _, root = training_app
    name = "`x`<img src=x onerror=canary()> =1 $$x$$"
    text = tmp_path / "<img src=x onerror=canary()>.txt"
    text.write_text("\n".join(MARKUP) * 40)
    small = dict(preset="tiny", max_steps=4, batch_size=2, max_seq_len=32, save_every=2, sample_every=4, eval_every=0)
    list(train(TrainConfig(name=name, root=str(root), data=[str(text)], **small)))
    open_tab(page, "Train")
    expect(visible_box(page, "run")).to_have_value(re.compile(re.escape(name)))
    expect(page.locator("#loss .legendtext").first).to_contain_text("`x`<img")
    assert hovered(page)
    button(page, "Download").click()
    with page.expect_download() as download:
        page.locator("#archive a[download]").click()
    assert "/" not in download.value.suggested_filename and download.value.suggested_filename.endswith(".zip")
    button(page, "Open in the Playground").click()
    expect(page.locator("#which")).to_contain_text("<img src=x onerror=canary()> =1")
    settle(page)


def test_a_link_and_a_saved_preset_are_text(page):
    hostile = MARKUP[0]
    page.goto(f"{page.url_of_app}/?{urlencode({'prompt': hostile, 'seed': 1, 'max_new_tokens': 3, 'stop': MARKUP[1]})}")
    expect(page.locator("#strip .prompt")).to_have_text(hostile)
    settle(page)
    page.get_by_text("save and share").click()
    page.get_by_label("save these settings as a preset").fill(hostile)
    button(page, "Save").click()
    expect(visible_box(page, "preset")).to_have_value(hostile)
    page.reload()
    expect(page.locator("#strip .prompt")).to_have_text(hostile)  # the first sample has ended, too
    settle(page)
    visible_box(page, "preset").click()
    expect(page.get_by_role("option", name=hostile)).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_text("save and share").click()
    button(page, "Export as JSON, with every trace").click()
    with page.expect_download() as download:
        page.locator("#export a[download]").click()
    with open(download.value.path(), encoding="utf-8") as file:
        assert json.load(file)["prompt"] == hostile
    assert download.value.suggested_filename == "generation-seed-1.json"
