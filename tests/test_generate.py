"""`python -m deepseek.generate`: what it prints, and its errors."""

import json
import os
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
    command = [sys.executable, "-m", "deepseek.generate", "--checkpoint", checkpoint, "--prompt", "a föx", *SHORT]
    options = dict(cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"})  # as of a terminal without the letter
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("Sample 1:\nPrompt: a f\\xf6x\nGenerated text (temp=0.8): ")


def test_the_same_seed_prints_the_same(run, checkpoint):
    first, second = (run("--checkpoint", checkpoint, "--prompt", "a fox", *SHORT) for _ in range(2))
    assert first == second and "ended by length]" in first[1]
    assert run("--checkpoint", checkpoint, "--prompt", "a fox", *SHORT, "--seed", "8")[1] != first[1]


def test_rounded_weights_print_other_samples(run, checkpoint):
    options = "--checkpoint", checkpoint, "--prompt", "a fox", "--max-new-tokens", "60", "--seed", "7"
    exact, rounded, again = (run(*options, "--weights", weights)[1] for weights in ("model", "int8", "int8"))
    assert exact != rounded == again
    sweep = run(*options, "--weights", "int8", "--sweep", "temperature", "0.5", "1.5")
    assert sweep[0] is None and sweep[1].count("[temperature") >= 8
    code, _, error = run(*options, "--weights", "int8", "--export", "story.json")
    assert code == 2 and "weights is 'int8'; a record is of the model's own" in error


def test_rounded_weights_of_a_model_without_a_decode_model_are_refused(run, llama, tokenizer, tmp_path):
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code, _, error = run("--checkpoint", str(tmp_path), "--prompt", "a", "--weights", "int8", *SHORT)
    assert (
        code == 1
        and "error: model is of type 'llama'; what packs weights to decode must be DeepSeek-V3 or one of" in error
    )


def test_samples_of_a_prompt_count_the_seed_up(run, checkpoint):
    _, text, _ = run("--checkpoint", checkpoint, "--prompt", "a", "--prompt", "b", "--samples", "2", *SHORT)
    assert re.findall(r"^Sample (\d):\nPrompt: (\w)$", text, re.M) == [("1", "a"), ("2", "a"), ("3", "b"), ("4", "b")]
    assert re.findall(r"\[seed (\d)", text) == ["7", "8", "7", "8"]
    sample_7, sample_8 = (re.search(rf"temp=0.8\): (.*?)\[seed {seed}", text, re.S)[1] for seed in (7, 8))
    assert sample_7 != sample_8


def test_interventions_and_forced_tokens_are_run_exported_and_repeated(run, checkpoint, tmp_path):
    common, file = ["--checkpoint", checkpoint, "--prompt", "a fox", *SHORT], tmp_path / "sample.json"
    changes = ["--intervention", "promote 3@1", "--intervention", "off 2", "--forced-token", "2-70"]
    _, text, _ = run(*common, *changes, "--export", str(file))
    tokens = json.loads(file.read_text())["tokens"]
    experts = [token["experts"] for token in tokens]
    assert tokens[2]["id"] == 70
    assert all(3 in dict(layers["1"]) and 2 not in dict(layers["1"]) for layers in experts)
    assert text != run(*common)[1] and "all as recorded" in run("--repeat", str(file))[1]


def test_a_sweep_prints_a_sample_for_each_value_their_figures_and_where_they_part(run, checkpoint):
    common = ["--checkpoint", checkpoint, "--prompt", "a fox", *SHORT]
    _, text, _ = run(*common, "--sweep", "temperature", "0", "0.8", "2")
    assert "Prompt: a fox\nSeed: 7\n" in text and "\n[temperature 0] " in text and "Where they part:\n1: " in text
    sample = re.search(r"\[temperature 0.8\] (.*?)\n\n", text, re.S)[1]
    assert f"Generated text (temp=0.8): {sample}\n" in run(*common)[1]
    assert re.search(r"^temperature 2 +8 ", text, re.M)
    _, text, _ = run(*common, "--sweep", "seed", "7", "8")
    assert f"\n[seed 7] {sample}\n" in text and "\nseed 8 " in text


def test_an_export_makes_its_folder_and_a_wrong_path_is_refused_before_the_work(run, checkpoint, tmp_path):
    file = tmp_path / "new" / "sample.json"
    assert run("--checkpoint", checkpoint, "--prompt", "a fox", *SHORT, "--export", str(file))[0] is None
    assert json.loads(file.read_text())["prompt"] == "a fox"
    code, text, error = run("--checkpoint", checkpoint, *SHORT, "--export", str(tmp_path))
    assert code == 1 and not text and "Is a directory" in error


def test_what_became_of_a_word_is_printed_for_every_token(run, checkpoint, tmp_path):
    common, file = ["--checkpoint", checkpoint, "--prompt", "a fox", *SHORT, "--top-k", "3"], tmp_path / "sample.json"
    _, text, _ = run(*common, "--why-not", "z", "--export", str(file))
    sample, _, rows = text.partition("Why not, with rank (probability) after each sampler")
    assert sample == run(*common)[1]
    rows = rows.strip().splitlines()[1:]
    assert [row.split()[0] for row in rows] == list("12345678")
    step = r"\d+ \((\d+\.\d\d|under 0\.01)%\)"
    end = rf" → temperature {step} → top-k (✕|{step})"
    assert all(re.search(rf"^\d “.+”, not “.+”: model {step}{end}", row) for row in rows) and "✕" in text
    probed = [[c for c in token["candidates"] if c["ranks"]] for token in json.loads(file.read_text())["tokens"]]
    assert all(len(candidates) == rows[0].count("model") for candidates in probed)
    assert "all as recorded" in run("--repeat", str(file))[1]


def test_a_random_seed_is_printed(run, checkpoint):
    _, text, _ = run("--checkpoint", checkpoint, "--prompt", "a fox", "--max-new-tokens", "8")
    seed = re.search(r"\[seed (\d+)", text)[1]
    assert run("--checkpoint", checkpoint, "--prompt", "a fox", "--max-new-tokens", "8", "--seed", seed)[1] == text


@pytest.mark.parametrize("place", ["folder", "Hub"])
def test_an_exported_sample_can_be_repeated(run, checkpoint, tmp_path, local_hub, place):
    checkpoint = checkpoint if place == "folder" else "org/demo"
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
        order="llama.cpp", repetition_scope="output", penalty_scope="all", max_new_tokens=77, seed=13, typical_p=0.9,
        top_n_sigma=1.5, epsilon_cutoff=0.001, eta_cutoff=0.002, xtc_probability=0.5, xtc_threshold=0.2, dry_multiplier=0.8,
        dry_base=2.0, dry_allowed_length=3, mirostat_tau=5.0, mirostat_eta=0.2, adaptive_target=0.6, adaptive_decay=0.5,
        min_new_tokens=4, regex="a+b",
    )  # fmt: skip
    flags = [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), str(value))]
    texts = dict(stop=("a", "b c"), dry_sequence_breakers=(".",), logit_bias=("7=-2", " a=1.5"), banned_tokens=("fox",))
    flags += [part for name, items in texts.items() for item in items for part in ("--" + name.replace("_", "-"), item)]
    _, params = generate.parse([*flags, "--dynamic-temperature"])
    assert params == SamplingParams(**values, **texts, dynamic_temperature=True)
    others = {"choice", "json_schema"}  # of the three constraints one may be given
    assert all(getattr(params, f.name) != f.default for f in fields(SamplingParams) if f.name not in others)
    assert generate.parse(["--choice", "a", "--choice", "b c"])[1].choice == ("a", "b c")
    assert generate.parse(["--guided-json", '{"type": "null"}'])[1].json_schema == '{"type": "null"}'


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("temperature is -1.0", ["--temperature", "-1"]),
        ("top_p is nan", ["--top-p", "nan"]),
        ("temperature_min is 2.0", ["--temperature-min", "2"]),
        ("--top-k", ["--top-k", "many"]),
        ("order is 'random'", ["--order", "random"]),
        ("samples is 0", ["--samples", "0"]),
        ("regex is '('", ["--regex", "("]),
        ("setting is 'heat'", ["--sweep", "heat", "1", "2"]),
        ("top_p is 5.0", ["--sweep", "top-p", "0.5", "5"]),
        ("values are [3]", ["--sweep", "top-k", "3"]),
        ("sweep is given", ["--sweep", "top-k", "3", "5", "--samples", "2"]),
        ("forced_tokens is '5'", ["--forced-token", "5"]),
        ("forced_tokens holds id 300", ["--forced-token", "0-300"]),
        ("forced_token is given", ["--forced-token", "1-5", "--sweep", "top-k", "3", "5"]),
        ("why_not is ' '", ["--why-not", " "]),
        ("why_not is given", ["--why-not", "a", "--sweep", "top-k", "3", "5"]),
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


