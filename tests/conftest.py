"""Shared by the tests: small random models of three kinds, and a tokenizer that fits them."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from deepseek.config import preset
from deepseek.data import learn_tokenizer
from deepseek.model import DeepseekV3ForCausalLM

ROOT = Path(__file__).parents[1]
# Models this small only wait for their threads, 20 times longer than they compute where the cores are busy.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the commands that tests start

STORIES = [f"Once upon a time fox number {i} ran over the hill to see {i * i} déjà vu 漢字 🦊 dogs." for i in range(40)]
SHAPE = dict(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip


def randomized(model):
    """Weights large enough that every part matters, and a router bias that changes which experts win."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.state_dict().items()):
        tensor.copy_(torch.empty(tensor.shape).normal_(1.0 if "norm" in name else 0.0, 0.1, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def stories(tmp_path_factory):
    """A file of 40 short documents."""
    file = tmp_path_factory.mktemp("text") / "stories.txt"
    file.write_text("\n<|endoftext|>\n".join(STORIES), "utf-8")
    return str(file)


@pytest.fixture(scope="session")
def tokenizer(stories):
    return learn_tokenizer([stories], 300)


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


@contextmanager
def started_app(folder, log):
    """The address of the real app, started in `folder` on a free port; its output goes to the file `log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        app = subprocess.Popen(
            [sys.executable, ROOT / "app.py"],
            cwd=folder,
            env={**os.environ, "GRADIO_SERVER_PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=5)
            break
        except OSError:
            assert app.poll() is None, log.read_text()
            time.sleep(0.5)
    yield url
    app.terminate()
    app.wait(10)
    assert "Traceback" not in log.read_text()


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
