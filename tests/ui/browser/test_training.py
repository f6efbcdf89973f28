"""The Train tab: start a run, watch it, control it, leave it and find it again, and open its checkpoints."""

import json
import os
import re
import signal
import zipfile

import pytest
from gradio_client import Client
from playwright.sync_api import expect
from running import start_app, wait_until
from ui.browser.actions import button, fill, labelled, open_form, settle, watched_page

from deepseek.training import job_process, runs
from deepseek.training.config import TrainConfig
from deepseek.training.trainer import train

PROCESS_TIMEOUT_MS = 90_000  # a training process has to start and to read its data
ENDLESS = 50_000  # steps


@pytest.fixture
def page(context, training_app):
    """A page on the Train tab; fails at the end if the console had an error."""
    with watched_page(context, training_app[0]) as (page, _):
        page.goto(training_app[0])
        open_train_tab(page)
        yield page
    for run in runs.list_runs(training_app[1]):
        if run.alive:  # a test that failed leaves no run in the next one's way
            runs.stop(training_app[1], run.name)


def open_train_tab(page):
    expect(page.locator("#strip .token").first).to_be_visible()
    page.get_by_role("tab", name="Train", exact=True).click()
    expect(page.get_by_role("button", name="Start a run")).to_be_visible()


def start(page, name, max_steps=ENDLESS):
    """Starts a small run of the built-in text; the form must be open."""
    fill(page, "model size", "tiny")
    labelled(page, "model size").press("Enter")
    expect(labelled(page, "learning rate (lr)")).to_have_value("0.002")
    # Not earlier: gradio 6.31 resets a control to its first value one frame after it was drawn. A user cannot type that
    # early, a script can.
    for label, value in (("name", name), ("max steps", max_steps), ("batch size", 4), ("max seq len", 32)):
        fill(page, label, value)
    page.get_by_role("button", name="all settings").click()
    for label, value in (("save every", 20), ("eval every", 0), ("sample every", 20)):
        fill(page, label, value)
    expect(labelled(page, "name")).to_have_value(name)
    button(page, "Start").click()


def curve(page):
    """(steps, values) of the plotted training loss, not smoothed."""
    plot = page.locator("#loss .js-plotly-plot")
    expect(plot).to_be_visible(timeout=PROCESS_TIMEOUT_MS)
    return plot.evaluate("plot => [[...plot._fullData[0].x], [...plot._fullData[0].y]]")


def until_step(page, step):
    """Waits until the curve has that step."""
    expect(page.locator("#loss .js-plotly-plot")).to_be_visible(timeout=PROCESS_TIMEOUT_MS)
    plotted = f"document.querySelector('#loss .js-plotly-plot')._fullData?.[0].x.at(-1) >= {step}"
    page.wait_for_function(plotted, timeout=PROCESS_TIMEOUT_MS)


def stop(page):
    button(page, "Stop and save").click()
    expect(page.locator("#progress")).to_contain_text("stopped")


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_run_is_started_watched_left_found_again_paused_opened_and_stopped(page, training_app):
    _, root = training_app
    expect(page.locator("#no-run")).to_be_visible()
    assert page.locator("#loss .js-plotly-plot:visible").count() == 0
    expect(page.locator(".js-plotly-plot:visible")).to_have_count(2)  # the example
    start(page, "first")
    until_step(page, 60)
    steps, values = curve(page)
    assert sum(values[-5:]) / 5 < values[0] - 0.3
    page.reload()
    open_train_tab(page)
    expect(page.locator("#progress")).to_contain_text("running")
    until_step(page, steps[-1] + 20)
    steps, _ = curve(page)
    assert steps[0] == 1 and steps == list(range(1, steps[-1] + 1))
    expect(page.locator("#probe .js-plotly-plot")).to_be_visible()
    probe = "JSON.stringify(document.querySelector('#probe .js-plotly-plot').data[0].z)"
    newest, slider = page.evaluate(probe), page.locator("#probe-at input[type=range]")
    slider.press("Home")
    expect(page.get_by_text("Checkpoint 0: step 0")).to_be_visible()
    page.wait_for_function(f"newest => {probe} != newest", arg=newest)
    until_step(page, steps[-1] + 40)  # new checkpoints leave the slider where the user put it
    expect(slider).to_have_value("0")  # the answer of a poll under way moves it, the next poll mends that
    expect(page.get_by_text("Checkpoint 0: step 0")).to_be_visible()
    expect(page.locator("#samples textarea")).to_have_value(re.compile("step 20(?s:.*)Once upon a tim"))
    check_polling(page)
    check_pausing(page, root)
    check_opening(page, root)
    stop(page)
    expected = losses(root / "first")
    until_step(page, max(expected))
    steps, values = curve(page)
    assert values == pytest.approx([expected[step] for step in steps])
    button(page, "Open in the Playground").click()
    expect(page.locator("#which")).to_contain_text(f"deepseek_checkpoints/first/step-{max(expected):06d}")
    page.get_by_label("prompt").first.fill("import")
    button(page, "Generate").click()
    expect(page.locator("#strip .prompt")).to_have_text("import")
    expect(page.locator("#stats")).to_contain_text("ended by")


