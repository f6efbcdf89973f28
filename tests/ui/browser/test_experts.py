"""Every panel about experts: one text, a longer one, texts of several domains, interventions."""

import re

import pytest
from playwright.sync_api import expect
from transformers import LlamaConfig, LlamaForCausalLM
from ui.browser.actions import button, open_tab, replaced, settle, shown, texts, visible_box

from deepseek import trace
from deepseek.interpret.importance import knock_outs


@pytest.fixture
def page(one_page):
    return one_page


def drawn(page, name):
    """The traces that the plot of this id has drawn."""
    plot = page.locator(f"#{name} .js-plotly-plot")
    expect(plot).to_be_visible()
    fields = "type: t.type, name: t.name, x: [...(t.x || [])], y: [...(t.y || [])], z: (t.z || []).map(row => [...row])"
    return plot.evaluate(f"plot => plot._fullData.map(t => ({{{fields}}}))")


def assert_fits(page):
    """Nothing is wider than the page, on a phone and on a desktop."""
    for width in (375, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_clicked_token_shows_its_path(page, demo):
    open_tab(page, "Experts")
    expect(page.locator("#token-path .gtitle")).to_contain_text("token 2: ")
    page.locator("#experts-strip .token").nth(6).click()
    expect(page.locator("#token-path .gtitle")).to_contain_text("token 7: ")
    text = visible_box(page, "text").input_value()
    routing = trace(*demo, text).routing
    for choice, line in enumerate(drawn(page, "token-path")):
        assert line["y"] == [int(layer.indices[6, choice]) for layer in routing]
    for name in ("expert-map", "expert-load", "expert-balance"):
        assert drawn(page, name)
    assert_fits(page)
    visible_box(page, "text").fill("Fox")
    button(page, "Trace").click()
    expect(page.locator("#experts-strip .token")).to_have_count(len(trace(*demo, "Fox").tokens))
    expect(page.locator("#token-path .gtitle")).to_contain_text("token 2: ")


def test_a_long_text_comes_from_the_box_or_from_a_file(page, tmp_path):
    open_tab(page, "Experts")
    open_tab(page, "Long text")
    figures = [drawn(page, name) for name in ("expert-flow", "expert-tokens", "expert-pairs")]
    assert [figure[0]["type"] for figure in figures] == ["sankey", "heatmap", "heatmap"]
    note = page.locator("#long-text-note").text_content()
    assert_fits(page)
    visible_box(page, "layer").click()
    page.get_by_role("option", name="layer 2", exact=True).click()
    expect(page.locator("#expert-tokens .js-plotly-plot")).to_be_visible()
    file = tmp_path / "long.txt"
    file.write_text("The little fox ran over the hill & saw <b>a dog</b>. " * 60)
    with page.expect_file_chooser() as chooser:
        button(page, "Open a text file").click()
    chooser.value.set_files(file)
    expect(visible_box(page, "text")).to_have_value(file.read_text())
    button(page, "Trace").click()
    expect(page.locator("#long-text-note")).not_to_have_text(note)
    expect(page.locator("#expert-tokens .heatmaplayer text", has_text="fox").first).to_be_attached()
    assert drawn(page, "expert-tokens")[0]["z"] != figures[1][0]["z"]
    visible_box(page, "text").fill("a" * 20_001)
    button(page, "Trace").click()
    expect(page.get_by_text("text has 20,001 characters").first).to_be_visible()
    file.write_text("The little fox", "utf-16")
    with page.expect_file_chooser() as chooser:
        button(page, "Open a text file").click()
    chooser.value.set_files(file)
    expect(page.get_by_text("the file is not text in UTF-8").first).to_be_visible()


def test_two_domains_and_three(page):
    open_tab(page, "Experts")
    open_tab(page, "Domains")
    bars = drawn(page, "routing-divergence")
    assert [bar["name"] for bar in bars[:3]] == ["A and B", "A and C", "B and C"] and len(bars) == 6
    assert [bar["name"] for bar in drawn(page, "load-by-text")] == ["A", "B", "C"]
    expect(page.locator("#domains-summary")).to_contain_text("B and C")
    assert_fits(page)
    story = visible_box(page, "A").input_value()
    visible_box(page, "B").fill(story)
    visible_box(page, "C").fill("")
    button(page, "Compare routing").click()
    expect(page.locator("#domains-summary")).to_contain_text("A and B: 0.000 bits")
    expect(page.locator("#domains-summary")).not_to_contain_text("C")
    visible_box(page, "B").fill(" ")
    button(page, "Compare routing").click()
    expect(page.get_by_text("1 of the texts are filled in").first).to_be_visible()
    button(page, "Back to the examples").click()
    expect(visible_box(page, "C")).to_have_value(re.compile("class Schedule"))


def test_the_importance_of_every_expert_is_drawn(page, demo):
    open_tab(page, "Intervene")
    open_tab(page, "Importance")
    expect(page.locator("#loss-change .xtick")).to_have_count(5)  # drawn layer by layer
    text = visible_box(page, "text").input_value()
    effects = {(f"layer {each.layer}", each.expert): each.loss_change for each in knock_outs(*demo, text)}
    shown = {
        (x, expert): y for expert, bar in enumerate(drawn(page, "loss-change")) for x, y in zip(bar["x"], bar["y"])
    }
    assert shown == pytest.approx(effects, abs=2e-2)
    expect(page.locator("#runner-ups .ytick > text")).to_have_count(5)
    assert [line["name"] for line in drawn(page, "top-disabled")] == [
        "top routed",
        "shared",
        "shared, routed in their place",
        "random routed",
    ]
    assert len(drawn(page, "one-after-another")) == 3 and len(drawn(page, "knock-outs")[0]["y"]) == 16
    assert_fits(page)
    visible_box(page, "experts of").click()
    page.get_by_role("option", name="layer 4", exact=True).click()
    visible_box(page, "find experts: expert@layer").fill("7@4")
    button(page, "Measure").click()
    expect(page.locator("#loss-change .xtick")).to_have_count(1)
    assert drawn(page, "knock-outs")[0]["y"][0] == "7@4"


def test_two_texts_steer_the_model(page):
    open_tab(page, "Intervene")
    open_tab(page, "Steer")
    expect(page.locator("#steer-verdict")).to_contain_text("more than chance")
    expect(page.locator("#steer-note")).to_contain_text("The samples")
    expect(page.locator("#steer-effect-note")).to_contain_text("Held-out loss")
    assert len(drawn(page, "rate-differences")[0]["y"]) == 16 and len(drawn(page, "steering-effect")) == 3
    assert "promote" in visible_box(page, "these interventions").input_value()
    assert_fits(page)


def test_an_expert_is_ablated_and_forced(page, demo):
    open_tab(page, "Intervene")
    open_tab(page, "Generate")
    expect(page.locator("#intervene-note")).to_contain_text("The samples diverge at token")
    assert len(texts(page, "strip-original")) == 64
    for name in ("original", "changed"):
        expect(page.locator(f"#strip-{name} .diverged")).to_have_count(1)
    assert_fits(page)
    before = texts(page, "strip-original")
    page.get_by_label("force", exact=True).check()
    visible_box(page, "expert").click()
    page.get_by_role("option", name="expert 3", exact=True).click()
    visible_box(page, "at").click()
    page.get_by_role("option", name="layer 2", exact=True).click()
    with replaced(page, "#strip-original .token", "#strip-changed .token", "#intervene-note p"):
        button(page, "Generate both").click()
    expect(page.locator("#intervene-note")).to_contain_text("token")  # the verdict, once both have ended
    expect(page.locator("#strip-original .token")).to_have_text(before)
    detail = page.locator("#strip-changed .detail")
    colours = page.locator("#strip-changed").get_by_label("colour the tokens by")
    page.locator("#strip-changed .token").nth(9).click()
    expect(detail).to_contain_text("token 10 ")
    expect(detail).not_to_contain_text("expert")
    colours.select_option("layer 2")  # what is told of the selected token follows
    expect(detail).to_contain_text("expert 3 ")
    colours.select_option("probability")
    expect(detail).not_to_contain_text("expert")
    expect(visible_box(page, "interventions")).to_have_value("force 3@2")
    button(page, "Add another intervention").click()
    page.get_by_label("ablate", exact=True).check()
    expect(visible_box(page, "interventions")).to_have_value("force 3@2\noff 3@2")
    button(page, "Generate both").click()
    expect(page.get_by_text("expert 3 is forced and switched off at once").first).to_be_visible()
    visible_box(page, "interventions").fill("force 3@2\npromote 1@4 0.5")
    button(page, "Use in the Playground").click()
    visible_box(page, "prompt").fill(" ")
    button(page, "Generate both").click()
    expect(page.get_by_text("prompt is empty").first).to_be_visible()
    open_tab(page, "Playground")
    button(page, "Generate").click()
    expect(page.locator("#stats")).to_contain_text("under force 3@2, promote 1@4 0.5")
    settle(page)
    shown(page, "save and share").click()
    button(page, "Make a link to this text").click()
    expect(page.locator("#link textarea, #link input").first).to_have_value(re.compile("interventions=force\\+3%402"))
    link, words = page.locator("#link textarea, #link input").first.input_value(), texts(page, "strip")
    page.goto(link)
    expect(page.locator("#stats")).to_contain_text("under force 3@2, promote 1@4 0.5")
    settle(page)
    assert texts(page, "strip") == words


def test_every_panel_says_that_a_dense_model_has_no_experts_and_follows_the_next_one(
    page, app_url, tokenizer, tmp_path_factory
):
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
    open_tab(page, "Long text")
    expect(page.locator("#long-text-note")).to_contain_text("this model is dense")
    open_tab(page, "Domains")
    expect(page.locator("#domains-summary")).to_contain_text("This model is dense")
    open_tab(page, "Intervene")
    expect(page.locator("#intervene-note")).to_contain_text("This model is dense")
    open_tab(page, "Importance")
    expect(page.locator("#ablation-note")).to_contain_text("This model is dense")
    open_tab(page, "Steer")
    expect(page.locator("#steer-verdict")).to_contain_text("This model is dense")
    page.route("**/queue/join**", lambda route: None)  # the tab's answer comes while the list is open
    open_tab(page, "Model")
    visible_box(page, "checkpoint").click()
    expect(page.get_by_role("option", name=str(folder))).to_be_visible()
    with page.expect_response("**/queue/data**"):
        page.unroute("**/queue/join**")
    page.wait_for_timeout(500)
    expect(page.get_by_role("option", name=str(folder))).to_be_visible()
    visible_box(page, "checkpoint").fill("assets/demo")
    visible_box(page, "checkpoint").press("Enter")
    button(page, "Open").click()
    expect(page.locator("#which")).to_contain_text("assets/demo")
    open_tab(page, "Experts")  # with its sub-tab Domains still open
    expect(page.locator("#domains-summary")).to_contain_text("permutation baseline")
