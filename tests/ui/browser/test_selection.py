"""One selected token for all tabs, the board and the tour."""

import re

from playwright.sync_api import expect
from ui.browser.actions import (
    ask_for_a_long_sample,
    begin,
    generate,
    open_tab,
    settle,
    texts,
    titles,
)  # fmt: skip

from deepseek import load


def test_one_selection_for_all_tabs(page):
    """A click, arrow keys and another tab select the same token: the strips and what the server shows of it follow."""
    prompt_tokens = len(load("assets/demo")[1]("Once upon a time")["input_ids"])
    page.locator("#strip .token").nth(9).click()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-heading")).to_contain_text("Token 11:")
    text = page.locator("#strip .chosen").text_content()
    for tab, strip in (("Experts", "experts-strip"), ("Attention", "attention-strip"), ("Layers", "layers-strip")):
        open_tab(page, tab)
        chosen = page.locator(f"#{strip} .chosen")
        expect(chosen).to_have_text(text)
        expect(page.locator(f"#{strip} .detail")).to_contain_text(f"token {11 + prompt_tokens} ")
    column = page.locator("#lens-column tbody tr").last
    expect(column).to_contain_text("layer 5")
    page.locator("#layers-strip .token").nth(6).click()
    open_tab(page, "Experts")
    expect(page.locator("#token-path .gtitle")).to_contain_text("token 7")
    open_tab(page, "Playground")
    expect(page.locator("#token-heading")).to_contain_text(f"Token {7 - prompt_tokens}:")
    open_tab(page, "Layers")
    page.locator("#layers-strip .token").first.click()
    open_tab(page, "Playground")
    expect(page.locator("#strip .chosen")).to_have_count(0)  # it is a token of the prompt


LIT = """() => {  // the bright pixels of the board, by row of the picture
  const canvas = document.querySelector('#board canvas'), {width, height} = canvas;
  const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
  let bright = 0;
  for (let i = 0; i < data.length; i += 4) bright += Math.max(data[i], data[i + 1], data[i + 2]) > 190;
  return bright;
}"""


def test_the_tour_points_at_each_picture_and_can_be_left(page):
    card, ring = page.locator(".tour .card"), page.locator(".toured")
    page.get_by_role("button", name="Take the tour").click()
    pictures = ("#strip", "#board", "#attention-strip", "#walk .cache", "#funnel", "#strip-changed")
    for step, picture in enumerate(pictures, 1):
        expect(card).to_contain_text(f"{step} of 6")
        expect(page.locator(picture).and_(ring)).to_have_count(1)
        expect(ring).to_be_in_viewport()
        if step == 1:
            word = page.locator("#strip .chosen").text_content().strip()
            expect(card).to_contain_text(f"“{word}”")
        page.keyboard.press("Enter")
    expect(card).to_be_hidden()
    page.keyboard.press("Enter")
    expect(card).to_contain_text("1 of 6")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    expect(ring).to_have_count(0)


PICTURES = """async () => {  // how many different pictures the board shows within half a second after a step
  const canvas = document.querySelector('#board canvas'), pictures = new Set([canvas.toDataURL()]), start = performance.now();
  document.querySelector('#board [aria-label="previous token"]').click();
  while (performance.now() - start < 500) {
    await new Promise(requestAnimationFrame);
    pictures.add(canvas.toDataURL());
  }
  return pictures.size;
}"""


def test_the_board_is_lit_follows_the_selection_and_lists_what_an_expert_took(page):
    board = page.locator("#board")
    expect(board.locator(".now")).to_contain_text(f"token {len(texts(page, 'strip'))} ")
    assert page.evaluate(LIT) > 500
    page.locator("#strip .token").nth(3).click()
    expect(board.locator(".now")).to_contain_text("token 4 ")
    board.get_by_label("next token").click()
    expect(page.locator("#token-heading")).to_contain_text("Token 5:")
    board.get_by_label("pace").select_option("2")
    board.get_by_label("play", exact=True).click()
    expect(board.locator(".now")).to_contain_text(re.compile("token ([7-9]|[1-6][0-9]) "))
    board.get_by_label("pause").click()
    board.locator("canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    count = re.search(r"Layer 2, expert 1 took (\d+) of (\d+) tokens", board.locator(".took").text_content())
    chips = board.locator(".chips button")
    titles_ = page.get_by_label("colour the tokens by").first.select_option("layer 2") and titles(page)
    took = [title for title in titles_ if re.search(r"layer 2: .*expert 1 ", title)]
    assert [chips.count(), len(titles_)] == [int(count[1]), int(count[2])] and len(took) == chips.count()
    chips.last.click()
    index = max(index for index, title in enumerate(titles_) if title in took)
    expect(page.locator("#token-heading")).to_contain_text(f"Token {index + 1}:")
    assert page.evaluate(PICTURES) > 3
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(PICTURES) <= 2  # before and after
    generate(page, "The little fox")
    expect(board.locator(".now")).to_contain_text(f"token {len(texts(page, 'strip'))} ")
    expect(board.locator(".took")).to_have_count(0)


def test_a_tab_that_is_opened_while_a_text_grows_shows_it_once_it_has_ended(page):
    ask_for_a_long_sample(page)
    for tab, strip in (("Experts", "#experts-strip"), ("Walk", "#walk .text")):
        begin(page, tab)
        open_tab(page, tab)
        expect(page.locator(f"{strip} .token").first).to_be_visible()
        settle(page)
        ids = page.evaluate("document.querySelector('#strip .tokens').text.ids")
        expect(page.locator(f"{strip} .token")).to_have_count(len(ids))
        open_tab(page, "Playground")


def test_a_candidate_branches_at_the_token_whose_table_was_on_the_screen(page):
    page.locator("#strip .token").nth(2).click()
    expect(page.locator("#token-heading")).to_contain_text("Token 3:")
    page.get_by_text("candidates: click one").click()
    candidate = page.locator("#candidates tbody button:not([disabled])").first
    expect(candidate).to_be_visible()
    page.route("**/queue/join**", lambda route: None)  # a server that is too busy to answer yet
    with page.expect_request("**/queue/join**"):
        page.locator("#strip .token").nth(6).click()
    candidate.click()
    page.unroute("**/queue/join**")
    expect(page.locator("#stats")).to_contain_text("branched at token 3")