def asked(page, seconds):
    """The numbers of the event functions that the page asks the server for in that time."""
    functions = []

    def note(request):
        if "/queue/join" in request.url:
            functions.append(request.post_data_json["fn_index"])

    page.on("request", note)
    page.wait_for_timeout(1000 * seconds)
    page.remove_listener("request", note)
    return functions


def check_polling(page):
    """The tab asks for the run once a second, and not while another page or another tab is shown."""
    with page.expect_request("**/queue/join**") as request:
        pass
    poll = request.value.post_data_json["fn_index"]
    functions = asked(page, 3)
    assert len(functions) <= 4 and set(functions) <= {poll}
    page.evaluate("Object.defineProperty(document, 'hidden', {configurable: true, get: () => true})")
    page.wait_for_timeout(500)  # for a poll under way
    assert asked(page, 2) == []
    page.evaluate("delete document.hidden")
    before, _ = curve(page)
    until_step(page, before[-1] + 1)

    def answer_polls_only(route):
        if route.request.post_data_json["fn_index"] == poll:
            route.continue_()

    page.route("**/queue/join**", answer_polls_only)  # a server that is too busy for the rest
    page.get_by_role("tab", name="Playground", exact=True).click()
    page.wait_for_timeout(500)
    assert poll not in asked(page, 3)
    page.unroute("**/queue/join**")  # lets the rest through
    page.get_by_role("tab", name="Train", exact=True).click()


def check_pausing(page, root):
    """The run stands still while it is paused."""
    button(page, "Pause").click()
    expect(page.locator("#progress")).to_contain_text("paused")
    page.wait_for_timeout(500)
    paused_at = max(losses(root / "first"))
    page.wait_for_timeout(1000)
    assert max(losses(root / "first")) == paused_at
    button(page, "Resume").click()
    until_step(page, paused_at + 10)


def check_opening(page, root):
    """A checkpoint that is opened while the run goes on is not pruned after three more."""
    button(page, "Open in the Playground").click()
    expect(page.locator("#which")).to_contain_text("deepseek_checkpoints/first/step-")
    opened = root.parent / page.locator("#which code").inner_text()
    settle(page)
    open_train_tab(page)
    expect(page.locator("#progress")).to_contain_text("running")
    until_step(page, int(opened.name[5:]) + 80)
    assert opened.is_dir()


def test_two_finished_runs_are_compared_and_one_is_extended_downloaded_and_deleted(page, training_app):
    _, root = training_app
    tiny = dict(preset="tiny", max_steps=4, batch_size=2, max_seq_len=32, save_every=2, sample_every=0, eval_every=0)
    for name in ("oldest", "former", "newer"):
        list(train(TrainConfig(name=name, root=str(root), **tiny)))
    page.reload()
    open_train_tab(page)
    expect(labelled(page, "run")).to_have_value(re.compile("newer"))
    check_film(page)
    labelled(page, "overlay").click()
    page.get_by_role("option", name=re.compile("oldest")).click()
    names = "document.querySelector('#loss .js-plotly-plot').data.map(trace => trace.name).join()"
    page.wait_for_function(f"{names}.includes('oldest, training')")
    runs.delete(root, "oldest")  # as another window would
    expect(labelled(page, "overlay")).to_have_value("none")
    page.wait_for_function(f"!{names}.includes('oldest')")
    fill(page, "last step", 3)
    button(page, "Resume").click()
    expect(page.get_by_text("steps; it must be that at least").first).to_be_visible()
    fill(page, "last step", 6)
    button(page, "Resume").click()
    expect(page.locator("#progress")).to_contain_text("finished · step 6 of 6", timeout=PROCESS_TIMEOUT_MS)
    button(page, "Download").click()
    with page.expect_download() as download:
        page.locator("#archive a[download]").click()
    names = zipfile.ZipFile(download.value.path()).namelist()
    assert {name.split("/")[1] for name in names} >= {"model.safetensors", "config.json", "tokenizer.json"}
    page.on("dialog", lambda dialog: dialog.accept())
    button(page, "Delete").click()
    expect(labelled(page, "run")).to_have_value(re.compile("former"))
    assert not (root / "newer").exists()
    runs.delete(root, "former")  # as another window would
    shown = "[...document.querySelectorAll('input')].some(e => e.checkVisibility() && e.value.startsWith('former ·'))"
    page.wait_for_function(f"!{shown}")


