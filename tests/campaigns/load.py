"""Many users at once, over HTTP on the real app: `python tests/campaigns/load.py`. Prints one line of JSON per result.

- users: CLIENTS stream samples at once. Each must equal what it is alone; Jain's index of their tokens/s says how even they
  are. Time to first token beside that of one user alone, and again while a run trains.
- overload: more at once than the queue takes. Each must get its sample or an immediate refusal.
- disconnects: users who disconnect after the first token, and users who post and never listen. The workers' CPU time shows
  what still runs for them after 2 s.
- memory: samples one after another; growth of the memory of all of the app's processes.
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
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from running import app_in

CALL = "/gradio_api/call/v2/generate"
PROMPTS = ["Once upon a time", "The little fox", "def add(a, b):", "In the year 1900", "Tom and Lily went to the park"]
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Answer:
    """What one user got: the number of tokens at every event, with the seconds since the request."""

    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    text: str = ""
    error: str = ""
    seconds: float = 0.0


def request(number: int, tokens: int) -> dict:
    """The body of one user's request."""
    return dict(prompt=PROMPTS[number % len(PROMPTS)], temperature=0.9, top_k=50, seed=number, max_new_tokens=tokens)


def post(url: str, body: dict) -> dict:
    """The app's answer to a request: an event id, or the reason for a refusal."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)) as connection:
        connection.request("POST", CALL, json.dumps(body), {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())


def stream(url: str, body: dict, max_events: int | None = None) -> Answer:
    """Streams a sample to its end, or disconnects after `max_events` events with tokens."""
    answer, start = Answer(), time.perf_counter()
    accepted = post(url, body)
    if "event_id" not in accepted:
        return Answer(error=json.dumps(accepted), seconds=time.perf_counter() - start)
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)) as connection:
        connection.request("GET", f"/gradio_api/call/generate/{accepted['event_id']}")
        event = ""
        for line in connection.getresponse():
            line = line.decode().strip()
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: ") and event in ("generating", "complete", "error"):
                value = json.loads(line[6:])
                if event == "error":
                    answer.error = json.dumps(value)
                    break
                if value and value[0] and value[0]["tokens"]:
                    answer.times.append(time.perf_counter() - start)
                    answer.counts.append(value[0]["tokens"])
                    answer.text = value[0]["text"]
                if event == "complete" or (max_events and len(answer.times) >= max_events):
                    break
    answer.seconds = time.perf_counter() - start
    return answer


def stream_all(url: str, bodies: list[dict], max_events: int | None = None) -> list[Answer]:
    """The answers of users who all start together."""
    barrier = threading.Barrier(len(bodies))

    def user(body):
        barrier.wait()
        return stream(url, body, max_events)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(user, bodies))


def percentile(values: list[float], fraction: float) -> float:
    """The value below which this fraction of them lies."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))], 3)


def jain(values: list[float]) -> float:
    """Jain's fairness index (1984): 1 if all are equal, 1 / n if one has everything."""
    return round(sum(values) ** 2 / (len(values) * sum(value * value for value in values)), 4)


def process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    tree = {pid}
    while children := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= children
    return sorted(tree)


def workers(pid: int) -> list[int]:
    """An app's worker processes."""
    return [
        p for p in process_tree(pid) if b"deepseek.inference.worker_pool" in Path(f"/proc/{p}/cmdline").read_bytes()
    ]


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that processes have used."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICK


def memory_mb(pid: int) -> float:
    """Proportional set size of an app and its processes."""
    rollups = (Path(f"/proc/{process}/smaps_rollup").read_text() for process in process_tree(pid))
    return sum(int(re.search(r"Pss: +(\d+)", rollup)[1]) for rollup in rollups) / 1000


def alone(bodies: list[dict]) -> list[str]:
    """The samples of the same requests, each decoded alone in this process."""
    import torch

    from deepseek import SamplingParams, load, stream

    torch.set_num_threads(1)
    model, tokenizer = load(ROOT / "assets" / "demo")
    texts = []
    for body in bodies:
        params = SamplingParams(**{name: value for name, value in body.items() if name != "prompt"})
        texts.append("".join(token.text for token in stream(model, tokenizer, body["prompt"], params, record=False)))
    return texts


