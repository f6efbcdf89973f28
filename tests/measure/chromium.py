"""A page in Chromium, for the measurements in the browser and the drawing of figures."""

from contextlib import contextmanager

from playwright.sync_api import sync_playwright
from ui.browser.conftest import CHROMIUM, QUIET


@contextmanager
def chromium_page(**options):
    """A new page, with Playwright's `options`, in a Chromium of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser.new_context(**options).new_page()
        browser.close()
