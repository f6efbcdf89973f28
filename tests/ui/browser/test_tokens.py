"""The playground's tokens: what a reader sees of each, sets for the next, and keeps of the whole."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect
from test_page import WIDE_AND_PHONE, generate, open_tab, settle, slide, texts

from deepseek import load
from deepseek.ui.plots.style import EXPERT_COLOURS

ROOT = Path(__file__).parents[3]


def titles(page):
    return page.locator("#strip .token").evaluate_all("all => all.map(e => e.title)")


def colours(page):
    """(red, green, blue, alpha or nothing) of each token's background."""
    found = page.locator("#strip .token").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    return [tuple(map(float, re.findall(r"[\d.]+", colour))) for colour in found]


def shown(page, text):
    return page.get_by_text(text, exact=True).locator("visible=true").first


def test_hover_tells_and_colours_follow_the_choice(page):
    titled = titles(page)
    assert all(re.search(r"probability [\d.]+ %, rank \d+ · entropy [\d.]+ nats", title) for title in titled)
    assert len(titled) > 20
    choose = page.get_by_label("colour the tokens by").first.select_option
    orders = {"probability": (r"probability ([\d.]+) %", -1), "entropy": (r"entropy ([\d.]+)", 1)}
    for name, (pattern, sign) in orders.items():
        choose(name)
        values = [sign * float(re.search(pattern, title)[1]) for title in titled]
        tints = [alpha for *_, alpha in colours(page)]
        least, most = values.index(min(values)), values.index(max(values))
        assert tints[most] - tints[least] > 0.1
        assert (tints[least], tints[most]) == pytest.approx((min(tints), max(tints)), abs=0.011)  # both are rounded
    choose("temperature")
    (colour,) = set(colours(page))
    assert colour == pytest.approx((230, 159, 0, 0.175), abs=0.011)  # 0.7 for all of them
    choose("layer 3")
    for title, colour in zip(titles(page), colours(page)):
        expert = int(re.search(r"layer 3: expert (\d)", title)[1])
        assert colour == tuple(int(EXPERT_COLOURS[expert][at : at + 2], 16) for at in (1, 3, 5))
    choose("none")
    assert set(colours(page)) == {(0, 0, 0, 0)}


