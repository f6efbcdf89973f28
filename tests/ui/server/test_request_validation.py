"""The app over plain HTTP: every wrong call is refused by name, and no file is served that must not be."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from campaigns.calls import campaign
from hostile import CANARY
from starlette.datastructures import Headers

from deepseek.ui.server.request_validation import MAX_BODY_BYTES, MAX_DEPTH, is_deeper, is_foreign

PASSWORDS = "/etc/passwd"


def request(url, method, path, body=None, **headers):
    """(status, body) of a request; the path is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def events(url):
    """(event, component types of its inputs) of what the page sends, one of each sort that takes more than a State."""
    page = json.loads(request(url, "GET", "/config")[1])
    types, unique = {component["id"]: component["type"] for component in page["components"]}, {}
    for event in page["dependencies"]:
        inputs = [types[component] for component in event["inputs"]]
        if event["backend_fn"] and (event["collects_event_data"] or {*inputs} - {"state", "api"}):
            unique[event["api_name"].rstrip("_0123456789"), *inputs] = event, inputs
    return list(unique.values())


def in_parallel(function, arguments):
    """`function(*each)` for each of `arguments`, several at a time."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda each: function(*each), arguments))


def send_event(url, event, data, session, event_data=None):
    """The last message about an event of the page sent with `data`; None if the request was refused."""
    body = {"fn_index": event["id"], "data": data, "session_hash": session, "event_data": event_data}
    if request(url, "POST", "/gradio_api/queue/join", body)[0] != 200:
        return None
    _, text = request(url, "GET", f"/gradio_api/queue/data?session_hash={session}")
    messages = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: ")]
    return next(message for message in messages if message["msg"] == "process_completed")


@pytest.fixture
def canary(training_app):
    """A file in the app's working folder, beside the folders that are served."""
    file = training_app[1].parent / "canary.txt"
    file.write_text(CANARY)
    return file


def test_250_calls_leave_no_traceback_no_empty_error_and_no_hang(training_app):
    url, root = training_app
    results = campaign(url, root.parent / "log", calls=250, seed=0)
    examples = "\n".join(results.pop("examples", []))
    faults = {name: results[name] for name in ("tracebacks", "empty_errors", "hangs", "other_faults")}
    assert not any(faults.values()), f"{faults}\n{examples}"
    assert results["answered"] > 30 and results["refused"] > 200


FILE = {"path": PASSWORDS, "meta": {"_type": "gradio.FileData"}}
GARBAGE = [None, "x", 5.5, -1, True, FILE, ["\ud800", {"a": 1}], float("nan")]


def test_garbage_in_the_page_s_events_leaves_no_traceback(training_app):
    url, root = training_app

    def send(event, inputs, number):
        value = GARBAGE[number]
        event_data = {"index": value, "id": value, "value": value}
        last = send_event(url, event, [value] * len(inputs), f"garbage-{event['id']}-{number}", event_data)
        if last and not last["success"]:
            message = last["output"]["error"]
            assert message and "\n" not in message, (event["api_name"], value, last["output"])

    in_parallel(send, [(*event, number) for event in events(url) for number in range(len(GARBAGE))])
    assert "Traceback" not in (root.parent / "log").read_text()


TRAVERSALS = [
    "{}", "/{}", "../../..{}", "..%2f..%2f..%2f..{}", "%2e%2e/%2e%2e{}", "....//....//{}", "file://{}", "{}%00.txt",
    "assets/../{}", "/proc/self/root{}", "/proc/self/cwd/canary.txt", "canary.txt", "./canary.txt", "assets/..%5c{}",
]  # fmt: skip
PREFIXES = [
    "/gradio_api/file=", "/gradio_api/file/", "/file=", "/assets/", "/static/", "/svelte/", "/gradio_api/proxy=",
    "/gradio_api/custom_component/x/client/", "/", "/theme.css/", "/gradio_api/stream/a/b/",
]  # fmt: skip


