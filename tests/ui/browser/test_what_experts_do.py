"""The tab What experts do: measured when opened, on texts of the reader; tables to search and to sort; the report."""

import pytest
from playwright.sync_api import expect
from ui.browser.actions import button, new_page, open_tab, settle, visible_box


@pytest.fixture
def page(one_page):
    return one_page


@pytest.mark.long
def test_the_report_opens_without_the_network(page, context, tmp_path):
    open_tab(page, "What experts do")
    open_tab(page, "Report")
    button(page, "Make the report").click()
    link = page.locator("#report-file a").first
    expect(link).to_be_visible(timeout=180_000)  # 25 s alone on two cores
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "report.html")
    report, complaints = new_page(context), []
    report.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else complaints.append(r.url))
    report.on("pageerror", lambda error: complaints.append(str(error)))
    report.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    report.goto(f"file://{tmp_path}/report.html")
    expect(report.locator("#vocabulary .js-plotly-plot").first).to_be_visible()
    section = report.locator("#partners")
    section.scroll_into_view_if_needed()
    section.locator("summary").get_by_text("layer 2", exact=True).click()
    section.locator(".plot:visible").last.scroll_into_view_if_needed()
    expect(section.locator(".js-plotly-plot:visible")).to_have_count(3)
    section.locator(".sorted:visible").scroll_into_view_if_needed()
    expect(section.locator(".sorted:visible tbody tr").first).to_be_visible()
    with report.expect_download() as download:
        section.locator(".csv:visible").first.click()
    for number, name in ((5, "importance"), (3, "steer")):
        for place in report.locator(f"#{name} .plot").all():
            place.scroll_into_view_if_needed()
        expect(report.locator(f"#{name} .js-plotly-plot")).to_have_count(number)
    assert download.value.suggested_filename.startswith("partners") and not complaints, complaints
    report.close()


def test_kinds_of_text_are_measured_and_their_table_is_searched_and_sorted(page, tmp_path):
    open_tab(page, "What experts do")
    open_tab(page, "Vocabulary")
    verdicts = page.locator(".verdicts:visible")
    expect(verdicts).to_contain_text("token read: ")
    open_tab(page, "Kinds of text")
    expect(verdicts).to_contain_text("encyclopedia: ")
    for width in (375, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
    page.get_by_text("to search and sort").locator("visible=true").click()
    table = page.locator(".sorted:visible")
    expect(table.locator("tbody tr")).to_have_count(8)
    table.get_by_role("button", name="expert").click()
    assert table.locator("tbody th").all_text_contents() == list("76543210")
    table.get_by_role("button", name="expert").click()
    assert table.locator("tbody th").all_text_contents() == list("01234567")
    table.get_by_label("search the table").fill("code")
    expect(table.locator(".found")).to_have_text(f"{table.locator('tbody tr').count()} of 8 rows")
    page.get_by_text("kinds of text: a story").click()
    settle(page)
    expect(visible_box(page, "name of kind 1")).to_have_value("story")
    for number, (name, text) in enumerate(
        [("<b>foxes</b>", "The little fox ran. " * 20), ("numbers", "12 34 56 " * 30)], 1
    ):
        visible_box(page, f"name of kind {number}").fill(name)
        visible_box(page, f"text of kind {number}").fill(text)
    visible_box(page, "text of kind 3").fill("")
    button(page, "Measure").click()
    expect(verdicts).to_contain_text("<b>foxes</b>: ")
    expect(verdicts).not_to_contain_text("code")
    visible_box(page, "name of kind 2").fill("<b>foxes</b>")
    button(page, "Measure").click()
    expect(page.get_by_text("two kinds of text are named").first).to_be_visible()
