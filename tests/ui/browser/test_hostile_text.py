"""Text that would like to be more: in every panel, label, hover, download and refusal it stays text, and nothing runs."""

import csv
import json
import re
import subprocess
import sys
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect
from running import LEFT
from test_experts import button, visible_box
from test_page import open_tab, settle, slide
from test_training import fill, open_form

from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.ui.plots.style import show_invisible

# Whatever runs calls canary(); whatever is fetched has "evil" in its address.
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
TOKENS = [  # short enough to be a label as they are
    "<b>x</b>",
    "<i>",
    "<a href=//evil>",
    "<br>",
    "&lt;b&gt;",
    "%{x}",
    "%{customdata}",
    "${canary()}",
    "$$x^2$$",
    "`x`",
    "</script>",
    "=1+1",
    "@SUM(1)",
    '","x',
    "\u202ex",
    "a\x01\x1bb",
    "👩‍👧",
]
CAUGHT = (
    "img[src*=evil], iframe[srcdoc], [onerror], [onload], a[href^='javascript:'], a[href*=evil], svg a[*|href*=evil]"
)


@pytest.fixture
def page(browser, training_app):
    """The page; fails at the end if anything ran, was fetched, opened a dialog, or became an element."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.url_of_app = training_app[0]
    complaints = []
    page.add_init_script("window.canary = () => { window.ran = true }")
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
    page.on("popup", lambda popup: complaints.append(popup.url))
    ours = (training_app[0], "data:", "blob:")
    page.on(
        "request",
        lambda r: (
            complaints.append(r.url) if not r.url.startswith(ours) or r.url.endswith(("/evil", "evil.png")) else 0
        ),
    )
    page.goto(page.url_of_app)
    expect(page.locator("#strip .token").first).to_be_visible()
    yield page
    harmless(page)
    page.close()
    assert not [complaint for complaint in complaints if not complaint.startswith(LEFT)]


def harmless(page):
    """Nothing ran, and no text has become an element."""
    assert not page.evaluate("window.ran")
    assert page.locator(CAUGHT).count() == 0


def hovered(page) -> str:
    """All that plotly says while the mouse goes over the figures that are seen."""
    said = []
    page.wait_for_timeout(800)  # what follows a new text has been drawn
    for plot in page.locator(".js-plotly-plot:visible").all():
        plot.evaluate("plot => plot.scrollIntoView({block: 'center'})")
        box = plot.bounding_box()
        for part in (0.2, 0.35, 0.5, 0.65):
            page.mouse.move(box["x"] + part * box["width"], box["y"] + part * box["height"])
            page.wait_for_timeout(60)
            said += plot.locator(".hoverlayer text").all_text_contents()
        harmless(page)
    return "\n".join(said)


def hovered_at(page, name, column) -> str:
    """What plotly says of the middle of a column of the plot with this id."""
    plot = page.locator(f"#{name} .js-plotly-plot")
    plot.scroll_into_view_if_needed()
    x, y = plot.evaluate(
        """(plot, column) => {
          const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
          return [box.x + xaxis._offset + xaxis.c2p(column), box.y + yaxis._offset + yaxis._length / 2];
        }""",
        column,
    )
    page.mouse.move(x, y)
    expect(plot.locator(".hoverlayer text").first).to_be_attached()
    page.wait_for_timeout(80)  # plotly shows the newest place a little later
    return "\n".join(plot.locator(".hoverlayer text").all_text_contents())


def generate(page, prompt):
    page.get_by_label("prompt").first.fill(prompt)
    button(page, "Generate").click()


@pytest.mark.parametrize("texts", [MARKUP, CHARACTERS], ids=["markup", "characters"])
def test_every_panel_shows_it_as_text(page, texts):
    hostile = "\n".join(texts)
    slide(page, "new tokens", 4)
    generate(page, hostile)
    first = texts[0] if texts is MARKUP else "⟨U+202E⟩dlrow"
    expect(page.locator("#strip .prompt")).to_contain_text(first)
    settle(page)
    for text in texts:
        if text.isprintable():
            expect(page.locator("#strip .prompt")).to_contain_text(text)
    assert hovered(page)
    for name in ("Experts", "Attention", "Layers"):
        open_tab(page, name)
        expect(visible_box(page, "text")).to_have_value(re.compile(re.escape(texts[-1])))
        expect(page.locator(".js-plotly-plot:visible").first).to_be_visible()
        if name != "Layers":
            strip = page.locator(".strip:visible .tokens")
            expect(strip).to_contain_text(first)
        assert hovered(page)
    open_tab(page, "Experts")
    open_tab(page, "Longer")
    visible_box(page, "text").fill(hostile * 3)
    note = page.locator("#longer-note").text_content()
    button(page, "Read").click()
    expect(page.locator("#longer-note")).not_to_have_text(note)
    assert hovered(page)
    open_tab(page, "Kinds")
    visible_box(page, "C").fill(hostile)
    before = page.locator("#kinds-summary").text_content()
    button(page, "Compare the routing").click()
    expect(page.locator("#kinds-summary")).not_to_have_text(before)
    for tab, go, strip in (("Intervene", "Write both", "changed"), ("Compare", "Compare", "a")):
        open_tab(page, tab)
        visible_box(page, "prompt").fill(hostile)
        button(page, go).click()
        expect(page.locator(f"#strip-{strip} .prompt")).to_contain_text(first)


@pytest.fixture(scope="module")
def spiteful(tokenizer, tmp_path_factory):
    """The folder of a model whose words, name and card are hostile."""
    folder = tmp_path_factory.mktemp("models") / "`x`<img src=x onerror=canary()> $$x$$ *b* [x](javascript:canary())"
    words = load_words(tokenizer, tmp_path_factory)
    model = DeepseekV3ForCausalLM(preset("tiny", vocab_size=len(words), max_position_embeddings=512)).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "README.md").write_text("\n\n".join(MARKUP))
    return str(folder)


def load_words(tokenizer, tmp_path_factory):
    """A copy of the tokenizer, in which each of TOKENS is a word."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer.save_pretrained(folder)
    words = type(tokenizer).from_pretrained(folder)
    words.add_tokens(TOKENS)
    return words


