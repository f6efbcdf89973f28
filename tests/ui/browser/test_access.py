"""Accessibility: contrast and labels by axe, the keyboard alone, a phone's width, and a line of explanation per panel."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from ui.browser.actions import new_page, open_page, open_tab, settle, texts

TABS = [
    ["Playground"],
    ["Walk"],
    ["Experts", "This text"],
    ["Experts", "Long text"],
    ["Experts", "Domains"],
    *(
        ["What experts do", name]
        for name in ("Vocabulary", "Kinds of text", "Partners", "Repetition", "Geometry", "Report")
    ),
    ["Attention"],
    ["Layers"],
    ["Intervene"],
    ["Intervene", "Importance"],
    ["Intervene", "Steer"],
    ["Compare"],
    ["Train"],
    ["Model"],
]
# "target-size", 24 pixels for a finger, is off in axe by default.
RULES = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}

# Texts that extend beyond the window and cannot be scrolled to.
CUT = """() => [...document.querySelectorAll('body *')].filter(e => {
  const text = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()), box = e.getBoundingClientRect();
  if (!text || !e.checkVisibility({visibilityProperty: true}) || !box.width || box.right <= innerWidth + 1) return false;
  if (e.closest('.tab-wrapper')) return false;  // on a phone the tabs that do not fit are in a menu as well
  for (let up = e; up; up = up.parentElement) if (/auto|scroll/.test(getComputedStyle(up).overflowX)) return false;
  return true;
}).map(e => e.textContent.trim().slice(0, 60))"""

# Notes who gets the focus, and whether it is seen there.
WATCH_FOCUS = """window.reached = new Set(); window.unseen = [];
addEventListener('focusin', event => {
  const element = event.target;
  reached.add(element);
  if (getComputedStyle(element).outlineStyle === 'none' && !/INPUT|TEXTAREA/.test(element.tagName))
    unseen.push(element.outerHTML.slice(0, 160));
})"""
# Controls that have not had the focus since the page was opened; arrow keys move within a group of radio buttons.
UNREACHED = """() => [...document.querySelectorAll('button, a[href], input, select, textarea, [tabindex="0"]')].filter(e => {
  const group = e.type === 'radio' && [...document.getElementsByName(e.name)].some(one => reached.has(one));
  const box = e.getBoundingClientRect();
  return e.checkVisibility({visibilityProperty: true, opacityProperty: true}) && box.width > 1 && !e.disabled
    && e.tabIndex >= 0 && !group && !reached.has(e);
}).map(e => e.outerHTML.slice(0, 160))"""


# axe looks at every element, those of tabs opened before too.
WITHOUT_HIDDEN_TABS = """() => window.hidden = [...document.querySelectorAll('[role=tabpanel]')]
  .filter(panel => !panel.checkVisibility()).map(panel => [panel, panel.replaceWith(panel.mark = new Comment())][0])"""
WITH_HIDDEN_TABS = "() => { for (const panel of window.hidden.reverse()) panel.mark.replaceWith(panel) }"


def findings(page) -> list[str]:
    """The serious and critical violations that axe finds, with their elements."""
    page.evaluate(WITHOUT_HIDDEN_TABS)
    violations = Axe().run(page, context={"exclude": [[".pending"]]}, options=RULES).response["violations"]
    page.evaluate(WITH_HIDDEN_TABS)
    serious = [violation for violation in violations if violation["impact"] in ("serious", "critical")]
    return [f"{v['id']}: {node['html'][:160]} {node['failureSummary']}" for v in serious for node in v["nodes"]]


def show(page, tab, open=open_tab):
    """Opens a tab and waits until it is drawn."""
    for name in tab:
        open(page, name)
    if tab[0] == "What experts do" and tab[-1] != "Report":
        expect(page.locator(".verdicts:visible")).to_contain_text("chance")  # measured when it is first opened
    if tab[-1] == "Steer":
        expect(page.locator("#steer-effect-note")).to_contain_text("Held-out loss")
    if tab[-1] == "Importance":
        expect(page.locator("#runner-ups .ytick > text")).to_have_count(5)  # measured layer by layer
    if tab == ["Walk"]:
        page.locator("#walk .part.router").first.press("Enter")  # with what is told about a part
        expect(page.locator("#walk .facts")).to_be_visible()
        page.get_by_role("tab", name="Walk", exact=True).focus()
    empty = """[...document.querySelectorAll('[aria-label="Empty value"]')].some(one => one.checkVisibility())"""
    page.wait_for_function(f"!{empty}")  # every figure is drawn
    page.wait_for_timeout(300)  # what is being redrawn is pale for a moment
    moving = "document.getAnimations().some(one => one.transitionProperty)"
    page.wait_for_function(f"!document.querySelector('.pending') && !{moving}")


PHONE = pytest.param((375, "dark"), id="phone and dark", marks=pytest.mark.long)


@pytest.fixture(params=[pytest.param((1280, "light"), id="wide and light"), PHONE])
def page(context, app_url, request):
    width, theme = request.param
    page = new_page(context, width)
    open_page(page, f"{app_url}/?__theme={theme}")
    yield page
    page.close()


def test_axe_finds_nothing_serious_nothing_is_cut_and_every_panel_is_explained(page):
    problems = {}
    for tab in TABS:
        show(page, tab)
        problems[" ".join(tab)] = findings(page) + [f"cut: {text}" for text in page.evaluate(CUT)]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
        lines = page.locator("[role=tabpanel]:visible .prose p:visible")
        assert lines.last.text_content() and 20 < len(lines.first.text_content()) < 180, tab  # what the panel is
    open_tab(page, "Playground")
    folded = ("dynamic temperature", "truncation", "penalties", "DRY, against", "mirostat and adaptive-p", "bias and bans",
              "order", "save and share", "candidates: click one", "why not this word?")  # fmt: skip
    for name in folded:
        page.get_by_text(name, exact=name == "order").locator("visible=true").first.click()
    page.wait_for_timeout(400)
    problems["Playground, unfolded"] = findings(page) + [f"cut: {text}" for text in page.evaluate(CUT)]
    assert not {tab: complaints for tab, complaints in problems.items() if complaints}


@pytest.fixture
def keyboard(context, app_url):
    """The page for a user without a mouse; `reached` holds the elements that had the focus."""
    page = new_page(context)
    page.add_init_script(WATCH_FOCUS)
    open_page(page, app_url)
    yield page
    page.close()


def press(page, locator, key="Enter"):
    locator.focus()
    page.keyboard.press(key)


@pytest.mark.long
def test_the_tab_key_reaches_everything_and_shows_where_it_is(keyboard):
    page = keyboard
    page.get_by_role("tab", name="Playground", exact=True).focus()
    page.keyboard.press("Shift+Tab")  # what stands above the tabs
    unreached = {}
    for tab in TABS:
        show(page, tab, lambda page, name: press(page, page.get_by_role("tab", name=name, exact=True)))
        page.get_by_role("tab", name=tab[0], exact=True).focus()
        page.evaluate("unseen = []")
        for _ in range(20):
            for _ in range(20):
                page.keyboard.press("Tab")
            unreached[" ".join(tab)] = page.evaluate(UNREACHED)
            if not unreached[" ".join(tab)]:
                break
        assert not page.evaluate("unseen"), tab
    assert not {tab: elements for tab, elements in unreached.items() if elements}


def test_the_keyboard_alone_does_what_the_mouse_does(keyboard):
    page = keyboard
    before = texts(page, "strip")
    strip = page.locator("#strip .tokens")
    strip.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#token-heading")).to_contain_text("Token 3")
    page.keyboard.press("End")
    expect(page.locator("#strip .detail")).to_contain_text(f"token {len(before)} ")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-heading")).to_contain_text("Token 2")
    press(page, page.get_by_role("button", name="candidates: click one"))
    candidate = page.locator("#candidates tbody button:not([disabled])").first
    text = candidate.text_content()
    press(page, candidate)
    expect(page.locator("#stats")).to_contain_text("branched at token 2")
    settle(page)
    assert texts(page, "strip")[1].replace(" ", "·") == text
    slider = page.get_by_label("range slider for temperature", exact=True).locator("visible=true")
    press(page, slider, "ArrowRight")
    expect(slider).to_have_value("0.75")
    with page.expect_download() as download:
        press(page, page.locator("#csv-funnel"), "Space")
    assert download.value.suggested_filename == "funnel.csv"
    press(page, page.get_by_role("button", name="Generate", exact=True))
    expect(page.locator("#stats")).not_to_contain_text("branched")
    settle(page)