def concurrent_users(url: str, count: int, tokens: int) -> dict:
    """Whether `count` users at once each get their own sample, and how even their speeds are."""
    bodies = [request(number, tokens) for number in range(count)]
    expected = alone(bodies)
    stream(url, bodies[0])  # warm-up
    single = [stream(url, body) for body in bodies[: max(3, count // 5)]]
    many = stream_all(url, bodies)
    rates = [answer.counts[-1] / answer.seconds for answer in many if answer.counts]
    span = max(answer.seconds for answer in many)
    return {
        "result": "users",
        "users": count,
        "unlike_alone": sum(answer.text != text for answer, text in zip(many, expected)),
        "errors": sum(bool(answer.error) for answer in many),
        "jain": jain(rates),
        "tokens_per_second": round(sum(answer.counts[-1] for answer in many if answer.counts) / span, 1),
        "first_token_alone_p95": percentile([answer.times[0] for answer in single], 0.95),
        "first_token_p50": percentile([answer.times[0] for answer in many], 0.5),
        "first_token_p95": percentile([answer.times[0] for answer in many], 0.95),
    }


def overload(url: str, count: int, tokens: int) -> dict:
    """What `count` users at once get, more than the queue takes."""
    answers = stream_all(url, [request(number, tokens) for number in range(count)])
    refused = [answer for answer in answers if answer.error]
    return {
        "result": "overload",
        "users": count,
        "texts": sum(bool(answer.text) for answer in answers),
        "refused": len(refused),
        "neither": sum(not (answer.text or answer.error) for answer in answers),
        "slowest_refusal": round(max((answer.seconds for answer in refused), default=0), 2),
        "a_refusal": refused[0].error if refused else None,
    }


def cpu_load(pid: int, seconds: float = 1.0) -> float:
    """CPU cores that the workers use now."""
    pids, start = workers(pid), time.perf_counter()
    before = cpu_seconds(pids)
    time.sleep(seconds)
    return round((cpu_seconds(pids) - before) / (time.perf_counter() - start), 3)


def disconnects(url: str, pid: int, count: int, batch: int = 40) -> Iterator[dict]:
    """Users who disconnect, then users who never listen, each asking for a long sample."""
    bodies = [{**request(number, 400), "temperature": 1.5} for number in range(count)]
    for start in range(0, count, batch):
        stream_all(url, bodies[start : start + batch], max_events=1)
    time.sleep(2)
    yield {"result": "disconnected", "users": count, "cpu_after_2_s": cpu_load(pid)}
    start_time = time.perf_counter()
    for body in bodies:
        post(url, body)
    posted = time.perf_counter() - start_time
    while cpu_load(pid) > 0.05 and time.perf_counter() - start_time < 600:
        time.sleep(1)
    yield {
        "result": "never listened",
        "posts": count,
        "seconds_to_post": round(posted, 1),
        "seconds_until_idle": round(time.perf_counter() - start_time, 1),
    }


def memory(url: str, pid: int, count: int, tokens: int) -> dict:
    """Growth of memory over `count` samples, eight at a time, after a tenth of them to warm up; least squares."""
    points = []
    for start in range(0, count + count // 10, 8):
        stream_all(url, [request(number, tokens) for number in range(start, start + 8)])
        if start >= count // 10:
            points.append((start, memory_mb(pid)))
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return {"result": "memory", "texts": count, "mb": round(points[-1][1]), "mb_per_1000_texts": round(1000 * slope, 2)}


def training(url: str, begin: bool) -> None:
    """Starts or stops a run in the background."""
    name = "train_start" if begin else "train_stop"
    body = {"preset": "quick", "max_steps": 5000, "max_seq_len": 128} if begin else {}
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
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as app:
        url, pid = app.url, app.process.pid

        def report(result):
            print(json.dumps(result), flush=True)

        report(concurrent_users(url, args.clients, args.tokens))
        report(overload(url, args.full, 16))
        for result in disconnects(url, pid, args.gone):
            report(result)
        report(memory(url, pid, args.texts, 16))
        training(url, True)
        time.sleep(20)  # until it trains
        report({**concurrent_users(url, args.clients, args.tokens), "result": "users while a run trains"})
        training(url, False)


if __name__ == "__main__":
    main()
