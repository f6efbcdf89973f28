"""`python -m deepseek.generate`: what it prints, and its errors."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from deepseek import generate
from deepseek.inference.sampling import SamplingParams

ROOT = Path(__file__).parents[1]
SHORT = ["--temperature", "0.8", "--max-new-tokens", "8", "--seed", "7"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; returns (exit code or None, stdout, stderr)."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["generate", *arguments])
        code = None
        try:
            generate.main()
        except SystemExit as exit:  # Python prints a string and exits with 1
            code = exit.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        return code, *capsys.readouterr()

    return command


def test_the_command_prints_a_sample(checkpoint):
    command = [sys.executable, "-m", "deepseek.generate", "--checkpoint", checkpoint, "--prompt", "a fox", *SHORT]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("Sample 1:\nPrompt: a fox\nGenerated text (temp=0.8): ")


def test_the_same_seed_prints_the_same(run, checkpoint):
    first, second = (run("--checkpoint", checkpoint, "--prompt", "a fox", *SHORT) for _ in range(2))
    assert first == second and "ended by length]" in first[1]
    assert run("--checkpoint", checkpoint, "--prompt", "a fox", *SHORT, "--seed", "8")[1] != first[1]


def test_samples_of_a_prompt_count_the_seed_up(run, checkpoint):
    _, text, _ = run("--checkpoint", checkpoint, "--prompt", "a", "--prompt", "b", "--samples", "2", *SHORT)
    assert re.findall(r"^Sample (\d):\nPrompt: (\w)$", text, re.M) == [("1", "a"), ("2", "a"), ("3", "b"), ("4", "b")]
    assert re.findall(r"\[seed (\d)", text) == ["7", "8", "7", "8"]
    sample_7, sample_8 = (re.search(rf"temp=0.8\): (.*?)\[seed {seed}", text, re.S)[1] for seed in (7, 8))
    assert sample_7 != sample_8


def test_a_random_seed_is_printed(run, checkpoint):
    _, text, _ = run("--checkpoint", checkpoint, "--prompt", "a fox", "--max-new-tokens", "8")
    seed = re.search(r"\[seed (\d+)", text)[1]
    assert run("--checkpoint", checkpoint, "--prompt", "a fox", "--max-new-tokens", "8", "--seed", seed)[1] == text


def test_an_exported_sample_can_be_repeated(run, checkpoint, tmp_path):
    file = str(tmp_path / "sample.json")
    run("--checkpoint", checkpoint, "--prompt", "a fox", *SHORT, "--export", file)
    for source in (["--checkpoint", checkpoint], []):  # the record names its checkpoint
        code, text, _ = run(*source, "--repeat", file)
        assert code is None and text.startswith("a fox") and "8 tokens, all as recorded" in text
    record = json.loads(Path(file).read_text())
    record["params"]["max_new_tokens"] = 5
    Path(file).write_text(json.dumps(record))
    assert run("--repeat", file)[::2] == (1, "\nends after token 5 of 8\n")
    record["tokens"][2]["id"] += 1
    Path(file).write_text(json.dumps(record))
    assert run("--repeat", file)[::2] == (1, "\ndiffers at token 3 of 8\n")


def test_every_setting_has_a_flag():
    """Each flag, with a value that is not the default, becomes that setting."""
    values = dict(
        temperature=0.7, temperature_min=0.2, temperature_max=2.5, temperature_exponent=3.0, top_k=9, top_p=0.4,
        min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=-0.4, no_repeat_ngram_size=5,
        order="llama.cpp", repetition_scope="output", penalty_scope="all", max_new_tokens=77, seed=13,
    )  # fmt: skip
    flags = [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), str(value))]
    _, params = generate.parse([*flags, "--dynamic-temperature", "--stop", "a", "--stop", "b c"])
    assert params == SamplingParams(**values, dynamic_temperature=True, stop=("a", "b c"))
    assert all(getattr(params, f.name) != f.default for f in fields(SamplingParams))


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("temperature is -1.0", ["--temperature", "-1"]),
        ("top_p is nan", ["--top-p", "nan"]),
        ("temperature_min is 2.0", ["--temperature-min", "2"]),
        ("--top-k", ["--top-k", "many"]),
        ("order is 'random'", ["--order", "random"]),
        ("samples is 0", ["--samples", "0"]),
        ("prompt is empty", ["--prompt", " "]),
        ("prompt has ", ["--prompt", "fox " * 400]),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(run, checkpoint, name, arguments):
    code, _, stderr = run("--checkpoint", checkpoint, *arguments)
    assert code and name in stderr.splitlines()[-1] and "error: " in stderr.splitlines()[-1]


def test_a_missing_checkpoint_is_refused_in_one_sentence(run, tmp_path):
    code, text, stderr = run("--checkpoint", str(tmp_path / "nothing"))
    assert code == 1 and text == ""
    assert stderr.count("\n") == 1 and stderr.startswith("error: checkpoint ") and "nothing" in stderr


def test_help_lists_every_setting(run):
    code, text, _ = run("--help")
    flags = set(re.findall(r"^  (--[\w-]+)", text, re.M))
    assert code == 0 and {"--" + field.name.replace("_", "-") for field in fields(SamplingParams)} <= flags
