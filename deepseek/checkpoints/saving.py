"""Checkpoints of a run that no crash can lose or corrupt.

A checkpoint is a folder `step-NNNNNN` that appears whole or not at all: it is written under another name, every file
is hashed into manifest.json and flushed to the disk, then the folder is renamed. A run resumes from the newest
checkpoint whose files match its manifest. Only the files that a manifest lists belong to a checkpoint, and only they are
ever deleted: what somebody else put into the folder stays.

A checkpoint that was validated holds its held-out loss, so that the best one is known from the checkpoints alone, after any
crash.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
STAGING = ".staging"
VALIDATION = "validation.json"  # in a checkpoint that was validated: val_loss, val_bits_per_byte, and which texts
PINNED = ".opened"  # in a run: the name of the checkpoint that is not pruned


def save_checkpoint(run, step: int, write, keep_last: int = 2, validation: dict | None = None) -> Path:
    """Saves what `write(folder)` writes as `run`/step-NNNNNN, then prunes all but the newest `keep_last` checkpoints.

    `validation` is what held-out text gave at this step: "val_loss", nats per token, and "texts", which says on what; None if
    it was not validated. The best checkpoint and the pinned one stay as well. Those of later steps go: they are damaged, or
    the run would have resumed there.
    """
    run = Path(run)
    staging, target = run / STAGING, run / f"step-{step:06d}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write(staging)
        if validation:
            (staging / VALIDATION).write_text(json.dumps(validation))
        hashes = {file.name: sha256(file) for file in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps(hashes, indent=1))
        for file in staging.iterdir():
            _fsync(file)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)  # the disk may be full
        raise
    _fsync(staging)
    if target.exists():  # a damaged checkpoint of the same step
        _delete(target)
    if target.exists():  # it holds other files too
        target.rename(tempfile.mkdtemp(prefix=f"{target.name}-", dir=run))
    staging.rename(target)
    _fsync(run)
    checkpoints = list_checkpoints(run)
    valid = checkpoints[: checkpoints.index(target) + 1]
    kept = [*valid[-keep_last:], best_of(valid)]
    with suppress(OSError):  # none is pinned
        pinned = (run / PINNED).read_text()
        kept += [path for path in valid if path.name == pinned]
    for path in checkpoints:
        if path not in kept:
            _delete(path)
    for folder in run.glob("step-*"):
        if folder.name[5:].isdecimal():
            with suppress(OSError):  # only one that is empty goes: its deletion was interrupted
                folder.rmdir()
    return target


def _delete(checkpoint: Path) -> None:
    """Deletes what belongs to a checkpoint: the manifest last, so that the next save finishes an interrupted deletion."""
    for file in listed_files(checkpoint):
        file.unlink()
    if _hashes(checkpoint):
        (checkpoint / MANIFEST).unlink()
    with suppress(OSError):  # it holds other files too
        checkpoint.rmdir()


def pin(folder) -> None:
    """Keeps an opened checkpoint from being pruned, until another one of its run is pinned."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        with suppress(OSError):  # a read-only folder, or a full disk
            (folder.parent / PINNED).write_text(folder.name)


def list_checkpoints(run) -> list[Path]:
    """The checkpoint folders of a run, oldest first, damaged ones included."""
    folders = (path for path in Path(run).glob("step-*") if path.name[5:].isdecimal() and (path / MANIFEST).is_file())
    return sorted(folders, key=lambda path: int(path.name[5:]))


def latest_checkpoint(run) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next((path for path in reversed(list_checkpoints(run)) if is_complete(path)), None)


def validation(checkpoint: Path) -> dict | None:
    """What `save_checkpoint` was given as a checkpoint's `validation`; None for one that was not validated."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        result = json.loads((checkpoint / VALIDATION).read_text())
        return result if math.isfinite(result["val_loss"]) and result["texts"] else None
    return None


def best_of(checkpoints: list[Path]) -> Path | None:
    """The checkpoint of the lowest validation loss, the earliest of equal ones; None if none was validated.

    Of a run that was resumed with other held-out texts, those measured on the newest texts alone: no others compare.
    """
    results = [(path, result) for path in checkpoints if (result := validation(path))]
    comparable = [(path, result) for path, result in results if result["texts"] == results[-1][1]["texts"]]
    return min(comparable, key=lambda item: item[1]["val_loss"], default=(None, None))[0]


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint holds the files of its manifest, unchanged."""
    hashes = _hashes(folder)
    try:
        return bool(hashes) and all(sha256(folder / name) == value for name, value in hashes.items())
    except OSError:
        return False


def offered_checkpoint(folder: Path) -> Path:
    """The checkpoint that a run's folder opens as: the best complete one, or the newest if none was validated.

    Any other folder, and a run without a complete checkpoint, is returned as it is.
    """
    is_run = folder.is_dir() and not any(folder.glob("*.safetensors"))
    checkpoints = list_checkpoints(folder) if is_run else []
    while checkpoints:
        offered = best_of(checkpoints) or checkpoints[-1]
        if is_complete(offered):
            return offered
        checkpoints.remove(offered)
    return folder


def listed_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, sorted: those in its folder that its manifest lists."""
    hashes = _hashes(folder)
    return sorted(file for file in folder.iterdir() if file.name in hashes)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of a checkpoint's files; {} without a manifest, or with one that is damaged."""
    with suppress(OSError, ValueError):
        hashes = json.loads((folder / MANIFEST).read_text())
        return hashes if isinstance(hashes, dict) else {}
    return {}


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
