"""Many readers at once, over raw HTTP on the real app: `python tests/campaigns/load.py`. A line of JSON for each figure.

- readers: CLIENTS stream texts at once; each must be what it is alone, and none may be served worse than another (Jain's
  index of their tokens a second). First-token times beside those of one reader alone, and again while a run trains.
- full: more at once than the queue takes: each gets its text or, at once, a refusal
- gone: readers who hang up after their first token, and ones who post and never listen; what works on for them after
  2 s is told from the processor time of the processes that write
- memory: texts one after another; the growth of what all processes of the app hold
"""

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from running import start_app

CALL = "/gradio_api/call/v2/generate"
PROMPTS = ["Once upon a time", "The little fox", "def add(a, b):", "In the year 1900", "Tom and Lily went to the park"]
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Answer:
    """What one reader got: texts and counts as they came, with the seconds since it asked."""

    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    text: str = ""
    error: str = ""
    seconds: float = 0.0


def job(number: int, tokens: int) -> dict:
    """The settings of a reader's text."""
    return dict(prompt=PROMPTS[number % len(PROMPTS)], temperature=0.9, top_k=50, seed=number, max_new_tokens=tokens)


def post(url: str, body: dict) -> dict:
    """What the app says to a text that is asked for: its id, or why there is none."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)) as connection:
        connection.request("POST", CALL, json.dumps(body), {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())


def ask(url: str, body: dict, most: int | None = None) -> Answer:
    """A reader who streams a text to its end, or hangs up after `most` events that hold tokens."""
    answer, began = Answer(), time.perf_counter()
    taken = post(url, body)
    if "event_id" not in taken:
        return Answer(error=json.dumps(taken), seconds=time.perf_counter() - began)
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)) as connection:
        connection.request("GET", f"/gradio_api/call/generate/{taken['event_id']}")
        kind = ""
        for line in connection.getresponse():
            line = line.decode().strip()
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: ") and kind in ("generating", "complete", "error"):
                value = json.loads(line[6:])
                if kind == "error":
                    answer.error = json.dumps(value)
                    break
                if value and value[0] and value[0]["tokens"]:
                    answer.times.append(time.perf_counter() - began)
                    answer.counts.append(value[0]["tokens"])
                    answer.text = value[0]["text"]
                if kind == "complete" or (most and len(answer.times) >= most):
                    break
    answer.seconds = time.perf_counter() - began
    return answer


def at_once(url: str, bodies: list[dict], most: int | None = None) -> list[Answer]:
    """The answers of readers who all begin together."""
    together = threading.Barrier(len(bodies))

    def reader(body):
        together.wait()
        return ask(url, body, most)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(reader, bodies))


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ranked = sorted(values)
    return round(ranked[min(len(ranked) - 1, int(share * len(ranked)))], 3)


def jain(values: list[float]) -> float:
    """Jain's fairness index (1984): 1 where all are alike, 1 / n where one has everything."""
    return round(sum(values) ** 2 / (len(values) * sum(value * value for value in values)), 4)


