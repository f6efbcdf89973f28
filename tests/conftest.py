"""Shared by the tests: small random models of three architectures with a tokenizer, the demo, and one running app."""

import os
import shutil

import pytest
import torch
from running import ROOT, app_in, end_runs, start_app
from small import SHAPE, STORIES, randomized
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from xdist.scheduler import LoadScopeScheduling

from deepseek import load
from deepseek.data.tokenizer import train_tokenizer
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

# Models this small wait 20 times longer for their threads than they compute where the cores are busy.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the commands that tests start


class ByFile(LoadScopeScheduling):
    """One file's tests run in one process, and all browser tests in one: two browsers wait for each other."""

    def _split_scope(self, nodeid):
        return "browser" if "/browser/" in nodeid else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Browser tests first: they are the longest scope, and must not start when the other process has nothing left."""
    items.sort(key=lambda item: "/browser/" not in item.nodeid)


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
    """Each of the three in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def demo():
    """(model, tokenizer) of the demo checkpoint."""
    return load("assets/demo")


@pytest.fixture(scope="session")
def checkpoint(model, tokenizer, tmp_path_factory):
    """A folder with our model and the tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def start_again(tmp_path):
    """Starts an app in a folder of its own, again and again; returns what `start_app` does."""
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    processes = []

    def start():
        url, process = start_app(tmp_path, tmp_path / "log")
        processes.append(process)
        return url, process

    yield start
    for process in processes:
        process.kill()
        process.wait()
    end_runs(tmp_path / "deepseek_checkpoints")


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """The App that all tests of a process share, in a folder of its own."""
    with app_in(tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture(scope="session")
def app_url(app):
    """The address of the shared app."""
    return app.url


@pytest.fixture(scope="module")
def training_app(app):
    """(address, folder of the runs) of the shared app, for tests that start runs; there is none when a file begins."""
    yield app.url, app.runs
    end_runs(app.runs)
    shutil.rmtree(app.runs, ignore_errors=True)
