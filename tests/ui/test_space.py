"""The app as a Hugging Face Space starts it: the repository's files alone, no network, with and without ZeroGPU."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml
from gradio_client import Client
from gradio_client.exceptions import AppError
from running import ROOT, started_app

from deepseek import SamplingParams, load, stream
from deepseek.ui.server import access_control

SECRET = "the owner's"
# On the path of every Python that a test starts: notes who asks for a host other than this one, and refuses it.
NO_NETWORK = """
import os, sys

def listen(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = args[1] if event == "socket.connect" else args[0]
        host = host[0] if isinstance(host, tuple) else host
        if host not in (None, "", "localhost", "127.0.0.1", "0.0.0.0", "::1", b"127.0.0.1", b"localhost"):
            with open(os.environ["NETWORK_LOG"], "a") as log:
                print(event, host, file=log)
            raise OSError(f"no network, and {host!r} was asked for")

sys.addaudithook(listen)
"""
# The package `spaces` does nothing without a Space's own services. This one does as it does on ZeroGPU: the call runs in
# a process forked for it, what goes in and out is pickled, and of errors gr.Error alone keeps its message.
SPACES = """
import json, multiprocessing, os, sys

assert "torch" not in sys.modules, "imported after torch"
fork = multiprocessing.get_context("fork")

def note(**line):
    with open(os.environ["SPACES_LOG"], "a") as log:
        print(json.dumps(line), file=log)

def gradio_auto_wrap(fn):  # gradio calls it for every event; off unless a Space asks for it
    return fn

def GPU(duration):
    def decorate(task):
        note(decorated=f"{task.__module__}.{task.__qualname__}")
        def call(*args):
            import gradio
            note(seconds=duration(*args))
            there, here = fork.SimpleQueue(), fork.SimpleQueue()
            there.put(args)
            def work():
                try:
                    for value in task(*there.get()):
                        here.put(("value", value))
                    here.put(("end", None))
                except gradio.Error as error:
                    here.put(("error", error))
                except Exception as error:
                    here.put(("error", gradio.Error(type(error).__name__)))
            process = fork.Process(target=work, daemon=True)
            process.start()
            while (answer := here.get())[0] == "value":
                yield answer[1]
            process.join()
            if answer[0] == "error":
                raise answer[1]
        return call
    return decorate
"""


def front_matter():
    _, text, _ = (ROOT / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(text)


def test_the_front_matter_is_what_a_space_wants():
    known = front_matter()
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split() if "==" in line)
    assert set(known) == {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file",
                          "short_description", "license", "tags"}  # fmt: skip
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {known["colorFrom"], known["colorTo"]} <= colours and len(known["emoji"]) == 1
    assert known["sdk"] == "gradio" and known["sdk_version"] == pins["gradio"] and known["python_version"] == "3.12"
    assert (ROOT / known["app_file"]).is_file() and 0 < len(known["short_description"]) <= 60
    assert known["license"] == "mit" and (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert known["title"] and all(isinstance(tag, str) for tag in known["tags"])


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """(address, folder) of the app in a folder that holds the repository's files alone, started as on a public ZeroGPU
    Space whose owner has a secret, without any network.
    """
    folder, aside = tmp_path_factory.mktemp("space"), tmp_path_factory.mktemp("aside")
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (aside / "sitecustomize.py").write_text(NO_NETWORK)
    (aside / "spaces.py").write_text(SPACES)
    environment = dict(
        SPACE_ID="somebody/playground", OWNER_SECRET=SECRET, SPACES_ZERO_GPU="true", HF_HUB_OFFLINE="1",
        PYTHONPATH=str(aside), SPACES_LOG=str(aside / "spaces.log"), NETWORK_LOG=str(aside / "network.log"),
    )  # fmt: skip
    with started_app(folder, aside / "log", folder / front_matter()["app_file"], **environment) as url:
        yield url, folder, aside


def test_it_starts_without_network_and_shows_zerogpu_a_decorated_function(space):
    url, folder, aside = space
    assert "DeepSeek playground" in urllib.request.urlopen(url, timeout=30).read().decode()
    assert not (aside / "network.log").exists(), (aside / "network.log").read_text()
    notes = [json.loads(line) for line in (aside / "spaces.log").read_text().splitlines()]
    assert notes == [
        {"decorated": "deepseek.ui.server.zerogpu.stream"}
    ]  # without one, a ZeroGPU Space refuses to start


def test_its_texts_are_those_of_every_other_machine(space):
    """The demo is small: written by the processor on ZeroGPU too, where no reader's share of a GPU is spent on it."""
    url, _, aside = space
    written = Client(url, verbose=False).predict("Once upon a time", max_new_tokens=12, seed=3, api_name="/generate")
    params = SamplingParams(max_new_tokens=12, seed=3)
    assert written["text"] == "".join(t.text for t in stream(*load(ROOT / "assets/demo"), "Once upon a time", params))
    assert "seconds" not in (aside / "spaces.log").read_text()


def test_a_visitor_is_told_what_is_allowed_and_the_owner_starts_long_runs(space):
    url, folder, _ = space
    assert access_control.NOTE in [
        part["props"].get("info") for part in Client(url, verbose=False).config["components"]
    ]
    client, small = Client(url, verbose=False), dict(max_seq_len=32, batch_size=2, save_every=5)
    for changes, named in (
        (dict(max_steps=access_control.VISITOR_LIMITS["max_steps"] + 1), "max_steps is 1201"),
        (dict(batch_size=17), "batch_size is 17"),
        (dict(max_seq_len=257), "max_seq_len is 257"),
        (dict(preset="seed"), "preset is 'seed'"),
        (dict(init_from="assets/demo"), "start_from is 'assets/demo'"),
        (dict(data=["README.md"]), "data is 'README.md'"),
        (dict(data=["somebody/dataset"]), "data is 'somebody/dataset'"),
        (dict(max_steps=5000, secret="guess"), "max_steps is 5000"),
    ):
        with pytest.raises(AppError, match=f"{named}; without the owner's secret"):
            client.predict(**{**small, **changes}, api_name="/train_start")
    assert not (folder / "deepseek_checkpoints").exists()
    begun = client.predict(**small, name="visitor", max_steps=2, api_name="/train_start")
    assert ended(client, begun["name"])["state"] == "finished"
    begun = client.predict(**small, name="owner", max_steps=100_000, secret=SECRET, api_name="/train_start")
    assert begun["state"] == "running" and begun["steps"] == 100_000
    with pytest.raises(AppError, match="max_steps is 100000"):  # nor may a visitor stop what the owner began
        client.predict(name="owner", api_name="/train_stop")
    client.predict(name="owner", secret=SECRET, api_name="/train_stop")
    assert ended(client, "owner")["state"] == "stopped"


def ended(client, name):
    """The status of a run once it has ended."""
    until = time.monotonic() + 120
    while (status := client.predict(name=name, api_name="/train_status"))["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.5)
    return status


# What a ZeroGPU Space does for a large model, here with every model called large.
LARGE = """
import gradio as gr
import spaces
from deepseek import SamplingParams
from deepseek.interpret.interventions import Intervention
from deepseek.ui.server import model_registry, zerogpu

zerogpu.MIN_PARAMETERS = 0
model, tokenizer = model_registry.open_model("assets/demo")
params = SamplingParams(seed=3, max_new_tokens=12)
print("".join(token.text for token in model_registry.stream(model, tokenizer, "Once upon a time", params)))
changed = model_registry.stream(model, tokenizer, "Once upon a time", params, {2: 7}, [Intervention(0, "off")])
print("".join(token.text for token in changed))
try:
    list(model_registry.stream(model, tokenizer, "word " * 3000, params))
except gr.Error as error:
    print(error.message)
"""


@pytest.mark.parametrize("lent", ["true", ""])
def test_a_large_model_writes_the_same_under_the_decorator(tmp_path, monkeypatch, lent):
    (tmp_path / "spaces.py").write_text(SPACES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("SPACES_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SPACES_ZERO_GPU", lent)
    if not lent:  # a Space without ZeroGPU: the package is there, and its decorator does nothing
        (tmp_path / "spaces.py").write_text("GPU = lambda duration: lambda call: call")
    code = LARGE if lent else LARGE.replace("gr.Error", "ValueError").replace("error.message", "error")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    model, tokenizer = load(ROOT / "assets/demo")
    text = "".join(
        t.text for t in stream(model, tokenizer, "Once upon a time", SamplingParams(seed=3, max_new_tokens=12))
    )
    assert run.stdout.startswith(text + "\n") and "the model reads" in run.stdout.splitlines()[-1]
    if lent:
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert lines == [{"decorated": "deepseek.ui.server.zerogpu.stream"}, *[{"seconds": 20}] * 3]


def test_the_parent_keeps_nothing_of_what_a_borrowed_gpu_opened():
    from deepseek.ui.server import zerogpu

    assert not zerogpu.uses_borrowed_gpu(load(ROOT / "assets/demo")[0]) and "assets/demo" not in zerogpu._held


@pytest.mark.parametrize(
    "command, named",
    [
        ("generate --checkpoint somebody/model", "checkpoint 'somebody/model' is not on this machine"),
        ("train --data somebody/dataset --name a", "data 'somebody/dataset' cannot be had from the Hub"),
        ("train --preset seed --name a", "tokenizer 'HuggingFaceTB/cosmo2-tokenizer' cannot be opened"),
    ],
)
def test_what_wants_the_hub_says_so_when_it_is_switched_off(tmp_path, command, named):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    python = [sys.executable, "-m", *f"deepseek.{command}".split()]
    run = subprocess.run(python, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    *_, last = run.stderr.splitlines()
    assert run.returncode == 1 and last.startswith(f"error: {named}") and "Traceback" not in run.stderr, run.stderr