def family(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def writers(pid: int) -> list[int]:
    """The processes of an app that write texts."""
    return [
        one for one in family(pid) if b"deepseek.inference.worker_pool" in Path(f"/proc/{one}/cmdline").read_bytes()
    ]


def processor_seconds(pids: list[int]) -> float:
    """Processor time that processes have used."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICK


def resident(pid: int) -> float:
    """Memory of an app and its processes, in MB."""
    texts = (Path(f"/proc/{one}/smaps_rollup").read_text() for one in family(pid))
    return sum(int(re.search(r"Pss: +(\d+)", text)[1]) for text in texts) / 1000


def alone(bodies: list[dict]) -> list[str]:
    """The texts of the same settings, each written alone in this process."""
    import torch

    from deepseek import SamplingParams, load, stream

    torch.set_num_threads(1)
    model, tokenizer = load(ROOT / "assets" / "demo")
    texts = []
    for body in bodies:
        params = SamplingParams(**{name: value for name, value in body.items() if name != "prompt"})
        texts.append("".join(token.text for token in stream(model, tokenizer, body["prompt"], params, record=False)))
    return texts


def readers(url: str, count: int, tokens: int) -> dict:
    """Whether `count` readers at once each get their own text, and how evenly."""
    bodies = [job(number, tokens) for number in range(count)]
    expected = alone(bodies)
    ask(url, bodies[0])  # warm
    single = [ask(url, body) for body in bodies[: max(3, count // 5)]]
    many = at_once(url, bodies)
    rates = [answer.counts[-1] / answer.seconds for answer in many if answer.counts]
    span = max(answer.seconds for answer in many)
    return {
        "figure": "readers",
        "readers": count,
        "unlike_alone": sum(answer.text != text for answer, text in zip(many, expected)),
        "errors": sum(bool(answer.error) for answer in many),
        "jain": jain(rates),
        "tokens_per_second": round(sum(answer.counts[-1] for answer in many if answer.counts) / span, 1),
        "first_token_alone_p95": percentile([answer.times[0] for answer in single], 0.95),
        "first_token_p50": percentile([answer.times[0] for answer in many], 0.5),
        "first_token_p95": percentile([answer.times[0] for answer in many], 0.95),
    }


def full(url: str, count: int, tokens: int) -> dict:
    """What `count` readers at once get where that is more than the queue takes."""
    answers = at_once(url, [job(number, tokens) for number in range(count)])
    refused = [answer for answer in answers if answer.error]
    return {
        "figure": "full",
        "readers": count,
        "texts": sum(bool(answer.text) for answer in answers),
        "refused": len(refused),
        "neither": sum(not (answer.text or answer.error) for answer in answers),
        "slowest_refusal": round(max((answer.seconds for answer in refused), default=0), 2),
        "a_refusal": refused[0].error if refused else None,
    }


def busy(pid: int, seconds: float = 1.0) -> float:
    """Share of one processor that the writing processes use now."""
    pids, began = writers(pid), time.perf_counter()
    before = processor_seconds(pids)
    time.sleep(seconds)
    return round((processor_seconds(pids) - before) / (time.perf_counter() - began), 3)


def gone(url: str, pid: int, count: int, batch: int = 40) -> Iterator[dict]:
    """Readers who hang up, then ones who never listen, each asking for a long text."""
    bodies = [{**job(number, 400), "temperature": 1.5} for number in range(count)]
    for start in range(0, count, batch):
        at_once(url, bodies[start : start + batch], most=1)
    time.sleep(2)
    yield {"figure": "hung up", "readers": count, "busy_after_2_s": busy(pid)}
    began = time.perf_counter()
    for body in bodies:
        post(url, body)
    asked = time.perf_counter() - began
    while busy(pid) > 0.05 and time.perf_counter() - began < 600:
        time.sleep(1)
    yield {
        "figure": "never listened",
        "posts": count,
        "seconds_to_post": round(asked, 1),
        "seconds_until_idle": round(time.perf_counter() - began, 1),
    }


def memory(url: str, pid: int, count: int, tokens: int) -> dict:
    """Growth of memory over `count` texts, eight at a time, after a tenth of them to warm up; least squares."""
    points = []
    for start in range(0, count + count // 10, 8):
        at_once(url, [job(number, tokens) for number in range(start, start + 8)])
        if start >= count // 10:
            points.append((start, resident(pid)))
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return {"figure": "memory", "texts": count, "mb": round(points[-1][1]), "mb_per_1000_texts": round(1000 * slope, 2)}


@contextmanager
def app(folder: Path):
    """(address, process id) of an app whose runs lie in `folder`."""
    (folder / "assets").symlink_to(ROOT / "assets")
    url, process = start_app(folder, folder / "log")
    try:
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(20)
        assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()


def training(url: str, begin: bool) -> None:
    """Starts, or stops, a run in the background."""
    name = "train_start" if begin else "train_stop"
    body = {"preset": "quick", "steps": 5000, "context": 128} if begin else {}
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request(
            "POST", f"/gradio_api/call/v2/{name}", json.dumps(body), {"content-type": "application/json"}
        )
        event = json.loads(connection.getresponse().read())["event_id"]
        connection.request("GET", f"/gradio_api/call/{name}/{event}")
        assert b"event: complete" in connection.getresponse().read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--gone", type=int, default=200)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--full", type=int, default=150)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, app(Path(folder)) as (url, pid):
        print(json.dumps(readers(url, args.clients, args.tokens)), flush=True)
        print(json.dumps(full(url, args.full, 16)), flush=True)
        for line in gone(url, pid, args.gone):
            print(json.dumps(line), flush=True)
        print(json.dumps(memory(url, pid, args.texts, 16)), flush=True)
        training(url, True)
        time.sleep(20)  # until it reads and computes
        print(
            json.dumps({**readers(url, args.clients, args.tokens), "figure": "readers while a run trains"}), flush=True
        )
        training(url, False)


if __name__ == "__main__":
    main()
