"""Checkpoints of a run that no crash can lose or corrupt.

A checkpoint is a folder `step-NNNNNN` that appears whole or not at all: it is written under another name, every file
is hashed into manifest.json and flushed to the disk, then the folder is renamed. A run resumes from the newest
checkpoint whose files match its manifest.
"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
STAGING = ".staging"
PINNED = ".opened"  # in a run: the name of the checkpoint that is not pruned


def save_checkpoint(run, step: int, write, keep_last: int = 2) -> Path:
    """Saves what `write(folder)` writes as `run`/step-NNNNNN, then prunes all but the newest `keep_last` checkpoints.

    The pinned checkpoint stays as well. Those of later steps go: they are damaged, or the run would have resumed there.
    """
    run = Path(run)
    staging, target = run / STAGING, run / f"step-{step:06d}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write(staging)
        hashes = {file.name: sha256(file) for file in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps(hashes, indent=1))
        for file in staging.iterdir():
            _fsync(file)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # the disk may be full
        raise
    _fsync(staging)
    shutil.rmtree(target, ignore_errors=True)  # a damaged checkpoint of the same step
    staging.rename(target)
    _fsync(run)
    checkpoints = list_checkpoints(run)
    valid = checkpoints[: checkpoints.index(target) + 1]
    kept = valid[-keep_last:]
    with suppress(OSError):  # none is pinned
        pinned = (run / PINNED).read_text()
        kept += [path for path in valid if path.name == pinned]
    for path in checkpoints:
        if path not in kept:
            shutil.rmtree(path)
    return target


def pin(folder) -> None:
    """Keeps an opened checkpoint from being pruned, until another one of its run is pinned."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        with suppress(OSError):  # a read-only folder, or a full disk
            (folder.parent / PINNED).write_text(folder.name)


def list_checkpoints(run) -> list[Path]:
    """The checkpoint folders of a run, oldest first, damaged ones included."""
    folders = (path for path in Path(run).glob("step-*") if path.name[5:].isdecimal() and path.is_dir())
    return sorted(folders, key=lambda path: int(path.name[5:]))


def latest_checkpoint(run) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next((path for path in reversed(list_checkpoints(run)) if is_complete(path)), None)


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint holds exactly the files of its manifest, unchanged."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
        names = {file.name for file in folder.iterdir()} - {MANIFEST}
        return names == set(hashes) and all(sha256(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
