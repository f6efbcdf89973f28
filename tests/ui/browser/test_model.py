"""Another checkpoint, opened on the Model tab, by Compare or by a link."""

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect
from small import randomized
from transformers import MixtralConfig, MixtralForCausalLM
from ui.browser.actions import (
    button,
    generate,
    make_link,
    open_tab,
    plotted,
    settle,
    texts,
    visible_box,
)


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


def test_a_link_opens_the_checkpoint_of_its_sample(page, browser, app_url, moe_folder):
    settings = {"max_new_tokens": 9, "temperature": 7.25, "stop": "\n\n"}  # a slider ends at 2, a line has no line end
    page.goto(f"{app_url}/?" + urlencode({"prompt": "Once upon", "seed": 3, "checkpoint": moe_folder, **settings}))
    expect(page.locator("#which")).to_contain_text(moe_folder)
    settle(page)
    expect(page.locator("#stats")).to_contain_text("seed 3")
    expect(page.locator("#strip .prompt")).to_have_text("Once upon")
    generate(page)
    expect(make_link(page)).to_have_value(re.compile("temperature=7.25&.*stop=%0A%0A&seed=3&checkpoint="))
