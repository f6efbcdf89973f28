"""The app over plain HTTP: every wrong call is refused by name, and nothing leaves that is not served."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from campaigns.calls import campaign
from hostile import CANARY

from deepseek.ui.server.request_validation import DEEPEST, LARGEST, deeper, foreign

PASSWORDS = "/etc/passwd"


def asked(url, method, path, body=None, **headers):
    """(status, body) of a request whose path goes out as it is written."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {
            "content-type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def events(url):
    """(event, kinds of its inputs) of what the page sends, one for each function that is given more than a State."""
    page = json.loads(asked(url, "GET", "/config")[1])
    kinds, once = {component["id"]: component["type"] for component in page["components"]}, {}
    for event in page["dependencies"]:
        wanted = [kinds[one] for one in event["inputs"]]
        if event["backend_fn"] and (event["collects_event_data"] or {*wanted} - {"state", "api"}):
            once[event["api_name"].rstrip("_0123456789"), *wanted] = event, wanted
    return list(once.values())


def at_once(work, many):
    """`work(*one)` for each of `many`, several at a time."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda one: work(*one), many))


def sent(url, event, data, session, event_data=None):
    """The last word on a private event of the page, sent with `data`; None where the door refused it."""
    body = {"fn_index": event["id"], "data": data, "session_hash": session, "event_data": event_data}
    if asked(url, "POST", "/gradio_api/queue/join", body)[0] != 200:
        return None
    _, text = asked(url, "GET", f"/gradio_api/queue/data?session_hash={session}")
    messages = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: ")]
    return next(message for message in messages if message["msg"] == "process_completed")


@pytest.fixture
def canary(training_app):
    """A file beside the folders that are served, inside the one that the app runs in."""
    file = training_app[1].parent / "canary.txt"
    file.write_text(CANARY)
    return file


def test_500_calls_leave_no_traceback_no_empty_error_and_no_hang(training_app):
    url, root = training_app
    figures = campaign(url, root.parent / "log", calls=500, seed=0)
    examples = "\n".join(figures.pop("examples", []))
    faults = {name: figures[name] for name in ("tracebacks", "empty_errors", "hangs", "other_faults")}
    assert not any(faults.values()), f"{faults}\n{examples}"
    assert figures["answered"] > 30 and figures["refused"] > 200


FILE = {"path": PASSWORDS, "meta": {"_type": "gradio.FileData"}}
GARBAGE = [None, "x", 5.5, -1, True, FILE, ["\ud800", {"a": 1}], float("nan")]


def test_garbage_sent_to_the_events_of_the_page_leaves_no_traceback(training_app):
    url, root = training_app

    def send(event, wanted, number):
        value = GARBAGE[number]
        told = {"index": value, "id": value, "value": value}
        last = sent(url, event, [value] * len(wanted), f"garbage-{event['id']}-{number}", told)
        if last and not last["success"]:
            message = last["output"]["error"]
            assert message and "\n" not in message, (event["api_name"], value, last["output"])

    at_once(send, [(*event, value) for event in events(url) for value in range(len(GARBAGE))])
    assert "Traceback" not in (root.parent / "log").read_text()


TRAVERSALS = [
    "{}", "/{}", "../../..{}", "..%2f..%2f..%2f..{}", "%2e%2e/%2e%2e{}", "....//....//{}", "file://{}", "{}%00.txt",
    "assets/../{}", "/proc/self/root{}", "/proc/self/cwd/canary.txt", "canary.txt", "./canary.txt", "assets/..%5c{}",
]  # fmt: skip
PLACES = [
    "/gradio_api/file=", "/gradio_api/file/", "/file=", "/assets/", "/static/", "/svelte/", "/gradio_api/proxy=",
    "/gradio_api/custom_component/x/client/", "/", "/theme.css/", "/gradio_api/stream/a/b/",
]  # fmt: skip


def test_no_path_reaches_a_file_that_is_not_served(training_app, canary):
    url, root = training_app
    for place in PLACES:
        for form in TRAVERSALS:
            for target in (str(canary), quote(str(canary), safe=""), PASSWORDS):
                status, text = asked(url, "GET", place + form.format(target))
                assert CANARY.encode() not in text and b"root:" not in text, place + form
                assert status in (200, 301, 307, 400, 403, 404, 405, 422), (status, place + form)
    for file in ("app.py", "deepseek_checkpoints/run/config.json", "log", "assets/demo/config.json"):
        assert asked(url, "GET", f"/gradio_api/file={file}")[0] in (403, 404)
    assert "Traceback" not in (root.parent / "log").read_text()


def test_no_file_of_the_machine_comes_in_as_an_upload(training_app, canary):
    """The page's events with a file in them, and every other with one in the place of its values."""
    url, root = training_app
    targets = [str(canary), "canary.txt", "../canary.txt", f"file://{canary}", "http://127.0.0.1:9/x"]

    def send(number, target, event, wanted):
        file = {"path": target, "url": target, "meta": {"_type": "gradio.FileData"}}
        for form, value in enumerate((file, [file], {"value": file})):
            last = sent(url, event, [value] * len(wanted), f"file-{number}-{form}-{event['id']}")
            assert CANARY not in json.dumps(last)

    taking = [(event, wanted) for event, wanted in events(url) if {"file", "uploadbutton", "browserstate"} & {*wanted}]
    at_once(send, [(number, target, *event) for number, target in enumerate(targets) for event in taking])
    assert not [file for file in root.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    assert "Traceback" not in (root.parent / "log").read_text()


@pytest.mark.parametrize(
    "name", ["../../canary2.txt", "..%2f..%2fcanary2.txt", "/tmp/canary2.txt", "a\\..\\b.txt", "x" * 400, "\0", ""]
)
def test_an_upload_lands_in_its_own_folder(training_app, name):
    url, root = training_app
    body = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\nhello\r\n--b--\r\n'.encode()
    status, text = asked(url, "POST", "/gradio_api/upload", body, content_type="multipart/form-data; boundary=b")
    assert status in (200, 400)
    for path in json.loads(text) if status == 200 else []:
        place = Path(path).resolve()
        assert place == Path(path) and place.parents[1].name == "gradio"
    assert not list(root.parent.rglob("canary2*")) and "Traceback" not in (root.parent / "log").read_text()


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "text/plain", ""])
def test_an_upload_that_is_none_is_refused(training_app, kind):
    url, root = training_app
    assert asked(url, "POST", "/gradio_api/upload", b"--b\r\nnonsense", content_type=kind)[0] in (400, 422)
    assert "Traceback" not in (root.parent / "log").read_text()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://evil.example:7860", "null", "http://[", "http://localhost.evil.example"]
)
def test_the_page_of_another_site_gets_nothing(training_app, origin):
    url, _ = training_app
    call = {"prompt": "Once", "max_new_tokens": 1}
    for method, path, body in (
        ("POST", "/gradio_api/call/v2/generate", call),
        ("POST", "/gradio_api/run/predict", {"data": [], "fn_index": 4}),
        ("POST", "/gradio_api/upload", b""),
        ("GET", "/gradio_api/info", None),
        ("GET", "/config", None),
        ("GET", "/gradio_api/file=/etc/hostname", None),
    ):
        status, text = asked(url, method, path, body, origin=origin)
        assert status == 403 and json.loads(text)["detail"].startswith("Origin is "), path
    assert asked(url, "POST", "/gradio_api/call/v2/generate", call, origin=url)[0] == 200
    assert asked(url, "GET", "/", origin=origin)[0] == 200  # anybody may link to the page


def test_a_browser_behind_a_proxy_that_hides_the_host_is_believed():
    headers = {"origin": "https://a.example", "host": "10.0.0.1:7860"}
    assert foreign(headers) and not foreign({**headers, "sec-fetch-site": "same-origin"})
    assert not foreign({**headers, "x-forwarded-host": "a.example"}) and not foreign({"host": "x"})
    assert not foreign({"origin": "http://localhost:7860", "host": "127.0.0.1:7860"})


def test_what_is_in_one_another_is_counted():
    value = 1
    for _ in range(DEEPEST):
        value = [value]
    assert not deeper(value, DEEPEST) and deeper({"a": value}, DEEPEST)


@pytest.mark.parametrize("size", [LARGEST + 1, 50_000_000])
def test_a_body_that_is_too_large_is_told_so(training_app, size):
    status, text = asked(training_app[0], "POST", "/gradio_api/call/v2/generate", b" " * size)
    assert status == 413 and f"the body has {size:,} bytes; it must have {LARGEST:,} at most." in text.decode()
