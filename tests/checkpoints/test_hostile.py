"""Hostile files: none is executed, each is refused at once, in one sentence, without taking memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
import pytest

ROOT = Path(__file__).parents[2]
REFUSED = [*hostile.CHECKPOINTS, *hostile.UPLOADS]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(what became of every case, by name; the folder in which code would have left a file)."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, ROOT / "tests" / "hostile.py", folder]
    found = subprocess.run(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return {case["name"]: case for case in map(json.loads, found.stdout.splitlines())}, folder


def test_the_corpus_is_large_and_all_of_it_was_opened(opened):
    assert len(REFUSED) >= 70 and set(opened[0]) == {*REFUSED, *hostile.HARMLESS}


@pytest.mark.parametrize("name", REFUSED)
def test_each_is_refused_in_one_sentence_at_once(opened, name):
    case = opened[0][name]
    message = case["message"]
    assert message.startswith("checkpoint '" if case["kind"] == "checkpoint" else "data '")
    assert "\n" not in message and len(message) < 500 and message[-1] in ".)" and hostile.CANARY not in message
    assert case["seconds"] < (3 if os.environ.get("CI") else 2)  # 1 on an idle machine: see docs/log.md
    assert case["above"] < 200e6


@pytest.mark.parametrize("name", hostile.HARMLESS)
def test_what_is_never_looked_at_does_not_matter(opened, name):
    assert opened[0][name]["message"] == ""


def test_no_code_was_executed(opened):
    assert not list(opened[1].rglob(hostile.FLAG))
