"""Calls of the named endpoints over plain HTTP, valid and not: `python tests/campaigns/calls.py --calls 2500 --seed 1`.

Every call is random from the seed: an endpoint, a way to call it (arguments by name, by position, or as the page does), and
what is wrong with it, if anything: a value, an argument, the body, its size. The app must answer a valid call and refuse
any other in one sentence that names the field, its value and what is allowed. Prints the results as one line of JSON.
"""

import argparse
import http.client
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from running import app_in

from deepseek.inference.sampling import SamplingParams
from deepseek.training import runs

TIMEOUT_S = 60  # after it a call counts as a hang
NAN, INFINITY = float("nan"), float("inf")
TEXTS = [
    "Once upon a time", "a", "é 漢字 🦊", "\ud800 half a pair", "<script>alert(1)</script>", "x" * 99, "../../etc", "\0",
]  # fmt: skip
NUMBERS = [None, "x", "", [], {}, [1], NAN, INFINITY, -INFINITY, 1e308, -1e308, 10**400, True, "1e5", {"value": 1}]
NO_TEXT = [5, 0.5, True, ["x"], {"a": "x"}, NAN, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
# (valid values, invalid values) of an argument.
NUMBER = lambda *valid: (valid, NUMBERS)  # noqa: E731
BOOL = ((True, False), [None, 0, 1, "true", [], {}, NAN])
OFF = ((False, True), BOOL[1])  # off unless given
SETTINGS = {
    "seed": ([-1, 0, 2**40, None], NUMBERS[1:]),
    "temperature": NUMBER(0, 0.5, 1, 2.0), "dynamic_temperature": BOOL, "temperature_min": NUMBER(0.5, 0.1),
    "temperature_max": NUMBER(1.5, 2), "temperature_exponent": NUMBER(1, 0.5), "top_k": NUMBER(0, 1, 40, 3.0),
    "top_p": NUMBER(1, 0.5), "min_p": NUMBER(0, 0.1), "repetition_penalty": NUMBER(1, 1.3),
    "presence_penalty": NUMBER(0, -1), "frequency_penalty": NUMBER(0, 0.5), "no_repeat_ngram_size": NUMBER(0, 2),
    "order": (("transformers", "llama.cpp", "top_k;temp"), ["", "x", "top-k,top-k", *NO_TEXT]),
    "repetition_scope": (("all", "output"), ["", *NO_TEXT]),
    "penalty_scope": (("all", "output"), ["x", *NO_TEXT]), "max_new_tokens": NUMBER(1, 2, 3),
    "stop": ([["."], [], "x", ["a", "b"]], [5, None, [5], [""], ["x" * 999], ["x"] * 99, {}, [["x"]]]),
    "typical_p": NUMBER(1, 0.5), "top_n_sigma": NUMBER(0, 1.5), "epsilon_cutoff": NUMBER(0, 0.001),
    "eta_cutoff": NUMBER(0, 0.002), "xtc_probability": NUMBER(0, 1), "xtc_threshold": NUMBER(0.1, 0.5),
    "dry_multiplier": NUMBER(0, 0.8), "dry_base": NUMBER(1.75, 1), "dry_allowed_length": NUMBER(2, 1),
    "dry_sequence_breakers": ([["\n"], [], "ab"], [5, None, [5], [""], ["x" * 41], {}]), "mirostat_tau": NUMBER(0, 5),
    "mirostat_eta": NUMBER(0.1, 1), "adaptive_target": NUMBER(-1, 0, 0.5), "adaptive_decay": NUMBER(0.9, 0),
    "logit_bias": ([{}, {"5": 1.5, " fox": -100}, [[5, 1]], ["a=1"]], [5, None, ["a"], {"5": NAN}, [[5]], {"99999999": 1}]),
    "banned_tokens": ([[], ["fox", "5"], "x"], [5, None, [5], [""], ["99999999"], {}]), "min_new_tokens": NUMBER(0, 2),
    "regex": (["", "[a-z ]+", "(a|b)*a(a|b){30}"], ["(", "a{9999}", r"\1", "x" * 2001, None, [], *NO_TEXT]),
    "choice": ([[]], [5, None, [5], [""]]), "json_schema": ([""], ["{", "5", 5, None, [], NAN]),
}  # fmt: skip
MESSAGES = ([[]], [5, "x", [5], {"a": 1}, [{"role": "me", "content": "a"}]])
PROMPT = (TEXTS[:-1], ["", " ", "x" * 10**6, "word " * 3000, None, [], *NO_TEXT])
NAME = (["", "nobody", "run"], [*NO_TEXT, None, [], {}])
INTERVENTIONS = (
    [[], [{"expert": 1, "action": "off"}], ["promote 1 0.5"]],
    [[5], [{"expert": 99, "action": "off"}], ["x"]],
)
ARGUMENTS = {
    "generate": {"prompt": PROMPT, **{field.name: SETTINGS[field.name] for field in fields(SamplingParams)}, "traces": BOOL,
                 "interventions": INTERVENTIONS, "messages": MESSAGES,
                 "chat": BOOL, "why_not": (["", "fox", " the", "\ud800"], [" ", "x" * 101, None, [], *NO_TEXT]),
                 "forced_tokens": ([[], ["0-5"], ["1-7", "99-1"]], [5, "0-5", ["x"], [5], ["0-99999"], {"0": 5}, None])},
    "trace": {"text": PROMPT, "attention_layer": ([-1, 0, 3, 2.0], [*NUMBERS, 99, -2, 0.5]),
              "other": (["", "a b"], NO_TEXT), "losses": OFF, "ids": ([[]], [[-1], [10**6], [[1]], 5, "x", [0.5]]),
              "walk": ([-1, 0, 1.0], [*NUMBERS, 10**6, -2, 0.5]), "interventions": INTERVENTIONS, "importances": OFF,
              "messages": MESSAGES},
    "steer": {
        "texts_a": ([["a b.", "c d.", "e f.", "g h."]], [[], ["a b"], [5], "x", None, {}, NAN]),
        "texts_b": ([["1 2", "3 4", "5 6", "7 8"]], [[], ["a b"], [None], 5, None]),
        "count": ([1, 6], [0, -1, 0.5, *NUMBERS]),
        "strength": ([-1, 0, 0.5, 1.0], [2, -2, *NUMBERS]),
    },
    "compare": {
        "prompt": PROMPT,
        "a": ([{"max_new_tokens": 2}], [None, 5, "x", [], {"nope": 1}, {"max_new_tokens": NAN}, {"stop": 3}, *NO_TEXT[-1:]]),
        "b": ([{"max_new_tokens": 2, "temperature": 0}], [{"seed": 1, "top_p": 9}, {"": 1}, {"order": {}}, ["temperature"]]),
        "seed": NUMBER(0, 3), "messages": MESSAGES, "chat": BOOL,
    },
    "sweep": {
        "prompt": PROMPT,
        "setting": (["temperature", "top_k", "seed"], ["", "nope", "order", "stop", *NO_TEXT]),
        "values": ([[1, 2], [3.0, 1], [1, 2, 3]],
                   [None, 5, "x", [], [1], [1, 1], [1, None], [1] * 9, [NAN, 1], ["a", "b"], [{}, 1]]),
        "settings": ([{"max_new_tokens": 2}], [None, 5, [], {"nope": 1}, {"max_new_tokens": NAN}, *NO_TEXT[-1:]]),
        "seed": NUMBER(0, 3), "messages": MESSAGES, "chat": BOOL,
    },
    "specialization": {"texts": ([{}, {"a": "a fox"}], [5, "x", [1], {"a": 5}, {"": "x"}, {"a": ""}]),
                       "layer": ([-1, 3, 2.0], [*NUMBERS, 99, 0.5])},
    "train_start": {
        "name": (["", "mine"], ["../up", "a/b", ".x", "x\0y", "x" * 5000, *NO_TEXT, None, [], {}]),
        "preset": (["tiny"], ["", "huge", None, [], *NO_TEXT]),
        "init_from": ([""], [*NO_TEXT, None, [], "/nowhere", "../.."]),
        "data": ([["builtin"]], [[], None, "builtin", [5], {}, [None], [["builtin"]], NAN]),
        "max_steps": NUMBER(1), "batch_size": NUMBER(1), "max_seq_len": NUMBER(16), "lr": NUMBER(1e-3),
        "balance_weight": NUMBER(0.01), "save_every": NUMBER(1), "seed": NUMBER(0), "secret": (["", "x"], []),
    },
    "train_status": {"name": NAME},
    "train_stop": {"name": NAME, "secret": (["", "x"], [])},
}  # fmt: skip
# What may be wrong with a call, with the weight of its choice.
FAULTS = dict(none=20, value=48, unknown=8, arity=8, body=8, size=1, endpoint=4, fields=3)
REQUIRED = {"prompt", "text"}
BASE = {"generate": {"max_new_tokens": 2}, "compare": {"a": {"max_new_tokens": 2}, "b": {"max_new_tokens": 2}},
        "sweep": {"settings": {"max_new_tokens": 2}},
        "steer": {"texts_a": ["a b.", "c d.", "e f.", "g h."], "texts_b": ["1 2", "3 4", "5 6", "7 8"]},
        "train_start": {"max_steps": 1, "preset": "tiny", "max_seq_len": 16, "batch_size": 1}}  # fmt: skip
# What a refusal may call an argument.
SYNONYMS = {
    "values": "values|temperature|top_k|seed",
    "name": "name|run",
    "interventions": "interventions?|expert",
    "texts_a": "texts_a|list A",
    "texts_b": "texts_b|list B",
    "messages": "messages?|role|prompt",
    "endpoint": "endpoint|path",
}
BODIES = [
    b"", b"{", b"nonsense", b"[]", b"null", b"5", b'"x"', b"NaN", b"\xff\xfe", b"[" * 5000, b'{"a":' * 900 + b"1" + b"}" * 900,
]  # fmt: skip


def random_call(rng: random.Random) -> tuple[str, str, object, str | None]:
    """(endpoint, way to call it, body, the field that the refusal must name or None for a valid call)."""
    endpoint, way = rng.choice(list(ARGUMENTS)), rng.choice(["names", "names", "positions", "page"])
    arguments = ARGUMENTS[endpoint]
    wrong = rng.choices(list(FAULTS), FAULTS.values())[0]
    if wrong == "none" and endpoint == "train_start" and rng.random() < 0.98:
        wrong = "value"  # few valid ones: a run keeps the machine busy for a while
    names = [name for name in arguments if rng.random() < 0.3 or name in REQUIRED]
    values = {**BASE.get(endpoint, {}), **{name: rng.choice(arguments[name][0]) for name in names}}
    if values.get("losses") or values.get("importances"):
        values.pop("interventions", None)  # which are measured without any
    field = None
    if wrong == "value":
        field = rng.choice([name for name, (_, invalid) in arguments.items() if invalid])
        values[field] = rng.choice(arguments[field][1])
    elif wrong == "size":
        field, name = "body", next(iter(arguments))
        values[name] = "x" * int(10 ** rng.uniform(6.1, 7.7))
    elif wrong == "endpoint":
        field = "endpoint"
        endpoint = rng.choice(["nope", "run", "run_1", "lambda", "%00", "a" * 3000, "generate%2f..%2frun"])
        way = "names" if way == "page" else way
    if wrong == "body":
        return endpoint, way, rng.choice(BODIES), "body"
    if way == "names":
        if wrong == "unknown":
            field = rng.choice(["nope", "__class__", "self", "x" * 50, "", "é\ud800", "checkpoint"])
            values[field] = 1
        elif wrong in ("arity", "fields") and REQUIRED & values.keys():
            field = next(iter(REQUIRED & values.keys()))
            del values[field]
        return endpoint, way, values, field
    defaults = {name: valid[0] for name, (valid, _) in arguments.items()} | BASE.get(endpoint, {})
    data: object = [values.get(name, default) for name, default in defaults.items()]
    if wrong in ("unknown", "arity"):
        field, data = "data", rng.choice([data[:-1], [*data, 1], [*data] * 3, None, "x", {"0": 1}, 5])
    body = {"data": data}
    if wrong == "fields":
        field = rng.choice(["session_hash", "data", "fn_index" if way == "page" else "data"])
        body[field] = rng.choice(["x", -1, 10**30, []] if field == "fn_index" else [5.5, True, {}, {"x": NAN}])
    return endpoint, way, body, field


class Caller:
    """Makes one call on the app at `url`."""

    def __init__(self, url: str):
        self.host = urlsplit(url).netloc
        events = json.loads(self._request("GET", "/config")[1])["dependencies"]
        self.index = {event["api_name"]: event["id"] for event in events if event["api_name"] in ARGUMENTS}

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def call(self, endpoint: str, way: str, body, session: str) -> tuple[bool, object]:
        """(whether the call was answered, the answer or the refusal)."""
        if way == "page" and isinstance(body, dict):
            body = {"fn_index": self.index.get(endpoint), "session_hash": session, **body}
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = {"names": f"/gradio_api/call/v2/{endpoint}", "positions": f"/gradio_api/call/{endpoint}"}
        status, text = self._request("POST", path.get(way, "/gradio_api/queue/join"), raw)
        if status != 200:
            try:
                return False, json.loads(text)["detail"]
            except (ValueError, KeyError, TypeError):
                return False, text[:300].decode(errors="replace")
        event = json.loads(text)["event_id"]
        if way != "page":
            _, text = self._request("GET", f"/gradio_api/call/{endpoint}/{event}")
            status, data = re.findall(r"event: (complete|error)\ndata: (.*)\n", text.decode())[-1]
            answer = json.loads(data)
            return status == "complete", answer if status == "complete" else answer and answer["error"]
        _, text = self._request("GET", f"/gradio_api/queue/data?session_hash={session}")
        messages = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: ")]
        last = next(message for message in messages if message["msg"] == "process_completed")
        return last["success"], last["output"].get("data") if last["success"] else last["output"].get("error")


def fault(endpoint: str, field: str | None, answered: bool, answer) -> str:
    """What is wrong with the app's answer, "" if nothing."""
    if answered:
        return "an invalid call was answered" if field else "" if answer else "an empty answer"
    if not answer:
        return "an empty error"
    if not isinstance(answer, str) or "\n" in answer or len(answer) > 1200 or not answer.endswith("."):
        return "a refusal that is not one sentence"
    if field is None:  # of a training call: whether a run is in progress decides
        return "" if endpoint.startswith("train") else "a valid call was refused"
    if endpoint == "train_start" and "is in progress; one run trains at a time" in answer:
        return ""  # true, whatever else is wrong
    name = SYNONYMS.get(field, re.escape(repr(field)[1:-1])[:50])
    if not re.search(rf"\b({name})\b|{name}", answer.replace("-", "_")):
        return "a refusal that does not name the field"
    rule = re.search(
        r"( is | has | are | names | holds |: ).*(must|the model reads|needs about|which cannot be opened)", answer
    )
    return "" if rule else "a refusal that does not say what is allowed"


def campaign(url: str, log: Path, calls: int, seed: int, callers: int = 20) -> dict:
    """The results of `calls` calls on the app at `url`, whose output is in the file `log`."""
    caller, start, slowest = Caller(url), time.monotonic(), 0.0
    faults: Counter = Counter()
    examples: list[str] = []

    def run(number: int):
        nonlocal slowest
        endpoint, way, body, field = random_call(random.Random(f"{seed} {number}"))
        call_start = time.monotonic()
        try:
            answered, answer = caller.call(endpoint, way, body, f"call-{seed}-{number}")
            problem = fault(endpoint, field, answered, answer)
        except TimeoutError:
            problem, answered, answer = "a hang", False, ""
        except Exception as error:
            problem, answered, answer = "no answer", False, repr(error)
        slowest = max(slowest, time.monotonic() - call_start)
        if problem:
            faults[problem] += 1
            sent, received = str(body)[:300], str(answer)[:300]
            examples.append(f"{problem}: {seed} {number} {endpoint} {way} {field}: {sent} -> {received}")
        return bool(answered)

    with ThreadPoolExecutor(callers) as pool:
        answered = sum(pool.map(run, range(calls)))
    return {
        "calls": calls,
        "answered": answered,
        "refused": calls - answered,
        "tracebacks": log.read_text().count("Traceback"),
        "empty_errors": faults.pop("an empty error", 0),
        "hangs": faults.pop("a hang", 0),
        "other_faults": sum(faults.values()),
        "slowest_s": round(slowest, 1),
        "seconds": round(time.monotonic() - start),
        **({"examples": examples[:40]} if examples else {}),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as app:
        print(json.dumps(campaign(app.url, app.log, options.calls, options.seed)))
        while alive := [run for run in runs.list_runs(app.runs) if run.alive]:
            runs.stop(app.runs, alive[0].name)
            time.sleep(0.5)
