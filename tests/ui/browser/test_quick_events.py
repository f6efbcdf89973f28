"""Events that come faster than their answers: the last one counts, also on a busy machine."""

from contextlib import contextmanager

import pytest
from playwright.sync_api import expect
from ui.browser.actions import ask_for_a_long_sample, begin, open_tab, settle


@pytest.fixture
def page(one_page):
    return one_page


@contextmanager
def held_requests(page):
    """Keeps what the page sends from the server until the end."""
    held = []
    page.route("**/queue/join**", lambda route: held.append(route))
    yield held
    for route in held:
        route.continue_()
    page.unroute("**/queue/join**")


def test_the_token_that_was_clicked_last_is_shown(page):
    open_tab(page, "Layers")
    tokens, column = page.locator("#layers-strip .token"), page.locator("#lens-column tbody")
    shown = {}
    for index in (6, 5, 3):
        before = column.text_content()
        tokens.nth(index).click()
        expect(column).not_to_have_text(before)
        shown[index] = column.text_content()
    assert len(set(shown.values())) == 3
    tokens.nth(6).click()
    expect(column).to_have_text(shown[6])
    with held_requests(page) as held:
        for index in (5, 6, 3):
            tokens.nth(index).click()
        page.wait_for_timeout(300)
        assert held
    expect(column).to_have_text(shown[3])


def test_an_event_that_waited_for_one_that_is_refused_is_answered(page):
    open_tab(page, "Attention")
    expect(page.locator("#attention .js-plotly-plot")).to_be_visible()
    tokens = page.get_by_label("tokens", exact=True)
    with held_requests(page):
        tokens.fill("x")
        with page.expect_request("**/queue/join**"):  # with this text, not the next
            tokens.press("Enter")
        tokens.fill("5-24")
        tokens.press("Enter")
        page.wait_for_timeout(300)
    expect(page.get_by_text("tokens are").first).to_be_visible()  # the refusal
    expect(page.get_by_text("drawn: 5 to 24")).to_be_visible()


@pytest.mark.parametrize("hidden", [True, False])
def test_a_text_stays_in_order_while_the_window_is_left_and_seen_again(page, hidden):
    """Of several answers that a busy page finds at once, none overtakes another."""
    open_tab(page, "Playground")
    ask_for_a_long_sample(page)
    page.evaluate(
        """hidden => {
        const get = () => (hidden = !hidden) ? 'hidden' : 'visible';
        Object.defineProperty(document, 'visibilityState', {get, configurable: true});
        window.busy = setInterval(() => { for (const end = performance.now() + 80; performance.now() < end;); }, 20);
        window.grown = [];
        new MutationObserver(() => grown.push(document.querySelector('#strip .tokens')?.textContent ?? ''))
            .observe(document.querySelector('#strip'), {subtree: true, childList: true});
    }""",
        hidden,
    )
    parts = []
    while len(parts) <= 5:  # a machine so busy that it draws a sample in few parts draws another
        page.evaluate("grown.splice(0, grown.length - 1)")
        begin(page, "Once upon a time")
        settle(page)
        grown = page.evaluate("grown")
        begun = next(
            i for i, text in enumerate(grown) if i and len(text) < len(grown[i - 1])
        )  # where the last sample went
        new = grown[begun:]
        assert len(set(new)) > 2 and all(after.startswith(before) for before, after in zip(new, new[1:]))
        parts += set(new)
    page.evaluate("clearInterval(busy); delete document.visibilityState")
