"""Models of the Hugging Face Hub: their ids, their folders in the local cache, and downloads that can be watched and ended.

An id is NAME/MODEL or NAME/MODEL@REVISION, where the revision is a branch, a tag or a commit. `python -m
deepseek.checkpoints.hub ID` downloads in a process of its own, which a `Download` reads and can end at any point.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, hf_hub_download, snapshot_download
from huggingface_hub.utils import tqdm

from deepseek.checkpoints.memory import check_memory, loading_bytes
from deepseek.checkpoints.validation import FolderError, check_quantization, check_weights, first_sentence

HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?"
HUB_FILES = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
TIMEOUT_S = 10  # for the Hub's first answer
STALL_TIMEOUT_S = 60  # a download that brings less than STALL_BYTES in this time is given up
STALL_BYTES = 2**16
UPDATE_S = 0.25  # between two reports of a download


def split_id(hub_id: str) -> tuple[str, str]:
    """(name/model, revision) of a Hub id."""
    repo, _, revision = hub_id.partition("@")
    return repo, revision or constants.DEFAULT_REVISION


def is_hub_id(path: str) -> bool:
    """Whether a path names a model of the Hub and no folder."""
    return bool(re.fullmatch(HUB_ID, path)) and not Path(path).is_dir()


def local_folder(path) -> Path | None:
    """The folder of a checkpoint: the path itself, or where the Hub id's revision lies in the local cache; None if nowhere."""
    if Path(path).is_dir():
        return Path(path)
    if is_hub_id(str(path)):
        repo, revision = split_id(str(path))
        with suppress(errors.LocalEntryNotFoundError, OSError):
            options = dict(allow_patterns=HUB_FILES, local_files_only=True)
            return Path(snapshot_download(repo, revision=revision, **options))
    return None


def download(
    hub_id: str, itemsize: int, max_bytes: float | None, num_workers=0, report: Callable | None = None
) -> Path:
    """The local folder of a Hub id, after what is missing in it was downloaded; the cached one if the Hub is out of reach.

    `report(bytes, total bytes)` is called as it grows. Raises FolderError; for a model that with `itemsize` bytes for each
    parameter is larger than `max_bytes`, or needs more memory than is free with `num_workers` processes that share it, before it
    is downloaded.
    """
    repo, revision = split_id(hub_id)
    try:
        api = HfApi()
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings}
        check_weights(sizes)
        check_quantization(info.config or {})
        files = api.get_safetensors_metadata(repo, revision=revision).files_metadata.values()
        model_bytes = sum(count for file in files for count in file.parameter_count.values()) * itemsize
        stored_bytes = sum(size for name, size in sizes.items() if fnmatch(name, "model*.safetensors"))
        tensors = [item for file in files for item in file.tensors.items()]
        others = sum(tensor.parameter_count for name, tensor in tensors if ".experts." not in name)
        needed = loading_bytes(model_bytes, stored_bytes, num_workers * others * itemsize)
        if any(".experts." in name for name, _ in tensors):  # they may stay in the files
            needed = min(needed, loading_bytes(2 * others, 0))
        check_memory(needed, model_bytes, max_bytes)
        options = {}
        if report:
            total = sum(size for name, size in sizes.items() if any(fnmatch(name, each) for each in HUB_FILES))
            options = dict(tqdm_class=_reporting_bar(lambda done: report(min(done, total), total)))
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, **options))
    except FolderError:
        raise
    except Exception as error:  # offline is an error of its own in every HTTP library
        if folder := local_folder(hub_id):
            return folder
        raise FolderError(_explain(error, repo, revision)) from error


def describe(hub_id: str, folder: Path) -> dict[str, list[int]]:
    """{name: shape} of the tensors of a Hub id, read without them; its config.json is put into `folder`. Raises FolderError."""
    repo, revision = split_id(hub_id)
    try:
        hf_hub_download(repo, "config.json", revision=revision, local_dir=folder)
        files = HfApi().get_safetensors_metadata(repo, revision=revision).files_metadata.values()
    except Exception as error:
        raise FolderError(_explain(error, repo, revision)) from error
    return {name: tensor.shape for file in files for name, tensor in file.tensors.items()}


def _explain(error: Exception, repo: str, revision: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in (hf auth login) or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: ask for access on {constants.ENDPOINT}/{repo}, then {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"is on the Hub, but has no revision {revision!r} there."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"is not on the Hub; check its spelling and, if it is private, {login}."
    if status == 429:
        return f"cannot be fetched: the Hub has had too many requests from here; try again in some minutes, or {login}."
    if status:
        return f"cannot be fetched: the Hub answers with error {status}; try again later."
    return f"is not on this machine, and the Hub is out of reach: {first_sentence(error)}"


def _reporting_bar(report: Callable[[int], None]) -> type[tqdm]:
    """A class of progress bars for snapshot_download that draws nothing and reports the bytes."""

    class Bar(tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options | {"disable": True})
            self.counts_bytes, self.done = options.get("unit") == "B", 0  # another bar counts files

        def update(self, n=1):
            self.done += n
            if self.counts_bytes:
                report(self.done)

    return Bar


class Download:
    """A download in a process of its own; all who want the same model watch the same one. What has arrived stays."""

    def __init__(self, hub_id: str, itemsize: int, max_bytes: int | None, num_workers: int = 0):
        self.hub_id, self.done, self.total, self.num_watchers = hub_id, 0, 0, 0
        self.error: str | None = None  # continues a sentence that begins with the id
        self.over = threading.Event()
        self._counted, self._counted_at = 0, time.monotonic()  # bytes, and when there were STALL_BYTES more than before
        limits = [str(itemsize), str(max_bytes or "inf"), str(num_workers)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deepseek.checkpoints.hub", hub_id, *limits],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the app alone
        )
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        error = "could not be downloaded: the download was ended."
        for line in self._process.stdout:
            message = json.loads(line)
            error = message.get("error", error)
            if message.get("done", self.done) > self.done:
                self.done, self.total = message["done"], message["total"]
                if self.done - self._counted >= STALL_BYTES:
                    self._counted, self._counted_at = self.done, time.monotonic()
        self.error = self.error or (error if self._process.wait() else None)
        self.over.set()

    def watch(self) -> Iterator[tuple[int, int]]:
        """Yields (bytes, total bytes) several times a second until all are there. Raises FolderError if that fails."""
        self.num_watchers += 1
        try:
            while not self.over.wait(UPDATE_S):
                if time.monotonic() - self._counted_at > STALL_TIMEOUT_S:
                    stalled = f"stalled: less than {STALL_BYTES // 2**10} KiB in {STALL_TIMEOUT_S} s"
                    self.cancel(f"{stalled}; open it again to continue from {self.done / 1e6:.0f} MB.")
                yield self.done, self.total
        finally:
            self.num_watchers -= 1
        if self.error:
            raise FolderError(self.error)

    def cancel(self, reason: str = "was not downloaded: the download was cancelled.") -> None:
        """Ends the download for all who watch it."""
        self.error = reason
        self._process.kill()


def main():
    hub_id, itemsize, max_bytes, num_workers = sys.argv[1:]
    last, lock = 0.0, threading.Lock()

    def report(done: int, total: int) -> None:  # by several threads, one for each file
        nonlocal last
        with lock:
            if done == total or time.monotonic() - last > UPDATE_S:
                last = time.monotonic()
                print(json.dumps({"done": done, "total": total}), flush=True)

    try:
        download(hub_id, int(itemsize), float(max_bytes), int(num_workers), report)
    except FolderError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
