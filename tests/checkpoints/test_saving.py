"""Checkpoints of a run: complete or absent, pruned, and passed over once damaged."""

import json
import os

import pytest

from deepseek.checkpoints.saving import (
    best_of,
    latest_checkpoint,
    list_checkpoints,
    listed_files,
    offered_checkpoint,
    pin,
    save_checkpoint,
    validation,
)


def write(folder):
    (folder / "weights").write_bytes(bytes(range(256)))
    (folder / "state").write_text("step")


def write_and_fail(folder):
    write(folder)
    raise OSError("disk full")


def flip_bit(folder):
    file = folder / "weights"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def names(run):
    return [path.name for path in list_checkpoints(run)]


def test_the_manifest_lists_every_file(tmp_path):
    folder = save_checkpoint(tmp_path / "run", 7, write)
    assert folder == tmp_path / "run" / "step-000007" == latest_checkpoint(tmp_path / "run")
    assert set(json.loads((folder / "manifest.json").read_text())) == {"weights", "state"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-000007"]


DAMAGE = {
    "one bit": flip_bit,
    "missing file": lambda folder: (folder / "state").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "other manifest": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "cut manifest": lambda folder: os.truncate(folder / "manifest.json", 20),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_passed_over_and_can_be_saved_again(tmp_path, damage):
    good, bad = save_checkpoint(tmp_path, 100, write), save_checkpoint(tmp_path, 200, write)
    assert latest_checkpoint(tmp_path) == bad
    damage(bad)
    assert latest_checkpoint(tmp_path) == good
    damage(good)
    assert latest_checkpoint(tmp_path) is None
    assert save_checkpoint(tmp_path, 100, write) == latest_checkpoint(tmp_path)


def test_other_files_neither_damage_a_checkpoint_nor_are_they_deleted(tmp_path):
    """A file manager's .DS_Store, notes, a link to nowhere, a folder that only looks like a checkpoint."""
    first, second = save_checkpoint(tmp_path, 1, write), save_checkpoint(tmp_path, 2, write)
    for folder in (first, second):
        (folder / "README.md").write_text("my notes")
        (folder / ".DS_Store").symlink_to("nowhere")
    export = tmp_path / "step-000003"
    export.mkdir()
    (export / "weights").write_text("mine")
    assert latest_checkpoint(tmp_path) == second and list_checkpoints(tmp_path) == [first, second]
    assert [file.name for file in listed_files(second)] == ["state", "weights"]
    flip_bit(second)  # resumed from step 1
    for step in (2, 3, 4):
        assert save_checkpoint(tmp_path, step, write, keep_last=1) == latest_checkpoint(tmp_path)
    kept = {file.parent.name[:11]: file.read_text() for file in tmp_path.glob("*/README.md")}
    assert kept == {"step-000001": "my notes", "step-000002": "my notes"} and not (first / "weights").exists()
    assert [file.read_text() for file in tmp_path.glob("step-000003-*/weights")] == ["mine"]
    assert names(tmp_path) == ["step-000004"]


def test_only_the_newest_checkpoints_stay(tmp_path):
    for step in (5, 50, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, write, keep_last=2)
    assert names(tmp_path) == ["step-999999", "step-1000000"]


def test_a_pinned_checkpoint_stays_until_another_one_is_pinned(tmp_path):
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, step, write, keep_last=1)
        if step in (10, 30):
            pin(tmp_path / f"step-{step:06d}")
        assert len(names(tmp_path)) <= 2
        assert (tmp_path / "step-000010").exists() == (step < 40)
    assert names(tmp_path) == ["step-000030", "step-000040"]
    pin(tmp_path / "no-such-folder")


def save(run, step, loss, texts="the same", keep_last=1):
    """Saves a checkpoint with this validation loss, None for one that was not validated."""
    return save_checkpoint(run, step, write, keep_last, loss and {"val_loss": loss, "texts": texts})


def best(run):
    path = best_of(list_checkpoints(run))
    return path and path.name


def test_the_best_checkpoint_stays_until_a_better_one_is_saved(tmp_path):
    expected = [  # (step, loss, the best from then on, all that are kept)
        (10, None, None, [10]),
        (20, 3.0, 20, [20]),
        (30, 3.5, 20, [20, 30]),
        (40, None, 20, [20, 40]),
        (50, float("nan"), 20, [20, 50]),
        (60, 3.0, 20, [20, 60]),  # of equal ones the earliest
        (70, 2.5, 70, [70]),
        (80, 2.6, 70, [70, 80]),
    ]
    for step, loss, best_step, kept in expected:
        save(tmp_path, step, loss)
        assert best(tmp_path) == (best_step and f"step-{best_step:06d}")
        assert names(tmp_path) == [f"step-{step:06d}" for step in kept]
    assert validation(tmp_path / "step-000070") == {"val_loss": 2.5, "texts": "the same"}
    assert latest_checkpoint(tmp_path).name == "step-000080", "from which the run resumes"


def test_losses_on_other_texts_do_not_compare(tmp_path):
    save(tmp_path, 10, 1.0)
    save(tmp_path, 20, 4.0, "others")
    assert best(tmp_path) == "step-000020" and names(tmp_path) == ["step-000020"]
    save(tmp_path, 30, 4.5, "others")
    assert best(tmp_path) == "step-000020"


def test_the_best_of_later_steps_than_the_run_resumed_from_goes(tmp_path):
    save(tmp_path, 10, 3.0)
    save(tmp_path, 20, 2.0, keep_last=2)
    flip_bit(tmp_path / "step-000020")
    assert latest_checkpoint(tmp_path).name == "step-000010"
    save(tmp_path, 15, 2.5)
    assert names(tmp_path) == ["step-000015"] and best(tmp_path) == "step-000015"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"val_loss": "1", "texts": "t"}', '{"val_loss": 1}'])
