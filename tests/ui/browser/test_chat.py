"""A checkpoint with a chat template in the Playground: its switch, the system prompt, and several turns."""

import re
from urllib.parse import urlencode

from playwright.sync_api import expect
from ui.browser.actions import button, generate, make_link, open_page, settle, shown


def test_a_conversation_of_two_turns_is_shown_with_its_special_tokens(page, app_url, chat_checkpoint):
    switch, reply = page.locator("#chat-switch input"), page.locator("#reply textarea")
    expect(switch).to_be_hidden()  # the demo has no template
    expect(reply).to_be_hidden()
    query = {
        "prompt": "a fox",
        "checkpoint": chat_checkpoint,
        "temperature": 0,
        "min_new_tokens": 8,
        "max_new_tokens": 8,
    }
    open_page(page, f"{app_url}/?{urlencode(query)}")
    settle(page)
    expect(switch).to_be_checked()
    expect(reply).to_be_hidden()  # the link's text is none of a chat
    shown(page, "system prompt").click()
    page.locator("#chat textarea").fill("Be brief.")
    strip = page.locator("#strip-tokens")
    generate(page, "Who?")
    start = "<|im_start|>system↵ Be brief.<|im_end|>↵ <|im_start|>user↵ Who?<|im_end|>↵ <|im_start|>assistant↵"
    expect(strip).to_contain_text(start)  # each sign is followed by its line end
    reply.fill("Where <b>now</b>?")
    page.locator("#strip .token").first.evaluate("token => token.classList.add('previous')")
    button(page, "Send").click()
    expect(page.locator("#strip .previous")).to_have_count(0)
    settle(page)
    expect(strip).to_contain_text("<|im_start|>user↵ Where <b>now</b>?<|im_end|>")
    expect(reply).to_have_value("")
    link = make_link(page)
    expect(link).to_have_value(re.compile("messages="))
    whole, address = strip.text_content(), link.input_value()
    switch.uncheck()
    generate(page, "Who?")
    assert "<|im_start|>" not in strip.text_content()
    expect(reply).to_be_hidden()
    open_page(page, address)
    expect(strip).to_contain_text("Where <b>now</b>?")
    settle(page)
    assert strip.text_content() == whole
    expect(switch).to_be_checked()
    shown(page, "system prompt").click()
    expect(page.locator("#chat textarea")).to_have_value("Be brief.")