@WIDE_AND_PHONE
def test_a_token_selected_while_text_streams_stays_selected(page):
    for name, value in (("new tokens", 400), ("temperature", 2), ("top-k", 0), ("top-p", 1)):  # so hot it does not end
        slide(page, name, value)
    # In the page itself, for by the time that a mouse has come the text might have ended.
    page.evaluate(
        """() => {
          const strip = document.querySelector('#strip .tokens'), last = strip.querySelector('.token');
          const select = new MutationObserver(() => {
            const all = strip.querySelectorAll('.token');
            if (all.length < 5 || last.isConnected) return;
            select.disconnect();
            window.count = all.length;
            all[3].click();
            strip.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
          });
          select.observe(strip, {childList: true});
        }"""
    )
    generate(page)
    assert page.locator("#strip .token").count() > page.evaluate("count") + 20
    page.wait_for_timeout(1000)  # what is drawn once a text has ended has been drawn
    expect(page.locator("#strip .token").nth(4)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#strip .detail")).to_contain_text("token 5 ")
    expect(page.locator("#token-heading")).to_contain_text("Token 5:")


def test_the_text_is_also_a_plain_table(page):
    page.get_by_text("the text as a table").click()
    table = page.locator("#text-table table")
    expect(table.locator("tbody tr").first).to_be_visible()
    names = table.locator("thead th").all_text_contents()
    assert names == ["place", "token", "probability", "rank", "entropy", "temperature", "layer:experts"]
    assert table.locator("tbody th[scope=row]").count() == len(texts(page, "strip"))
    generate(page, "The little fox")
    expect(table.locator("tbody tr")).to_have_count(len(texts(page, "strip")))
    for row, title in list(zip(table.locator("tbody tr").all(), titles(page)))[:5]:
        _, _, probability, rank, entropy, *_ = row.locator("th, td").all_text_contents()
        assert f"rank {rank} " in title and probability.endswith("%")
        assert float(entropy) == pytest.approx(float(re.search(r"entropy ([\d.]+)", title)[1]), abs=0.011)


def test_order_stop_strings_and_neutral(page):
    shown(page, "order and scope").click()
    page.get_by_label("llama.cpp", exact=True).locator("visible=true").check()
    slide(page, "min-p", 0.05)
    slide(page, "new tokens", 400)
    stop = page.get_by_label("stop strings").locator("visible=true")
    stop.fill(" the\n was")
    stop.press("Tab")
    generate(page)
    order = "model → repetition → n-gram → presence and frequency → top-k → top-p → min-p → temperature"
    expect(page.locator("#token-heading")).to_contain_text("Order in force: " + order)
    expect(page.get_by_text(order.removeprefix("model → "), exact=True).locator("visible=true").first).to_be_visible()
    expect(page.locator("#stats")).to_contain_text("ended by stop string")
    text = "".join(texts(page, "strip"))
    assert (" the" in text) + (" was" in text) == 1
    names = page.locator("#funnel .xtick, #funnel .x2tick").all_text_contents()
    assert [name for name in names if name.startswith("min-p")] and names[-1].startswith("temperature")
    page.get_by_role("button", name="Neutral", exact=True).locator("visible=true").click()
    for name, value in (("temperature", "1"), ("top-k", "0"), ("top-p", "1"), ("min-p", "0")):
        box = page.get_by_label("number input for " + name, exact=True).locator("visible=true").first
        expect(box).to_have_value(value)
    expect(page.get_by_label("transformers", exact=True).locator("visible=true")).to_be_checked()
    generate(page)
    expect(page.locator("#funnel .annotation-text")).to_contain_text("off: repetition, n-gram")
    expect(page.locator("#funnel .annotation-text")).to_contain_text("temperature, top-k, top-p, min-p")


def test_the_scope_of_a_penalty_is_chosen_used_and_shared(page):
    info = page.locator("[data-testid=block-info]", has_text="presence and frequency look at")
    scope = page.locator(".block", has=info).locator("visible=true").last
    shown(page, "penalties").click()
    slide(page, "presence", 2)
    shown(page, "order and scope").click()
    written = []
    for choice in ("output only", "prompt and output"):
        scope.get_by_label(choice, exact=True).check()
        page.get_by_label("keep this seed").check()
        generate(page, "Lily and her mom and Lily and her dad")
        written.append(texts(page, "strip"))
    assert written[0] != written[1]
    shown(page, "keep and share").click()
    page.get_by_role("button", name="Make a link to this text").click()
    link = page.locator("#link").locator("textarea, input")
    expect(link).to_have_value(re.compile("penalty_scope=all"))
    page.goto(link.input_value())
    expect(page.locator("#strip .prompt")).to_contain_text("Lily and her dad")
    settle(page)
    assert texts(page, "strip") == written[1]
    shown(page, "order and scope").click()
    expect(scope.get_by_label("prompt and output", exact=True)).to_be_checked()


def test_dynamic_temperature_shows_its_figures(page):
    shown(page, "dynamic temperature").click()
    page.get_by_label("in place of the fixed one").locator("visible=true").check()
    generate(page)
    page.locator("#strip .token").nth(2).click()
    told = re.compile(r"dynamic temperature (\d\.\d\d), from \d\.\d\d nats over [\d,]+ candidates")
    expect(page.locator("#token-heading")).to_contain_text(told)
    assert len({re.search(r"temperature ([\d.]+)", title)[1] for title in titles(page)}) > 3
    page.get_by_text("entropy and temperature along the text").click()
    lines = "plot => plot._fullData.map(t => t.name)"
    assert page.locator("#along .js-plotly-plot").evaluate(lines) == ["entropy, nats", "temperature"]


def test_presets_outlive_the_server(browser, running_app, tmp_path):
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    with running_app(ROOT, tmp_path / "one") as url:
        page.goto(url)
        expect(page.locator("#strip .token").first).to_be_visible()
        slide(page, "temperature", 0.35)
        shown(page, "keep and share").click()
        page.get_by_label("keep these settings as a preset").fill("<b>cold</b>")
        page.get_by_role("button", name="Keep", exact=True).click()
        expect(page.get_by_label("keep these settings as a preset")).to_have_value("")
    with running_app(ROOT, tmp_path / "two", port=int(url.rsplit(":")[-1])) as url:
        page.goto(url)
        expect(page.locator("#strip .token").first).to_be_visible()
        box = page.get_by_label("number input for temperature", exact=True).locator("visible=true").first
        expect(box).to_have_value("0.7")
        page.get_by_label("preset", exact=True).first.click()
        page.get_by_role("option", name="<b>cold</b>").click()
        expect(box).to_have_value("0.35")
        page.context.close()


def test_an_exported_branch_is_repeated_by_the_command_line(page, tmp_path):
    page.locator("#strip .token").nth(7).click()
    expect(page.locator("#token-heading")).to_contain_text("Token 8:")
    page.get_by_text("candidates: click one").click()
    page.locator("#candidates tbody button:not([disabled])").first.click()
    expect(page.locator("#stats")).to_contain_text("branched at token 8")
    settle(page)
    shown(page, "keep and share").click()
    page.get_by_role("button", name="Export as JSON, with every trace").click()
    link = page.locator("#export a[download]").first
    expect(link).to_be_visible()
    with page.expect_download() as download:
        link.click()
    file = tmp_path / "text.json"
    download.value.save_as(file)
    kept = json.loads(file.read_text())
    shown_texts = [text.replace("↵\n", "\n") for text in texts(page, "strip")]
    assert [token["text"] for token in kept["tokens"]][:9] == shown_texts[:9]
    assert list(kept["forced"]) == ["7"] and all(token["stages"] for token in kept["tokens"])
    command = [sys.executable, "-m", "deepseek.generate", "--repeat", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert f"[{len(kept['tokens'])} tokens, all as recorded]" in done.stdout, done


HOSTILE = "${1+1} `x` <img src=x onerror=\"document.title='owned'\"> \\u0041 \u202eevil\u202c a\u200bb {{value}}"


def test_hostile_tokens_are_only_text_in_every_panel(page, app_url):
    """The link puts each of them where the model would have written another."""
    _, tokenizer = load("assets/demo")
    ids = tokenizer(HOSTILE, add_special_tokens=False)["input_ids"]
    force = [f"{place}-{token}" for place, token in enumerate(ids)]
    page.goto(
        f"{app_url}/?" + urlencode(dict(prompt=HOSTILE, seed=3, max_new_tokens=len(ids), force=force), doseq=True)
    )
    expect(page.locator("#strip .prompt")).to_contain_text("<img src=x onerror=")
    settle(page)
    text = "".join(texts(page, "strip"))
    assert "<img src=x onerror=" in text and "⟨U+202E⟩evil" in text and "a⟨U+200B⟩b" in text

    def nothing_ran():
        page.wait_for_timeout(1000)
        assert page.locator("img[src=x], #strip b").count() == 0 and page.title() != "owned"

    page.get_by_text("the text as a table").click()
    expect(page.locator("#text-table td", has_text="<").first).to_be_visible()
    page.get_by_text("candidates: click one").click()
    page.get_by_text("entropy and temperature along the text").click()
    page.locator("#strip .token", has_text="<").first.click()
    expect(page.locator("#candidates button", has_text="<").first).to_be_visible()
    expect(page.locator("#funnel .ytick", has_text="<").first).to_be_attached()
    nothing_ran()
    for name, inner, button in (
        ("Experts", "This text", "Look"),
        ("Experts", "Longer", "Read"),
        ("Experts", "Kinds", "Compare the routing"),
        ("Attention", None, "Look"),
        ("Layers", None, "Look"),
        ("Intervene", None, "Write both"),
        ("Compare", None, "Compare"),
    ):
        open_tab(page, name)
        if inner:
            open_tab(page, inner)
        box = page.locator("textarea:visible").first
        box.wait_for()
        page.wait_for_timeout(500)  # gradio gives what it has just drawn its first value again: see test_training.start
        box.fill(HOSTILE)
        page.get_by_role("button", name=button, exact=True).locator("visible=true").click()
        nothing_ran()
    expect(page.locator("#strip-a .prompt")).to_contain_text("<img src=x onerror=")
    expect(page.locator("#strip-untouched .prompt")).to_contain_text("<img src=x onerror=")
    open_tab(page, "Model")
    box = page.get_by_label("checkpoint").locator("visible=true").first
    box.wait_for()
    page.wait_for_timeout(500)
    box.fill(HOSTILE)
    box.press("Enter")
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.get_by_text("neither a folder nor a Hub id").first).to_be_visible()
    nothing_ran()
