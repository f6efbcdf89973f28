"""Shared by the tests: small random models of three architectures with a tokenizer, the demo, and one running app."""

import fcntl
import json
import os
import shutil
import signal

import pytest
import torch
from chatting import with_template
from huggingface_hub import constants
from local_hub import LocalHub
from running import ROOT, app_in, end_runs, start_app
from small import SHAPE, STORIES, randomized
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from deepseek import load, train
from deepseek.data.tokenizer import train_tokenizer
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

os.environ["OMP_NUM_THREADS"] = "1"  # in the commands that tests start, as below in this process
LONGEST = ["browser/test_training", "browser/test_access", "test_readme", "browser/test_hostile", "/browser/", "test_space",
           "training/test_", "test_how_to", "test_families", "ui/"]  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first: none of them must start when the other processes have nothing left."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Random weights are the same in every run, and torch has one thread.

    Models this small wait 20 times longer for a second thread than they compute where the cores are busy. A kernel of Numba that
    was called with two threads leaves torch two, where both use one OpenMP.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stories(tmp_path_factory):
    """A file of 40 short documents."""
    file = tmp_path_factory.mktemp("text") / "stories.txt"
    file.write_text("\n<|endoftext|>\n".join(STORIES), "utf-8")
    return str(file)


@pytest.fixture(scope="session")
def tokenizer(stories):
    return train_tokenizer([stories], 300)


@pytest.fixture(scope="session")
def model():
    """Ours, with three layers of which two are MoE layers."""
    return randomized(DeepseekV3ForCausalLM(preset("tiny", vocab_size=300, num_hidden_layers=3)))


@pytest.fixture(scope="session")
def mixtral():
    return randomized(MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4)))


@pytest.fixture(scope="session")
def llama():
    return randomized(LlamaForCausalLM(LlamaConfig(**SHAPE)))


@pytest.fixture(params=["model", "mixtral", "llama"])
def any_model(request):
    """Each of the three in turn, in eval mode whatever a test before has done with it."""
    return request.getfixturevalue(request.param).eval()


@pytest.fixture(scope="session")
def demo():
    """(model, tokenizer) of the demo checkpoint."""
    return load("assets/demo")


def save(folder, *parts) -> str:
    """Saves a model and its tokenizer into a folder; returns its path."""
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def checkpoint(model, tokenizer, tmp_path_factory):
    """A folder with our model and the tokenizer."""
    return save(tmp_path_factory.mktemp("checkpoint"), model, tokenizer)


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer):
    """The tokenizer with a chat template, ChatML."""
    return with_template(tokenizer)


@pytest.fixture(scope="session")
def chat_model():
    """Our model, with a vocabulary for the chat tokenizer; its generation_config does not know how a turn ends."""
    return randomized(DeepseekV3ForCausalLM(preset("tiny", vocab_size=320, max_position_embeddings=512)))


@pytest.fixture(scope="session")
def chat_checkpoint(chat_model, chat_tokenizer, tmp_path_factory):
    """A folder with the chat model and its tokenizer."""
    return save(tmp_path_factory.mktemp("chat"), chat_model, chat_tokenizer)


@pytest.fixture
def local_hub(checkpoint, tmp_path, monkeypatch):
    """A LocalHub with the model org/demo and an empty cache, for this process and those it starts."""
    hub, cache = LocalHub(tmp_path / "hub"), tmp_path / "home" / "hub"
    shutil.copytree(checkpoint, hub.root / "models" / "org" / "demo")
    (hub.root / "models" / "org" / "demo" / "README.md").write_text("# The card of org/demo")
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache.parent), "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def train_main(monkeypatch):
    """Runs `python -m deepseek.train` with the given arguments in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        train.main()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """An App of this test process alone, in a folder of its own."""
    with app_in(tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture(scope="session")
def app_url(tmp_path_factory, request):
    """The address of the one app that all test processes share. The first that needs it starts it."""
    with open(shared_folder(request.config) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = shared_folder(request.config) / "app.json"
        if not known.exists():
            (folder := shared_folder(request.config) / "app").mkdir()
            (folder / "assets").symlink_to(ROOT / "assets")
            url, process = start_app(folder, folder / "log")
            known.write_text(json.dumps({"url": url, "pid": process.pid}))
        return json.loads(known.read_text())["url"]


def shared_folder(config):
    """A folder of this test session that all its processes know."""
    folder = config._tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(config, "workerinput") else folder


def pytest_sessionfinish(session):
    """Ends the shared app, which must not have logged a traceback."""
    if hasattr(session.config, "workerinput"):
        return
    folder = shared_folder(session.config)
    if (folder / "app.json").exists():
        pid = json.loads((folder / "app.json").read_text())["pid"]
        os.kill(pid, signal.SIGTERM)
        log = (folder / "app" / "log").read_text()
        if "Traceback" in log:
            print(f"\nThe shared app logged a traceback:\n{log}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module")
def training_app(app):
    """(address, folder of the runs) of the process's own app, for tests that start runs; there is none when a file begins."""
    yield app.url, app.runs
    end_runs(app.runs)
    shutil.rmtree(app.runs, ignore_errors=True)
