"""TODO"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
STAGING = ".staging"
PINNED = ".opened"  # in a run: the name of the commit that is not pruned


def save_checkpoint(run, step: int, write, keep_last: int = 2) -> Path:
    """Makes `run`/step-NNNNNN from what `write(folder)` puts into a folder; then drops all but the newest `keep_last`.

    What `hold` named stays as well. Commits of later steps go: they are damaged ones, behind which the run had to go back.
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
        shutil.rmtree(staging, ignore_errors=True)  # a full disk needs the room
        raise
    _fsync(staging)
    shutil.rmtree(target, ignore_errors=True)  # a damaged commit of the same step
    staging.rename(target)
    _fsync(run)
    made = list_checkpoints(run)
    good = made[: made.index(target) + 1]
    for old in made:
        if old not in good[-keep_last:] and not (old in good and old.name == _pinned(run)):
            shutil.rmtree(old)
    return target


def pin(folder) -> None:
    """Keeps a commit that somebody has opened from being pruned, until another one of its run is held."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        with suppress(OSError):  # somebody else's folder, or a full disk
            (folder.parent / PINNED).write_text(folder.name)


def _pinned(run: Path) -> str:
    with suppress(OSError):
        return (run / PINNED).read_text()
    return ""


def list_checkpoints(run) -> list[Path]:
    """The commit folders of a run, oldest first, damaged ones included."""
    folders = (path for path in Path(run).glob("step-*") if path.name[5:].isdecimal() and path.is_dir())
    return sorted(folders, key=lambda path: int(path.name[5:]))


def latest_checkpoint(run) -> Path | None:
    """The newest commit whose every file is as its manifest says, or None."""
    return next((path for path in reversed(list_checkpoints(run)) if is_complete(path)), None)


def is_complete(folder: Path) -> bool:
    """Whether a commit holds exactly the files of its manifest, unchanged."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
        names = {file.name for file in folder.iterdir()} - {MANIFEST}
        return names == set(hashes) and all(sha256(folder / name) == value for name, value in hashes.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    """Waits until a file's, or a folder's, content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
