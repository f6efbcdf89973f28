"""A real Chromium on the real app. Where there is no Chromium these tests are skipped, except on CI: there they fail."""

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from running import LEFT

expect.set_options(timeout=30_000)
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        message = "no chromium on this machine: install it, or leave the browser tests to CI"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, app_url, request):
    """The page, opened, 1280 pixels wide unless a test asks for another width.

    Fails at the end if anything was written to the console as an error or left the machine.
    """
    page = browser.new_page(viewport={"width": getattr(request, "param", 1280), "height": 900})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((app_url, "data:", "blob:")) else complaints.append(r.url))
    page.goto(app_url)
    expect(page.locator("#strip .token").first).to_be_visible()
    yield page
    page.close()
    assert [complaint for complaint in complaints if not complaint.startswith(LEFT)] == []