def check_film(page):
    """It plays all checkpoints from the first, and arrow keys step it; the curves are marked at the step shown."""
    play, note = page.locator(".film .play"), page.locator("#probe-note")
    mark = "document.querySelector('#router-curves .js-plotly-plot').layout.shapes[0].x0"
    expect(note).to_contain_text("Checkpoint 2: step 4")
    play.click()
    for index in range(3):
        expect(note).to_contain_text(f"Checkpoint {index}: step {2 * index}")
    expect(play).to_have_text("▶ play")
    page.wait_for_function(f"{mark} === 4")
    play.press("ArrowLeft")
    expect(note).to_contain_text("Checkpoint 1: step 2")
    page.wait_for_function(f"{mark} === 2")
    play.press("Home")
    expect(note).to_contain_text("Checkpoint 0: step 0")
    play.press("End")
    expect(note).to_contain_text("Checkpoint 2: step 4")


def test_a_wrong_setting_and_a_bad_file_are_refused(page, training_app, tmp_path):
    _, root = training_app
    open_form(page)
    start(page, "../up", max_steps=10)
    expect(page.get_by_text("name is '../up'").first).to_be_visible()
    fill(page, "name", "third")
    page.get_by_label("uploaded file").check()
    table = tmp_path / "table.csv"
    table.write_text("title,content\nA,a little fox\n")
    page.locator("input[type=file]").first.set_input_files(table)
    expect(page.get_by_label("text column")).to_have_value("content")
    page.locator(".block", has=page.locator(".file-preview")).last.get_by_label("Clear").click()
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"plain text, then \xff\xfe\n" * 100)
    page.locator("input[type=file]").first.set_input_files(bad)
    expect(page.get_by_text("bad").first).to_be_visible()
    button(page, "Start").click()
    expect(page.get_by_text(re.compile("bad.txt.*UTF-8")).first).to_be_visible()
    assert not (root / "third").exists()


def test_a_run_outlives_the_app_and_shows_how_it_was_killed(page, training_app, tmp_path):
    """A second app in the same folder starts the run and is killed."""
    _, root = training_app
    run = root / "mine"

    def process():
        return job_process.read_json(run / job_process.PROCESS_FILE)

    url, app = start_app(root.parent, tmp_path / "log")
    settings = dict(max_steps=ENDLESS, max_seq_len=32, batch_size=4, save_every=20)
    client = Client(url, verbose=False, httpx_kwargs=dict(timeout=60))
    client.predict(name="mine", **settings, api_name="/train_start")
    wait_until(lambda: runs.find(root, "mine").step >= 30)
    app.kill()
    app.wait()
    step = runs.find(root, "mine").step
    wait_until(lambda: runs.find(root, "mine").step >= step + 30)
    page.reload()
    open_train_tab(page)
    expect(page.locator("#progress")).to_contain_text("running")
    until_step(page, step + 30)
    steps, _ = curve(page)
    assert steps == list(range(1, steps[-1] + 1))
    os.kill(process()["pid"], signal.SIGKILL)
    message = re.compile(r"was killed: its process was killed or crashed. Its last good checkpoint is step-\d+: resume")
    expect(page.get_by_label("what went wrong")).to_have_value(message)
    button(page, "Resume").click()
    expect(page.locator("#progress")).to_contain_text("running")
    until_step(page, max(losses(run)) + 1)
    stop(page)
    wait_until(lambda: job_process.process_status(process()) is None)
