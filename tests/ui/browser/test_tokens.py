"""The Playground's tokens: details and colours, scripts, markup, and a sample that is saved."""

import json
import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect
from ui.browser.actions import (
    ask_for_a_long_sample,
    branch,
    button,
    generate,
    settle,
    shown,
    texts,
    titles,
)  # fmt: skip

from deepseek import load
from deepseek.generate import main as generate_command
from deepseek.ui.plots.style import EXPERT_COLOURS


def colours(page):
    """(red, green, blue, alpha or nothing) of each token's background."""
    backgrounds = page.locator("#strip .token").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    return [tuple(map(float, re.findall(r"[\d.]+", colour))) for colour in backgrounds]


def test_hover_shows_figures_and_colours_follow_the_choice(page):
    details = titles(page)
    assert all(re.search(r"probability [\d.]+ %, rank \d+ .*· entropy [\d.]+ nats", title) for title in details)
    assert len(details) > 20
    choose = page.get_by_label("colour the tokens by").first.select_option
    orders = {"probability": (r"probability ([\d.]+) %", -1), "entropy": (r"entropy ([\d.]+)", 1)}
    for name, (pattern, sign) in orders.items():
        choose(name)
        values = [sign * float(re.search(pattern, title)[1]) for title in details]
        tints = [alpha for *_, alpha in colours(page)]
        lowest, highest = values.index(min(values)), values.index(max(values))
        assert tints[highest] - tints[lowest] > 0.1
        assert (tints[lowest], tints[highest]) == pytest.approx((min(tints), max(tints)), abs=0.011)  # both are rounded
    choose("temperature")
    (colour,) = set(colours(page))
    assert colour == pytest.approx((230, 159, 0, 0.175), abs=0.011)  # 0.7 for all of them
    choose("layer 3")
    for title, colour in zip(titles(page), colours(page)):
        expert = int(re.search(r"layer 3: expert (\d)", title)[1])
        assert colour == tuple(int(EXPERT_COLOURS[expert][at : at + 2], 16) for at in (1, 3, 5))
    choose("none")
    assert set(colours(page)) == {(0, 0, 0, 0)}


def test_a_token_selected_while_text_streams_stays_selected(page):
    ask_for_a_long_sample(page)
    # In the page itself: the sample may end before a click from outside arrives.
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
    page.wait_for_timeout(1000)  # until the details are redrawn after the end
    expect(page.locator("#strip .token").nth(4)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#strip .detail")).to_contain_text("token 5 ")
    expect(page.locator("#token-heading")).to_contain_text("Token 5:")
    height, below = page.locator("#strip .tokens").evaluate(
        "e => [e.scrollHeight - e.clientHeight, e.scrollHeight - e.clientHeight - e.scrollTop]"
    )
    assert height > 100 and below < 40, "the strip follows a text that grows"


def test_the_text_is_also_a_plain_table(page):
    page.get_by_text("the text as a table").click()
    table = page.locator("#text-table table")
    expect(table.locator("tbody tr").first).to_be_visible()
    names = table.locator("thead th").all_text_contents()
    assert names == ["position", "token", "probability", "rank", "entropy", "temperature", "layer:experts"]
    assert table.locator("tbody th[scope=row]").count() == len(texts(page, "strip"))
    generate(page, "The little fox")
    expect(table.locator("tbody tr")).to_have_count(len(texts(page, "strip")))
    for row, title in list(zip(table.locator("tbody tr").all(), titles(page)))[:5]:
        _, _, probability, rank, entropy, *_ = row.locator("th, td").all_text_contents()
        assert f"rank {rank} " in title and probability.endswith("%")
        assert float(entropy) == pytest.approx(float(re.search(r"entropy ([\d.]+)", title)[1]), abs=0.011)


def test_the_command_line_repeats_an_exported_branch(page, tmp_path, monkeypatch, capsys):
    branch(page, 7)
    shown(page, "save and share").click()
    button(page, "Export as JSON, with every trace").click()
    link = page.locator("#export a[download]").first
    expect(link).to_be_visible()
    with page.expect_download() as download:
        link.click()
    file = tmp_path / "text.json"
    download.value.save_as(file)
    record = json.loads(file.read_text())
    strip = [text.replace("↵\n", "\n") for text in texts(page, "strip")]
    assert [token["text"] for token in record["tokens"]][:9] == strip[:9]
    assert list(record["forced"]) == ["7"] and all(token["stages"] for token in record["tokens"])
    monkeypatch.setattr("sys.argv", ["generate", "--repeat", str(file)])
    generate_command()
    assert f"[{len(record['tokens'])} tokens, all as recorded]" in capsys.readouterr().out


HOSTILE = "${1+1} `x` <img src=x onerror=\"document.title='owned'\"> \\u0041 \u202eevil\u202c a\u200bb {{value}}"


def test_sampled_tokens_with_markup_stay_text(page, app_url):
    """A link forces the model to sample them."""
    _, tokenizer = load("assets/demo")
    ids = tokenizer(HOSTILE, add_special_tokens=False)["input_ids"]
    forced = [f"{position}-{token}" for position, token in enumerate(ids)]
    query = dict(prompt=HOSTILE, seed=3, max_new_tokens=len(ids), forced_tokens=forced)
    page.goto(f"{app_url}/?{urlencode(query, doseq=True)}")
    expect(page.locator("#strip .prompt")).to_contain_text("<img src=x onerror=")
    settle(page)
    text = "".join(texts(page, "strip"))
    assert "<img src=x onerror=" in text and "⟨U+202E⟩evil" in text and "a⟨U+200B⟩b" in text
    page.get_by_text("the text as a table").click()
    expect(page.locator("#text-table td", has_text="<").first).to_be_visible()
    page.get_by_text("candidates: click one").click()
    page.get_by_text("entropy and temperature along the text").click()
    page.locator("#strip .token", has_text="<").first.click()
    expect(page.locator("#candidates button", has_text="<").first).to_be_visible()
    expect(page.locator("#funnel .ytick", has_text="<").first).to_be_attached()
    expect(page.locator("#along .js-plotly-plot")).to_be_visible()
    assert page.locator("img[src=x], #strip b").count() == 0 and page.title() != "owned"


def test_any_script_is_read_in_its_order_clicked_token_by_token_and_copied_without_signs(page, app_url):
    sample = "שלום עולם 🦊\n\tالسلام\u200b"
    ids = load("assets/demo")[1](sample, add_special_tokens=False)["input_ids"]
    forced = [f"{position}-{token}" for position, token in enumerate(ids)]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    query = dict(prompt="fox\n", max_new_tokens=len(ids), forced_tokens=forced)
    page.goto(f"{app_url}/?{urlencode(query, doseq=True)}")
    expect(page.locator("#strip .prompt")).to_contain_text("fox")
    settle(page)
    boxes = page.locator("#strip .token").evaluate_all("all => all.map(e => e.getBoundingClientRect().toJSON())")
    assert len(boxes) == len(ids) and min(box["width"] for box in boxes) > 2, (
        "also a token within a character is clickable"
    )
    titles_ = titles(page)
    assert any("part of “🦊”" in title for title in titles_)
    assert boxes[0]["x"] > boxes[6]["x"], "from right to left"
    page.locator("#strip").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "fox\n" + sample
