"""Through every panel about experts: one text, a longer one, kinds of text, interventions."""

import re

import pytest
from playwright.sync_api import expect
from test_page import WIDE_AND_PHONE, open_tab, texts
from transformers import LlamaConfig, LlamaForCausalLM

from deepseek import load, trace
from deepseek.interpret.interventions import ablation_effects


@pytest.fixture(scope="module")
def demo():
    return load("assets/demo")


def drawn(page, name):
    """The traces that the plot of this id has drawn."""
    plot = page.locator(f"#{name} .js-plotly-plot")
    expect(plot).to_be_visible()
    fields = "type: t.type, name: t.name, x: [...(t.x || [])], y: [...(t.y || [])], z: (t.z || []).map(row => [...row])"
    return plot.evaluate(f"plot => plot._fullData.map(t => ({{{fields}}}))")


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def visible_box(page, label):
    """The field of this label, which for the browser also holds the line of explanation below it."""
    name = page.locator("[data-testid=block-info]", has_text=re.compile(f"^\\s*{label}\\s*$"))
    return page.locator(".block", has=name).locator("textarea, input").locator("visible=true").first


def inside(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@WIDE_AND_PHONE
def test_a_clicked_token_shows_its_path(page, demo):
    open_tab(page, "Experts")
    expect(page.locator("#token-path .gtitle")).to_contain_text("token 2: ")
    page.locator("#experts-strip .token").nth(6).click()
    expect(page.locator("#token-path .gtitle")).to_contain_text("token 7: ")
    text = visible_box(page, "text").input_value()
    seen = trace(*demo, text)
    for place, line in enumerate(drawn(page, "token-path")):
        assert line["y"] == [int(layer.indices[6, place]) for layer in seen.routing]
    for name in ("expert-map", "expert-load", "expert-balance"):
        assert drawn(page, name)
    inside(page)
    visible_box(page, "text").fill("Fox")
    button(page, "Look").click()
    expect(page.locator("#experts-strip .token")).to_have_count(len(trace(*demo, "Fox").tokens))
    expect(page.locator("#token-path .gtitle")).to_contain_text("token 2: ")


@WIDE_AND_PHONE
def test_a_longer_text_is_read_from_the_box_and_from_a_file(page, tmp_path):
    open_tab(page, "Experts")
    open_tab(page, "Longer")
    flow, tokens, pairs = (drawn(page, name) for name in ("expert-flow", "expert-tokens", "expert-pairs"))
    assert [one[0]["type"] for one in (flow, tokens, pairs)] == ["sankey", "heatmap", "heatmap"]
    inside(page)
    visible_box(page, "layer").click()
    page.get_by_role("option", name="layer 2", exact=True).click()
    expect(page.locator("#expert-tokens .js-plotly-plot")).to_be_visible()
    file = tmp_path / "long.txt"
    file.write_text("The little fox ran over the hill & saw <b>a dog</b>. " * 60)
    with page.expect_file_chooser() as chooser:
        button(page, "Open a text file").click()
    chooser.value.set_files(file)
    expect(visible_box(page, "text")).to_have_value(file.read_text())
    button(page, "Read").click()
    expect(page.locator("#longer-note")).not_to_contain_text("240 tokens")
    expect(page.locator("#expert-tokens .heatmaplayer text", has_text="fox").first).to_be_attached()
    assert drawn(page, "expert-tokens")[0]["z"] != tokens[0]["z"]
    visible_box(page, "text").fill("a" * 20_001)
    button(page, "Read").click()
    expect(page.get_by_text("text has 20,001 characters").first).to_be_visible()


def test_two_kinds_of_text_and_three(page):
    open_tab(page, "Experts")
    open_tab(page, "Kinds")
    bars = drawn(page, "routing-divergence")
    assert [bar["name"] for bar in bars[:3]] == ["A and B", "A and C", "B and C"] and len(bars) == 6
    assert [bar["name"] for bar in drawn(page, "load-by-text")] == ["A", "B", "C"]
    expect(page.locator("#kinds-summary")).to_contain_text("B and C")
    inside(page)
    story = visible_box(page, "A").input_value()
    visible_box(page, "B").fill(story)
    visible_box(page, "C").fill("")
    button(page, "Compare the routing").click()
    expect(page.locator("#kinds-summary")).to_contain_text("A and B: 0.000 bits")
    expect(page.locator("#kinds-summary")).not_to_contain_text("C")
    visible_box(page, "B").fill(" ")
    button(page, "Compare the routing").click()
    expect(page.get_by_text("1 of the texts are filled in").first).to_be_visible()
    button(page, "Back to the examples").click()
    expect(visible_box(page, "C")).to_have_value(re.compile("class Schedule"))


@WIDE_AND_PHONE
def test_an_expert_is_switched_off_and_forced(page, demo):
    open_tab(page, "Intervene")
    expect(page.locator("#intervene-note")).to_contain_text("They part at token")
    assert len(texts(page, "strip-untouched")) == 64
    for name in ("untouched", "changed"):
        expect(page.locator(f"#strip-{name} .diverged")).to_have_count(1)
    expect(page.locator("#loss-change .xtick")).to_have_count(5)  # it is drawn layer by layer
    bars = drawn(page, "loss-change")
    text = visible_box(page, "text").input_value()
    wanted = {(layer, expert): change for layer, expert, change in ablation_effects(*demo, text)}
    for expert, bar in enumerate(bars):
        found = dict(zip(bar["x"], bar["y"]))
        for layer in range(1, 6):
            assert found[f"layer {layer}"] == pytest.approx(wanted[layer, expert], abs=2e-2)
    inside(page)
    before = texts(page, "strip-untouched")
    page.get_by_label("force", exact=True).check()
    visible_box(page, "expert").click()
    page.get_by_role("option", name="expert 3", exact=True).click()
    visible_box(page, "at").click()
    page.get_by_role("option", name="layer 2", exact=True).click()
    page.locator("#strip-changed .token").nth(9).click()
    expect(page.locator("#strip-changed .detail")).to_contain_text("token 10 ")
    button(page, "Write both").click()
    expect(page.locator("#strip-changed .detail")).to_have_text("")  # another text, with no token chosen
    page.locator("#strip-changed").get_by_label("colour the tokens by").select_option("layer 2")
    expect(page.locator("#intervene-note")).to_contain_text("token")  # which it says of both, once they are written
    assert texts(page, "strip-untouched") == before
    page.locator("#strip-changed .token").nth(9).click()
    expect(page.locator("#strip-changed .detail")).to_contain_text("expert 3 ")
    visible_box(page, "experts of").click()
    page.get_by_role("option", name="layer 4", exact=True).click()
    button(page, "Measure").click()
    expect(page.locator("#loss-change .xtick")).to_have_count(1)
    visible_box(page, "prompt").fill(" ")
    button(page, "Write both").click()
    expect(page.get_by_text("prompt is empty").first).to_be_visible()


def test_a_dense_model_has_no_experts_anywhere(page, app_url, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    page.goto(f"{app_url}/?checkpoint={folder}")
    expect(page.locator("#which")).to_contain_text(str(folder))
    open_tab(page, "Experts")
    expect(page.get_by_text("This model is dense").locator("visible=true")).to_be_visible()
    open_tab(page, "Longer")
    expect(page.get_by_text("Another checkpoint is open now").locator("visible=true")).to_be_visible()
    button(page, "Read").click()
    expect(page.locator("#longer-note")).to_contain_text("this model is dense")
    open_tab(page, "Kinds")
    button(page, "Compare the routing").click()
    expect(page.locator("#kinds-summary")).to_contain_text("This model is dense")
    open_tab(page, "Intervene")
    expect(page.locator("#intervene-note")).to_contain_text("This model is dense")
    expect(page.locator("#needed-note")).to_contain_text("This model is dense")
