"""The campaigns on training at a size for CI; tests/campaigns has them in full, and says what their counts are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counts():
    command = [sys.executable, ROOT / "tests" / "campaigns" / "small.py"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_kills_lose_no_checkpoint_and_change_no_result(counts):
    kills = counts["kills"]
    assert kills["kills"] == 8 and kills["while_saving"] >= 1, kills  # a busy machine is late for some saves
    assert kills["best_is_not_the_newest"] == 1, kills
    assert not (kills["lost_checkpoints"] or kills["wrong_states"] or kills["different"] or kills["lost_best"]), kills


def test_every_damaged_checkpoint_is_detected(counts):
    bitflips = counts["bitflips"]
    assert bitflips["flips"] == bitflips["truncations"] == 2 * bitflips["files"] == 16
    assert not (bitflips["undetected"] or bitflips["previous_not_used"]), bitflips


def test_of_simultaneous_starts_one_starts_and_outlives_the_app(counts):
    starts = counts["starts"]
    assert (starts["started"], starts["refused"], starts["other_answers"]) == (1, 7, 0), starts
    assert starts["processes_after_the_app"] == starts["folders"] == 1, starts
    assert starts["continues"] and starts["stopped"] and starts["no_orphan"], starts


def test_a_save_interrupted_at_any_system_call_leaves_a_complete_checkpoint(counts):
    crashpoints = counts["crashpoints"] or pytest.skip("system calls are traced on Linux x86-64 only")
    assert crashpoints["kills"] >= 7 and crashpoints["full_disks"] and not crashpoints["bad"], crashpoints
