"""What the browser tests do on the page: open it, type, click, and read what it shows."""

import re
from contextlib import contextmanager

from playwright.sync_api import expect
from running import LEFT


def new_page(context, width=1280):
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    return page


@contextmanager
def watched_page(context, url, width=1280):
    """(page, complaints): a page for the app at `url`, not opened yet.

    Fails at the end if there are complaints: errors on the console, and requests to another host.
    """
    page, complaints = new_page(context, width), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else complaints.append(r.url))
    yield page, complaints
    page.close()
    serious = [complaint for complaint in complaints if not complaint.startswith(LEFT)]
    assert not serious, serious


def open_page(page, url):
    """Opens the app and waits until it shows its first sample and can be typed in.

    gradio 6.31 sets a control to its first value again one frame after it was drawn: too early for a user, not for a script.
    """
    page.goto(url)
    expect(page.locator("#strip .token").first).to_be_visible()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


@contextmanager
def replaced(page, *selectors):
    """Waits at its end until what these selectors find first has been replaced by something new, which may look the same."""
    for selector in selectors:
        page.locator(selector).first.evaluate("element => element.classList.add('previous')")
    yield
    expect(page.locator(".previous")).to_have_count(0)


def begin(page, prompt=None):
    """Presses Generate and waits until the previous sample is gone. (A short sample may end before it is looked at.)"""
    if prompt:
        page.get_by_label("prompt").first.fill(prompt)
    with replaced(page, "#strip .token"):
        button(page, "Generate").click()


def ask_for_a_long_sample(page):
    """Sets the sampler so hot that a sample does not end early."""
    for name, value in (("max new tokens", 400), ("temperature", 2), ("top-k", 0), ("top-p", 1)):
        slide(page, name, value)


def settle(page):
    """Waits until the sample has ended."""
    expect(page.locator("#stats")).to_contain_text("ended by")


def generate(page, prompt=None):
    begin(page, prompt)
    settle(page)


def texts(page, strip):
    """The tokens that a strip shows."""
    return page.locator(f"#{strip} .token").all_text_contents()


def open_tab(page, name):
    """Opens a tab or a sub-tab."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():  # on a phone the last tabs are behind a menu, the last sub-tabs behind another
        entry = page.locator(".overflow-dropdown button", has_text=re.compile(f"^{re.escape(name)}$"))
        menu = page.locator(".tab-wrapper:visible", has=entry).last
        menu.get_by_label("More tabs").click()
        tab = menu.locator(entry)
    tab.click()


def plotted(page, index):
    """The traces that the index-th visible plot has drawn."""
    plot = page.locator(".js-plotly-plot:visible").nth(index)
    expect(plot).to_be_visible()
    return plot.evaluate("plot => plot.data.map(trace => ({x: [...trace.x], type: trace.type}))")


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def number_box(page, label):
    """The number field of a slider."""
    return page.get_by_label("number input for " + label, exact=True).locator("visible=true").first


def slide(page, label, value):
    number_box(page, label).fill(str(value))
    number_box(page, label).press("Tab")


def visible_box(page, label):
    """The field with this label; for the browser the label also holds the line of explanation below it."""
    name = page.locator("[data-testid=block-info]", has_text=re.compile(f"^\\s*{label}\\s*$"))
    block = page.locator(".block", has=name).filter(
        has_not=page.locator(".block")
    )  # an accordion around it is a block too
    return block.locator("textarea, input").locator("visible=true").first


def labelled(page, label):
    """The control whose accessible name begins with this label; the explanation below it follows."""
    return page.get_by_label(re.compile(rf"^\s*{re.escape(label)}")).first


def fill(page, label, value):
    labelled(page, label).fill(str(value))


def open_form(page):
    """Opens the Train tab's form. It is open already where there is no run; the page knows once it shows either."""
    none, run = page.locator("#no-run:visible"), page.locator("#progress .rail:visible")
    expect(none.or_(run)).to_be_visible()
    if run.count():
        page.get_by_role("button", name="Start a run").click()
    expect(labelled(page, "name")).to_be_visible()


def shown(page, text):
    """The first visible element with exactly this text."""
    return page.get_by_text(text, exact=True).locator("visible=true").first


def make_link(page):
    """The field with the link that the page makes to its sample; the accordion must be closed."""
    shown(page, "save and share").click()
    button(page, "Make a link to this text").click()
    return page.locator("#link").locator("textarea, input")


def branch(page, position):
    """Branches at a token, from 0, with another candidate; returns the text of that candidate."""
    page.locator("#strip .token").nth(position).click()
    expect(page.locator("#token-heading")).to_contain_text(f"Token {position + 1}:")
    page.get_by_text("candidates: click one").click()
    candidate = page.locator("#candidates tbody button:not([disabled])").first
    text = candidate.text_content()
    candidate.click()
    expect(page.locator("#stats")).to_contain_text(f"branched at token {position + 1}")
    settle(page)
    return text


def titles(page):
    """What hovering shows of each token of the Playground."""
    return page.locator("#strip .token").evaluate_all("all => all.map(e => e.title)")
