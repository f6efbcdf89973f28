"""Shared by the campaigns: a small real run whose process is forked from one that has already imported everything."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nor does CUDA
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from small import STORIES  # noqa: E402

from deepseek import train  # noqa: E402
from deepseek.checkpoints import saving  # noqa: E402
from deepseek.training.config import TrainConfig  # noqa: E402
from deepseek.training.runs import command  # noqa: E402

torch.set_num_threads(1)
SETTINGS = dict(preset="tiny", max_seq_len=32, batch_size=4, warmup_steps=3, lr=5e-3, precision="fp32")
SETTINGS |= dict(eval_every=0, sample_every=0)


def small_config(folder: Path, **settings) -> TrainConfig:
    """The settings of a small run in `folder`, on a file of short documents there."""
    data = folder / "stories.txt"
    if not data.exists():
        data.write_text("\n<|endoftext|>\n".join(STORIES), "utf-8")
    return TrainConfig(**{"root": str(folder), "data": [str(data)], **SETTINGS, **settings})


def fork(function, log: Path | None = None) -> int:
    """Runs `function()` in a fork of this process, its output appended to `log`; returns the child's pid."""
    if pid := os.fork():
        return pid
    exit_code = 1
    try:
        output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        function()
        exit_code = 0
    except SystemExit as error:
        print(error, flush=True)
    except BaseException as error:
        print(repr(error), flush=True)
    finally:
        os._exit(exit_code)


def fork_training(config: TrainConfig, resume: bool = False) -> int:
    """Runs the command line's `main` in a fork, its output in the run's log.txt; returns the child's pid."""

    def main():
        sys.argv = command(config, resume)[2:]
        train.main()

    config.run.mkdir(parents=True, exist_ok=True)
    (config.run / "log.txt").touch()
    return fork(main, config.run / "log.txt")


def has_exited(pid: int) -> bool:
    """Whether a child has exited; does not reap it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for_exit(pid: int, timeout_s: float = 120) -> int:
    """Waits until a child exits; returns its exit code, negative for a signal's number."""
    deadline = time.monotonic() + timeout_s
    while not has_exited(pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert has_exited(pid), "the child does not exit"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_when(pid: int, condition) -> bool:
    """Kills a child as soon as `condition()` is true; False if it exited by itself before."""
    while not has_exited(pid) and not condition():
        time.sleep(0.0002)
    os.kill(pid, signal.SIGKILL)
    return wait_for_exit(pid) == -signal.SIGKILL


def reproducible_content(config) -> tuple[list[str], dict]:
    """What interruptions must not change: metrics without speeds, and the hashes of weights and training state."""
    lines = (config.run / "metrics.jsonl").read_text().splitlines()
    lines = [re.sub(r'"tokens_per_second": [\d.]+', "", line) for line in lines]
    hashes = json.loads((saving.latest_checkpoint(config.run) / "manifest.json").read_text())
    return lines, {name: hashes[name] for name in ("model.safetensors", "training_state.bin", "tokenizer.json")}
