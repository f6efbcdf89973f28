"""Shared by the tests: small random models of three kinds, and a tokenizer that fits them."""

import os

import pytest
import torch
from running import ROOT, end_runs, start_app, started_app
from small import SHAPE, STORIES, randomized
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from xdist.scheduler import LoadScopeScheduling

from deepseek.data.tokenizer import train_tokenizer
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

# Models this small only wait for their threads, 20 times longer than they compute where the cores are busy.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the commands that tests start


class ByFile(LoadScopeScheduling):
    """A file's tests go to one process, and all that drive a browser to one, for two browsers wait for each other."""

    def _split_scope(self, nodeid):
        return "browser" if "/browser/" in nodeid else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


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
    """Ours, with three layers so that two of them route."""
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
    apps = []

    def start():
        url, app = start_app(tmp_path, tmp_path / "log")
        apps.append(app)
        return url, app

    yield start
    for app in apps:
        app.kill()
        app.wait()
    end_runs(tmp_path / "deepseek_checkpoints")


@pytest.fixture(scope="session")
def running_app():
    """`started_app`, for a test that stops it itself."""
    return started_app


@pytest.fixture(scope="session")
def app_url(tmp_path_factory):
    """The address of the app, started as the README does."""
    with started_app(ROOT, tmp_path_factory.mktemp("app") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def training_app(tmp_path_factory):
    """(address, folder of its runs) of an app that has no run yet."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "assets").symlink_to(ROOT / "assets")
    with started_app(folder, folder / "log") as url:
        yield url, folder / "deepseek_checkpoints"
    end_runs(folder / "deepseek_checkpoints")