def test_tokens_that_are_hostile_stay_text_in_labels_hovers_and_files(page, spiteful):
    query = {"prompt": "".join(TOKENS), "seed": 1, "max_new_tokens": 6, "checkpoint": spiteful}
    page.goto(f"{page.url_of_app}/?{urlencode(query)}")
    expect(page.locator("#which")).to_contain_text("<img src=x onerror=canary()> $$x$$ *b* [x](javascript:canary())")
    settle(page)
    open_tab(page, "Experts")
    expect(page.locator("#experts-strip")).to_contain_text(TOKENS[0])
    shown = page.locator("#experts-strip .token").all_text_contents()
    assert set(TOKENS[:14]) <= set(shown)
    labels = page.locator("#expert-map .xtick text")
    expect(labels.filter(has_text="<b>x</b>")).to_have_count(1)
    assert {show_invisible(token) for token in TOKENS} <= set(labels.all_text_contents())
    page.locator("#experts-strip .token").nth(1).click()
    expect(page.locator("#token-path .gtitle")).to_contain_text("<b>x</b>")
    for place, token in enumerate(TOKENS, 1):
        assert f"{place} {show_invisible(token)}" in hovered_at(page, "expert-map", place)
    open_tab(page, "Longer")
    visible_box(page, "text").fill("".join(TOKENS) * 3)
    button(page, "Read").click()
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
    for text in [one for one in MARKUP if "'" not in one and "\\" not in one]:
        visible_box(page, "checkpoint").fill(text)
        visible_box(page, "checkpoint").press("Enter")
        button(page, "Open").click()
        refused(text)
    open_tab(page, "Train")
    open_form(page)
    fill(page, "name", short)
    page.get_by_label("a data set of the Hub").check()
    fill(page, "id on the Hub", "<b>x</b> ${canary()}")
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
    settings = ["--name", name, "--preset", "tiny", "--steps", "4", "--batch-size", "2", "--context", "32",
                "--checkpoint-every", "2", "--sample-every", "4", "--valid-every", "0", "--data", text]  # fmt: skip
    subprocess.run([sys.executable, "-m", "deepseek.train", "--root", root, *settings], check=True, timeout=120)
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


def test_a_link_and_a_kept_preset_are_text(page):
    hostile = MARKUP[0]
    page.goto(f"{page.url_of_app}/?{urlencode({'prompt': hostile, 'seed': 1, 'max_new_tokens': 3, 'stop': MARKUP[1]})}")
    expect(page.locator("#strip .prompt")).to_have_text(hostile)
    settle(page)
    page.get_by_text("keep and share").click()
    page.get_by_label("keep these settings as a preset").fill(hostile)
    button(page, "Keep").click()
    expect(visible_box(page, "preset")).to_have_value(hostile)
    page.reload()
    expect(page.locator("#strip .prompt")).to_have_text(hostile)  # the example that comes first has ended, too
    settle(page)
    visible_box(page, "preset").click()
    expect(page.get_by_role("option", name=hostile)).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_text("keep and share").click()
    button(page, "Export as JSON, with every trace").click()
    with page.expect_download() as download:
        page.locator("#export a[download]").click()
    with open(download.value.path(), encoding="utf-8") as file:
        assert json.load(file)["prompt"] == hostile
    assert download.value.suggested_filename == "generation-seed-1.json"