def test_no_path_reaches_a_file_that_is_not_served(training_app, canary):
    url, root = training_app

    def get(path):
        status, text = request(url, "GET", path)
        assert CANARY.encode() not in text and b"root:" not in text, path
        assert status in (200, 301, 307, 400, 403, 404, 405, 422), (status, path)

    targets = (str(canary), quote(str(canary), safe=""), PASSWORDS)
    paths = {prefix + form.format(target) for prefix in PREFIXES for form in TRAVERSALS for target in targets}
    in_parallel(get, [(path,) for path in sorted(paths)])
    for file in ("app.py", "deepseek_checkpoints/run/config.json", "log", "assets/demo/config.json"):
        assert request(url, "GET", f"/gradio_api/file={file}")[0] in (403, 404)
    assert "Traceback" not in (root.parent / "log").read_text()


def test_no_local_file_is_taken_as_an_upload(training_app, canary):
    """Not by an event with a file input, and not by a BrowserState with a file as its value."""
    url, root = training_app
    targets = [str(canary), "canary.txt", "../canary.txt", f"file://{canary}", "http://127.0.0.1:9/x"]

    def send(number, target, event, inputs):
        file = {"path": target, "url": target, "meta": {"_type": "gradio.FileData"}}
        for form, value in enumerate((file, [file], {"value": file})):
            last = send_event(url, event, [value] * len(inputs), f"file-{number}-{form}-{event['id']}")
            assert CANARY not in json.dumps(last)

    with_files = [
        (event, inputs) for event, inputs in events(url) if {"file", "uploadbutton", "browserstate"} & {*inputs}
    ]
    in_parallel(send, [(number, target, *event) for number, target in enumerate(targets) for event in with_files])
    assert not [file for file in root.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    assert "Traceback" not in (root.parent / "log").read_text()


def test_an_upload_lands_in_its_own_folder(training_app):
    url, root = training_app
    for name in ("../../canary2.txt", "..%2f..%2fcanary2.txt", "/tmp/canary2.txt", "a\\..\\b.txt", "x" * 400, "\0", ""):
        body = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\nhello\r\n--b--\r\n'
        content_type = "multipart/form-data; boundary=b"
        status, text = request(url, "POST", "/gradio_api/upload", body.encode(), content_type=content_type)
        assert status in (200, 400), name
        for path in json.loads(text) if status == 200 else []:
            file = Path(path).resolve()
            assert file == Path(path) and file.parents[1].name == "gradio"
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=", "text/plain", ""):
        status, _ = request(url, "POST", "/gradio_api/upload", b"--b\r\nnonsense", content_type=content_type)
        assert status in (400, 422), content_type
    assert not list(root.parent.rglob("canary2*")) and "Traceback" not in (root.parent / "log").read_text()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://evil.example:7860", "null", "http://[", "http://localhost.evil.example"]
)
def test_the_page_of_another_site_is_refused(training_app, origin):
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
        status, text = request(url, method, path, body, origin=origin)
        assert status == 403 and json.loads(text)["detail"].startswith("Origin is "), path
    assert request(url, "POST", "/gradio_api/call/v2/generate", call, origin=url)[0] == 200
    assert request(url, "GET", "/", origin=origin)[0] == 200  # any site may link to the page


def test_a_browser_behind_a_proxy_that_hides_the_host_is_believed():
    headers = {"origin": "https://a.example", "host": "10.0.0.1:7860"}
    for more, foreign in (
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"x-forwarded-host": "a.example"}, False),
    ):
        assert is_foreign(Headers({**headers, **more})) == foreign
    assert not is_foreign(Headers({"host": "x"}))
    assert not is_foreign(Headers({"origin": "http://localhost:7860", "host": "127.0.0.1:7860"}))


def test_nesting_is_limited():
    value = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert not is_deeper(value, MAX_DEPTH) and is_deeper({"a": value}, MAX_DEPTH)


def test_too_large_a_body_is_refused_with_its_size(training_app):
    for size in (MAX_BODY_BYTES + 1, 50_000_000):
        status, text = request(training_app[0], "POST", "/gradio_api/call/v2/generate", b" " * size)
        assert status == 413
        assert f"the body has {size:,} bytes; it must have {MAX_BODY_BYTES:,} at most." in text.decode()
