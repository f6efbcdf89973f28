"""The settings of a run: what they allow, and the command line by which they are given."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from deepseek.training import runs
from deepseek.training.config import PRESET_DEFAULTS, TrainConfig, parse

V01 = Path(__file__).parents[1] / "fixtures" / "v0.1"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(max_steps=0), "max_steps is 0"),
        (dict(max_steps=2.5), "max_steps is 2.5; it must be a whole number from 1 to 10000000"),
        (dict(max_steps=True), "max_steps is True"),
        (dict(lr="fast"), "lr is 'fast'; it must be a number from 0 to 1"),
        (dict(shard="yes"), "shard is 'yes'; it must be true or false"),
        (dict(data="a.txt"), "data is 'a.txt'; it must be a list"),
        (dict(data=[3]), "data is 3; it must be text"),
        (dict(mixture_weights=["1"]), "mixture_weights is '1'; it must be a number"),
        (dict(name=7), "name is 7; it must be text"),
        (dict(lr=math.nan), "lr is nan"),
        (dict(lr=-1.0), "lr is -1.0"),
        (dict(batch_size="8"), "batch_size is '8'"),
        (dict(preset="huge"), "preset is 'huge'"),
        (dict(precision="int8"), "precision is 'int8'"),
        (dict(eval_every=-1), "eval_every is -1"),
        (dict(data=[]), "data is empty"),
        (
            dict(mixture_weights=[1.0, 2.0]),
            r"mixture_weights is \[1.0, 2.0\]; it must be one number above 0 per source, 1 in all",
        ),
        (dict(mixture_weights=[0.0]), r"mixture_weights is \[0.0\]"),
        (dict(name="../up"), "name is '../up'; it must be a folder name of 1 to 100 bytes"),
        (dict(name=""), "name is ''"),
        (dict(name=".hidden"), "name is '.hidden'"),
        (dict(name="é" * 51), "name is 'é+"),
    ],
)
def test_a_bad_setting_is_refused_by_name(stories, change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainConfig(**{"data": [stories], **change})


@pytest.mark.parametrize("resume", [False, True])
def test_the_command_line_of_a_run_states_every_setting(config, resume):
    strange = dict(name="-a run", data=["a b.txt", "c/d"], init_from="-x", probe="'; \n")
    config = config(**strange, mixture_weights=[1.0, 2.5], lr=3e-4, seed=7)
    config.run.mkdir()
    (config.run / "config.json").write_text(json.dumps(vars(config)))
    assert parse(runs.command(config, resume)[3:]) == (config, resume)


def test_a_preset_brings_its_defaults_and_flags_win_over_them():
    config, resume = parse(["--preset", "quick", "--batch-size", "3"])
    assert vars(config) == {**vars(TrainConfig(preset="quick", **PRESET_DEFAULTS["quick"])), "batch_size": 3}
    assert not resume


@pytest.mark.parametrize(
    "arguments, message",
    [(["--lr", "2"], "lr is 2.0; it must be"), (["--resume", "--name", "none"], "none' does not exist")],
)
def test_a_bad_command_line_exits_with_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def resumable(config):
    """(settings, arguments to resume) of a run with a folder."""
    config = config(shard=True)
    config.run.mkdir()
    (config.run / "config.json").write_text(json.dumps(vars(config)))
    return config, [f"--root={config.root}", "--resume"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--preset seed", "preset is 'seed'; a resumed run keeps what it has, 'tiny'."),
        ("--optimizer muon", "optimizer is 'muon'; a resumed run keeps what it has, 'adamw'."),
        ("--seed 3", "seed is 3; a resumed run keeps what it has, 0."),
        ("--max-seq-len 64", "max_seq_len is 64; a resumed run keeps what it has, 32."),
        ("--encoding cp1252", "encoding is 'cp1252'; a resumed run keeps what it has, 'auto'."),
        ("--eval-every 9", "eval_every is 9; the run holds no text out, and has trained on all; give eval_data."),
        ("--data a.txt b.txt", "data names 2 sources; a resumed run keeps its 1."),
        ("--max-steps 0", "max_steps is 0; it must be a whole number from 1 to 10000000."),
    ],
)
def test_a_resumed_run_refuses_by_name_what_it_cannot_change(resumable, capsys, flags, message):
    with pytest.raises(SystemExit):
        parse([*resumable[1], *flags.split()])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


@pytest.mark.parametrize(
    "flags, changes",
    [
        ("", {}),
        ("--shard", dict(shard=True)),
        ("--preset tiny --max-steps 99 --lr 0.1 --data moved.txt", dict(max_steps=99, lr=0.1, data=["moved.txt"])),
        ("--eval-every 9 --eval-data a.txt", dict(eval_every=9, eval_data=["a.txt"])),
    ],
)
def test_a_resumed_run_takes_the_flags_that_it_is_given(resumable, flags, changes):
    """Sharding is a matter of how it is launched, and asked for anew."""
    config, arguments = resumable
    assert parse([*arguments, *flags.split()]) == (replace(config, **{"shard": False, **changes}), True)


def test_commands_and_run_folders_of_version_0_1_are_read(tmp_path):
    command = next(line for line in (V01 / "commands.txt").read_text().splitlines() if "deepseek.train" in line)
    config, _ = parse(shlex.split(command)[1:])
    expected = dict(
        name="old", init_from="assets/demo", data=["stories.txt"], mixture_weights=[1.0], eval_data=["stories.txt"],
        max_steps=60, batch_size=2, gradient_accumulation_steps=2, max_seq_len=16, warmup_steps=2, max_grad_norm=0.5,
        bias_update_rate=0.01, save_every=2, keep_last=1, eval_every=2, eval_documents=2,
    )  # fmt: skip
    assert config == TrainConfig(**expected)
    folder, _ = parse(["--root", str(V01 / "runs"), "--name", "old", "--resume"])
    changed = dict(init_from="", data=["tests/fixtures/v0.1/stories.txt"], eval_data=[], sample_every=4)
    assert folder == TrainConfig(**{**expected, **changed, "root": str(V01 / "runs")})


def test_learning_rate_warms_up_and_then_falls_or_stays(config):
    settings = dict(lr=0.1, warmup_steps=10, max_steps=110)
    cosine, constant, wsd = (config(**settings, schedule=name) for name in ("cosine", "constant", "wsd"))
    assert [cosine.learning_rate(step) for step in (1, 5, 10)] == pytest.approx([0.01, 0.05, 0.1])
    assert [cosine.learning_rate(step) for step in (35, 60, 110)] == pytest.approx(
        [0.1 * (1 + math.cos(math.pi * progress)) / 2 for progress in (25 / 101, 50 / 101, 100 / 101)]
    )
    assert cosine.learning_rate(110) > 0, "the last step still trains"
    assert {constant.learning_rate(step) for step in range(10, 111)} == {0.1}
    assert {wsd.learning_rate(step) for step in range(10, 68)} == {0.1}, "until 60 % of 110 steps"
    assert [wsd.learning_rate(step) for step in (78, 89, 110)] == pytest.approx([0.075, 0.05, 0.1 / 44])
    assert config(warmup_steps=0).learning_rate(1) > 0


@pytest.mark.parametrize(
    "save_every, eval_every, both", [(100, 70, "700"), (10, 25, "50"), (100, 50, None), (100, 0, None)]
)
def test_a_note_says_which_checkpoints_can_be_the_best(save_every, eval_every, both):
    notes = [note for note in TrainConfig(save_every=save_every, eval_every=eval_every).notes() if "the best" in note]
    assert bool(notes) == bool(both)
    if both:
        what = f"eval_every is {eval_every}, save_every {save_every}; checkpoints are validated every {both} steps"
        assert notes[0].startswith(what)