def test_a_damaged_validation_is_none(tmp_path, content):
    folder = save(tmp_path, 10, 3.0)
    file = folder / "validation.json"
    file.unlink() if content is None else file.write_text(content)
    assert validation(folder) is best_of([folder]) is None
    assert save(tmp_path, 20, 5.0) == best_of(list_checkpoints(tmp_path))


def test_a_run_opens_as_its_best_complete_checkpoint(tmp_path):
    assert offered_checkpoint(tmp_path) == tmp_path, "it has none"
    first = save_checkpoint(tmp_path, 10, write)
    assert offered_checkpoint(tmp_path) == first and offered_checkpoint(first) == first
    good, middle, newest = (save(tmp_path, step, step / 10, keep_last=9) for step in (20, 30, 40))
    assert offered_checkpoint(tmp_path) == good
    flip_bit(good)
    assert offered_checkpoint(tmp_path) == middle
    (middle / "validation.json").unlink()
    assert offered_checkpoint(tmp_path) == newest
    flip_bit(newest)
    assert offered_checkpoint(tmp_path) == first
    (tmp_path / "model.safetensors").touch()
    assert offered_checkpoint(tmp_path) == tmp_path, "it is a checkpoint itself"
    assert offered_checkpoint(tmp_path / "nothing") == tmp_path / "nothing"


def test_what_others_wrote_into_the_best_checkpoint_stays(tmp_path):
    (save(tmp_path, 10, 3.0) / "notes.md").write_text("mine")
    save(tmp_path, 20, 2.0)
    assert [file.name for file in (tmp_path / "step-000010").iterdir()] == ["notes.md"]


def test_saving_prunes_the_damaged_checkpoints_of_later_steps(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, write, keep_last=2)
    flip_bit(tmp_path / "step-000030")
    assert latest_checkpoint(tmp_path).name == "step-000020"
    save_checkpoint(tmp_path, 25, write, keep_last=2)
    assert names(tmp_path) == ["step-000020", "step-000025"]


def test_a_failing_write_frees_its_space_and_leaves_earlier_checkpoints(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 100, write_and_fail)
    assert list(tmp_path.iterdir()) == []
    good = save_checkpoint(tmp_path, 100, write)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 200, write_and_fail)
    assert list_checkpoints(tmp_path) == [good] and latest_checkpoint(tmp_path) == good
    assert save_checkpoint(tmp_path, 200, write) == latest_checkpoint(tmp_path)


def test_a_run_without_checkpoints_has_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path) is latest_checkpoint(tmp_path / "nothing") is None
