"""The app as a Hugging Face Space starts it: the repository's files alone, no network, with and without ZeroGPU."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
import urllib.request

import gradio as gr
import pytest
import yaml
from gradio_client import Client
from gradio_client.exceptions import AppError
from running import ROOT, started_app, wait_until

from deepseek import SamplingParams, stream
from deepseek.inference.engine import stream_batch
from deepseek.interpret.interventions import Intervention
from deepseek.training import runs
from deepseek.ui.server import access_control, model_registry, zerogpu

SECRET = "the owner's"
DECORATED = {"decorated": "deepseek.ui.server.zerogpu.stream_batch"}
# sitecustomize of every Python that the app starts: logs and refuses a connection to another host.
NO_NETWORK = """
import os, socket

def local_only(function, name, host_of):
    def call(*args, **kwargs):
        host = host_of(*args)
        if host not in (None, "", "localhost", "127.0.0.1", "0.0.0.0", "::1", b"127.0.0.1", b"localhost"):
            with open(os.environ["NETWORK_LOG"], "a") as log:
                print(name, host, file=log)
            raise OSError(f"no network, but {host!r} was requested")
        return function(*args, **kwargs)
    return call

host_of_address = lambda sock, address: address[0] if isinstance(address, tuple) else None
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, local_only(getattr(socket.socket, name), name, host_of_address))
socket.getaddrinfo = local_only(socket.getaddrinfo, "getaddrinfo", lambda host, *rest: host)
"""
# The real package `spaces` does nothing outside a Space. This one acts as on ZeroGPU: each call runs in a process forked for
# it, arguments and results are pickled, and of all errors only gr.Error keeps its message.
SPACES = """
import json, multiprocessing, os, sys

assert "torch" not in sys.modules or "pytest" in sys.modules, "imported after torch"
fork = multiprocessing.get_context("fork")

def note(**line):
    with open(os.environ["SPACES_LOG"], "a") as log:
        print(json.dumps(line), file=log)

def gradio_auto_wrap(fn):  # gradio calls it for every event
    return fn

def GPU(duration):
    def decorate(task):
        note(decorated=f"{task.__module__}.{task.__qualname__}")
        def call(*args):
            import gradio
            note(seconds=duration(*args))
            inputs, outputs = fork.SimpleQueue(), fork.SimpleQueue()
            inputs.put(args)
            def work():
                try:
                    for value in task(*inputs.get()):
                        outputs.put(("value", value))
                    outputs.put(("end", None))
                except gradio.Error as error:
                    outputs.put(("error", error))
                except Exception as error:
                    outputs.put(("error", gradio.Error(type(error).__name__)))
            process = fork.Process(target=work, daemon=True)
            process.start()
            while (output := outputs.get())[0] == "value":
                yield output[1]
            process.join()
            if output[0] == "error":
                raise output[1]
        return call
    return decorate
"""


def front_matter():
    _, text, _ = (ROOT / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(text)


def test_the_front_matter_is_valid_for_a_space():
    metadata = front_matter()
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split() if "==" in line)
    assert set(metadata) == {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file",
                          "short_description", "license", "tags"}  # fmt: skip
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {metadata["colorFrom"], metadata["colorTo"]} <= colours and len(metadata["emoji"]) == 1
    assert (
        metadata["sdk"] == "gradio"
        and metadata["sdk_version"] == pins["gradio"]
        and metadata["python_version"] == "3.12"
    )
    assert (ROOT / metadata["app_file"]).is_file() and 0 < len(metadata["short_description"]) <= 60
    assert metadata["license"] == "mit" and (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert metadata["title"] and all(isinstance(tag, str) for tag in metadata["tags"])


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """(address, folder, folder of the logs) of the app in a copy of the repository's files alone, started as on a public
    ZeroGPU Space whose owner has a secret, without network.
    """
    folder, logs = tmp_path_factory.mktemp("space"), tmp_path_factory.mktemp("logs")
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (logs / "sitecustomize.py").write_text(NO_NETWORK)
    (logs / "spaces.py").write_text(SPACES)
    environment = dict(
        SPACE_ID="somebody/playground", OWNER_SECRET=SECRET, SPACES_ZERO_GPU="true", HF_HUB_OFFLINE="1",
        PYTHONPATH=str(logs), SPACES_LOG=str(logs / "spaces.log"), NETWORK_LOG=str(logs / "network.log"),
    )  # fmt: skip
    with started_app(folder, logs / "log", folder / front_matter()["app_file"], **environment) as url:
        yield url, folder, logs


def test_it_starts_without_network_and_shows_zerogpu_a_decorated_function(space):
    url, folder, logs = space
    assert "DeepSeek playground" in urllib.request.urlopen(url, timeout=30).read().decode()
    assert not (logs / "network.log").exists(), (logs / "network.log").read_text()
    notes = [json.loads(line) for line in (logs / "spaces.log").read_text().splitlines()]
    assert notes == [DECORATED]  # without one, a ZeroGPU Space refuses to start


def test_its_samples_are_those_of_any_machine(space, demo):
    """The demo is small: the CPU decodes it on ZeroGPU too, so no user's quota is spent on it."""
    url, _, logs = space
    answer = Client(url, verbose=False).predict("Once upon a time", max_new_tokens=12, seed=3, api_name="/generate")
    params = SamplingParams(max_new_tokens=12, seed=3)
    assert answer["text"] == "".join(token.text for token in stream(*demo, "Once upon a time", params))
    assert "seconds" not in (logs / "spaces.log").read_text()


