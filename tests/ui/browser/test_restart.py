"""A page that outlives its app."""

import pytest
from playwright.sync_api import expect
from running import ROOT, start_app
from ui.browser.actions import generate, number_box, open_page, settle, slide, texts


@pytest.mark.long
def test_a_page_of_a_restarted_app_is_loaded_again_with_its_text(tmp_path, browser):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    url, app = start_app(tmp_path, tmp_path / "log")
    try:
        with browser.new_context() as context:
            page = context.new_page()
            open_page(page, url)
            slide(page, "temperature", 1.15)
            generate(page, "The little fox")
            before = texts(page, "strip")
            page.evaluate("window.old = true")
            app.terminate()
            app.wait(20)
            url, app = start_app(tmp_path, tmp_path / "log", port=int(url.rpartition(":")[2]))
            page.locator("#strip .token").nth(3).click()
            page.wait_for_function(
                "window.old === undefined"
            )  # gradio too loads a page again, if a request was pending
            expect(page.locator("#strip .prompt")).to_have_text("The little fox")
            settle(page)
            assert texts(page, "strip") == before
            expect(number_box(page, "temperature")).to_have_value("1.15")
            generate(page, "A dog")
    finally:
        app.terminate()
        app.wait(20)
    assert "Traceback" not in (tmp_path / "log").read_text("utf-8")
