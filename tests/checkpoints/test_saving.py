"""Checkpoints of a run: complete or absent, pruned, and passed over once damaged."""

import json
import os

import pytest

from deepseek.checkpoints.saving import latest_checkpoint, list_checkpoints, pin, save_checkpoint


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
    "extra file": lambda folder: (folder / "extra").touch(),
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
