"""What version 0.1 wrote still opens: a run, the record of a generation, a command line.

Its train command and the resumption of its run are in tests/training, its link, presets and requests in tests/ui.
"""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from deepseek import SamplingParams, generate, load, stream
from deepseek.inference.generation_record import parse_record, replay
from deepseek.training import runs

ROOT = Path(__file__).parents[2]
V01 = ROOT / "tests/fixtures/v0.1"


@pytest.fixture
def root(tmp_path):
    """A folder with a copy of the old run."""
    shutil.copytree(V01 / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def test_a_run_is_listed_and_shown(root):
    (run,) = runs.list_runs(root)
    assert (run.name, run.state, run.step, run.steps) == ("old", "stopped", 5, 60)
    assert (run.config["max_steps"], run.config["max_seq_len"], run.config["init_from"]) == (60, 16, "")
    assert run.checkpoint == root / "old" / "step-000005"
    lines, offset = runs.metrics(run.folder)
    assert offset == (run.folder / "metrics.jsonl").stat().st_size
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]


def test_a_runs_checkpoint_is_loaded(root):
    model, tokenizer = load(root / "old" / "step-000005")
    tokens = list(stream(model, tokenizer, "Once upon a time", SamplingParams(seed=0, max_new_tokens=3)))
    assert len(tokens) == 3 and list(tokens[0].experts) == [1]


def test_a_generation_is_repeated_token_for_token(monkeypatch):
    monkeypatch.chdir(ROOT)  # the record names its checkpoint relative to the repository
    text = (V01 / "generation.json").read_text()
    record = parse_record(text)
    assert record["params"]["no_repeat_ngram_size"] == json.loads(text)["params"]["no_repeat_ngram"] == 3
    model, tokenizer = load(record["checkpoint"]["name"], torch.float32)
    repeated = list(replay(record, model, tokenizer))
    assert [same for _, same in repeated] == [True] * 12 and repeated[2][0].id == 40
    assert "".join(token.text for token, _ in repeated) == record["text"]
    for (token, _), recorded in zip(repeated, record["tokens"]):
        assert token.sampler_probability == pytest.approx(recorded["sampler_probability"], rel=1e-4)


def test_a_generate_command_is_parsed():
    (command,) = [line for line in (V01 / "commands.txt").read_text().splitlines() if "deepseek.generate" in line]
    options, params = generate.parse(shlex.split(command)[1:])
    assert options.prompt == ["text"] and params == SamplingParams(no_repeat_ngram_size=3)