def test_a_chat_checkpoint_gets_its_template_unless_switched_off(run, chat_checkpoint, checkpoint, tmp_path):
    asked = "--checkpoint", chat_checkpoint, "--prompt", "Who?", *SHORT
    prompt = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    code, text, _ = run(*asked, "--export", str(tmp_path / "chat.json"))
    assert code is None and f"Prompt: {prompt}\nGenerated text" in text
    code, text, _ = run("--repeat", str(tmp_path / "chat.json"))
    assert code is None and text.startswith(prompt) and "tokens, all as recorded]" in text
    assert "Prompt: Who?\n" in run(*asked, "--no-chat")[1]
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert f"Prompt: {system}{prompt}\nGen" in run(*asked, "--system", "Be brief.")[1]
    assert f"Prompt: {prompt}\nSeed: 7" in run(*asked, "--sweep", "temperature", "0.5", "1", "1.5")[1]
    for arguments, sentence in (
        ((*asked, "--no-chat", "--system", "x"), "system is 'x'; with --no-chat there must be none."),
        (("--checkpoint", checkpoint, "--chat"), "chat is given; the checkpoint must have a chat template."),
        (("--checkpoint", checkpoint, "--system", "x"), "system is given; the checkpoint must have a chat template."),
    ):
        code, _, errors = run(*arguments)
        assert code == 1 and errors == f"error: {sentence}\n"
