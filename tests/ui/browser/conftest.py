"""A real Chromium on the real app. Without Chromium these tests are skipped, except on CI, where they fail."""

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from ui.browser.actions import open_page, watched_page

TIMEOUT_MS = 60_000  # for two cores that three test processes share
expect.set_options(timeout=TIMEOUT_MS)
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


@pytest.fixture(scope="session")
def context(browser):
    """One profile for all tests, which fetches gradio's scripts once. A page finds its storage empty, as a new visitor's is."""
    with browser.new_context() as context:
        context.set_default_timeout(TIMEOUT_MS)
        forget = "sessionStorage.visited || (localStorage.clear(), sessionStorage.visited = 1)"
        context.add_init_script(f"try {{ {forget} }} catch {{}}")  # about:blank has no storage
        yield context


@pytest.fixture
def page(context, app_url, request):
    """The opened page, 1280 pixels wide unless a test asks for another width. Fails at the end if it complained."""
    with watched_page(context, app_url, getattr(request, "param", 1280)) as (page, _):
        open_page(page, app_url)
        yield page


@pytest.fixture(scope="module")
def one_page(context, app_url):
    """The page for all tests of a file, for those that do not depend on what is shown first. To open it takes seconds."""
    with watched_page(context, app_url) as (page, _):
        open_page(page, app_url)
        yield page