def test_a_visitor_is_limited_and_the_owner_starts_long_runs(space):
    url, folder, _ = space
    client, small = Client(url, verbose=False), dict(max_seq_len=32, batch_size=2, save_every=5)
    assert access_control.NOTE in [part["props"].get("info") for part in client.config["components"]]
    for settings, message in (
        (dict(max_steps=access_control.VISITOR_LIMITS["max_steps"] + 1), "max_steps is 1201"),
        (dict(batch_size=17), "batch_size is 17"),
        (dict(max_seq_len=257), "max_seq_len is 257"),
        (dict(preset="seed"), "preset is 'seed'"),
        (dict(init_from="assets/demo"), "init_from is 'assets/demo'"),
        (dict(data=["README.md"]), "data is 'README.md'"),
        (dict(data=["somebody/dataset"]), "data is 'somebody/dataset'"),
        (dict(max_steps=5000, secret="guess"), "max_steps is 5000"),
    ):
        with pytest.raises(AppError, match=f"{message}; without the owner's secret"):
            client.predict(**{**small, **settings}, api_name="/train_start")
    assert not (folder / runs.ROOT).exists()

    def state(name):
        return runs.find(folder / runs.ROOT, name).state

    client.predict(**small, name="visitor", max_steps=2, api_name="/train_start")
    wait_until(lambda: state("visitor") == "finished")
    status = client.predict(**small, name="owner", max_steps=100_000, secret=SECRET, api_name="/train_start")
    assert status["state"] == "running" and status["steps"] == 100_000
    with pytest.raises(AppError, match="max_steps is 100000"):  # nor may a visitor stop the owner's run
        client.predict(name="owner", api_name="/train_stop")
    client.predict(name="owner", secret=SECRET, api_name="/train_stop")
    wait_until(lambda: state("owner") == "stopped")


def zerogpu_module(monkeypatch, spaces: str):
    """A new copy of deepseek.ui.server.zerogpu, for which every model is large, with this source of the package `spaces`."""
    module = types.ModuleType("spaces")
    exec(spaces, module.__dict__)
    monkeypatch.setitem(sys.modules, "spaces", module)
    spec = importlib.util.find_spec("deepseek.ui.server.zerogpu")
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    copy.MIN_PARAMETERS = 0
    monkeypatch.setattr(model_registry, "zerogpu", copy)
    return copy


@pytest.mark.parametrize("zerogpu", ["true", ""])
def test_a_large_model_gives_the_same_samples_under_the_decorator(tmp_path, monkeypatch, demo, zerogpu):
    monkeypatch.setenv("SPACES_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SPACES_ZERO_GPU", zerogpu)
    # On a Space without ZeroGPU the decorator does nothing.
    module = zerogpu_module(monkeypatch, SPACES if zerogpu else "GPU = lambda duration: lambda call: call")
    params = SamplingParams(seed=3, max_new_tokens=12)

    def sample(function, prompt, *rest):
        return "".join(token.text for (token,) in function(*demo, prompt, [params], *rest))

    assert sample(model_registry.stream_batch, "Once upon a time") == sample(stream_batch, "Once upon a time")
    changes = {2: 7}, [Intervention(0, "off")]
    expected = sample(stream_batch, "Once upon a time", *changes)
    assert sample(model_registry.stream_batch, "Once upon a time", *changes) == expected
    with pytest.raises(gr.Error if zerogpu else ValueError, match="the model reads"):
        sample(model_registry.stream_batch, "word " * 3000)
    if zerogpu:
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert lines == [DECORATED, *[{"seconds": 20}] * 3]
        assert "assets/demo" not in module._models  # only the forked processes opened it


def test_a_small_model_is_not_opened_for_a_borrowed_gpu(monkeypatch, demo):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert not zerogpu.uses_borrowed_gpu(demo[0])
    monkeypatch.delenv("SPACES_ZERO_GPU")
    monkeypatch.setattr(zerogpu, "MIN_PARAMETERS", 0)
    assert not zerogpu.uses_borrowed_gpu(demo[0])


# The commands one after another in one process; `|` marks where each begins.
COMMANDS = """
import runpy, sys

for command in sys.argv[1:]:
    name, *sys.argv[1:] = command.split()
    print("|", file=sys.stderr)
    try:
        runpy.run_module(f"deepseek.{name}", run_name="__main__")
    except SystemExit as exit:
        print(exit.code, file=sys.stderr) if isinstance(exit.code, str) else print("exit", exit.code, file=sys.stderr)
"""


def test_offline_a_command_that_needs_the_hub_exits_with_one_sentence(tmp_path):
    commands = {
        "generate --checkpoint somebody/model": "checkpoint 'somebody/model' is not on this machine",
        "train --data somebody/dataset --name a": "data 'somebody/dataset' cannot be fetched from the Hub",
        "train --preset seed --name b": "tokenizer 'HuggingFaceTB/cosmo2-tokenizer' cannot be opened",
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    python = [sys.executable, "-c", COMMANDS, *commands]
    output = subprocess.run(python, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120).stderr
    parts = output.split("|\n")[1:]
    assert len(parts) == len(commands) and "Traceback" not in output, output
    for part, message in zip(parts, commands.values()):
        *_, last = [line for line in part.splitlines() if line != "exit 1"]
        assert last.startswith(f"error: {message}"), output
