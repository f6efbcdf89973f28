"""The patches of docs/how-to: each applies to the repository as it is, passes the tests that it adds, and is tidy."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from running import ROOT

PATCHES = sorted((ROOT / "docs/how-to").glob("*.patch"))


def run(*command, cwd):
    """What a command prints; it must succeed."""
    # Of the copy alone: neither a repository around it, nor the package that this test runs in.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(cwd.parent), "PYTHONPATH": str(cwd)}
    done = subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """A copy of the package and its tests with all patches applied, one after the other."""
    folder = tmp_path_factory.mktemp("patched")
    names = run("git", "ls-files", "-z", "deepseek", "tests", "app.py", "pyproject.toml", cwd=ROOT).split("\0")[:-1]
    for name in names:
        if (ROOT / name).is_file() and "/fixtures/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "assets").symlink_to(ROOT / "assets")
    for patch in PATCHES:
        run("git", "apply", str(patch), cwd=folder)
    return folder


def test_all_patches_pass_the_tests_that_they_add(patched):
    text = "\n".join(patch.read_text("utf-8") for patch in PATCHES)
    changed = sorted(set(re.findall(r"^\+\+\+ b/(.+)", text, re.M)))
    added = re.findall(r"^\+def (test_\w+)", text, re.M)
    tests = [name for name in changed if name.startswith("tests/")]
    pytest_here = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0"]
    passed = run(*pytest_here, "-vv", "-k", " or ".join(added), *tests, cwd=patched)
    assert all(f"::{name}" in passed for name in added) and "skipped" not in passed
    modules = " or ".join(name for name in changed if name.startswith("deepseek/"))
    run(*pytest_here, "tests/test_structure.py", "-k", modules, cwd=patched)
    run(sys.executable, "-m", "ruff", "check", "--no-cache", *changed, cwd=patched)
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", *changed, cwd=patched)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_each_patch_applies_alone_and_adds_a_test(patch, tmp_path):
    changed = re.findall(r"^\+\+\+ b/(.+)", patch.read_text("utf-8"), re.M)
    for name in changed:
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    run("git", "apply", str(patch), cwd=tmp_path)
    assert re.search(r"^\+def test_\w+", patch.read_text("utf-8"), re.M)


def test_contributing_explains_each_of_them():
    assert [patch.stem for patch in PATCHES] == ["data-source", "panel", "sampler-stage"]
    assert all(f"docs/how-to/{patch.name}" in (ROOT / "CONTRIBUTING.md").read_text("utf-8") for patch in PATCHES)
