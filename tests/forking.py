"""Shared by the campaigns: a small real run whose process is forked from one that has imported everything already."""

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
SETTINGS = dict(
    preset="tiny", max_seq_len=32, batch_size=4, warmup_steps=3, lr=5e-3, precision="fp32", eval_every=0, sample_every=0
)


def stories(folder: Path) -> str:
    """A file of short documents in `folder`."""
    file = folder / "stories.txt"
    file.write_text("\n<|endoftext|>\n".join(STORIES), "utf-8")
    return str(file)


def forked(function, log: Path | None = None) -> int:
    """Runs `function()` in a fork of this process, what it prints going to `log`; returns the child's pid."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        function()
        code = 0
    except SystemExit as end:
        print(end, flush=True)
    except BaseException as error:
        print(repr(error), flush=True)
    finally:
        os._exit(code)


def training(config: TrainConfig, resume: bool = False) -> int:
    """The command's own `main` in a fork, printing to the run's log.txt; returns the child's pid."""

    def main():
        sys.argv = command(config, resume)[2:]
        train.main()

    config.run.mkdir(parents=True, exist_ok=True)
    (config.run / "log.txt").touch()
    return forked(main, config.run / "log.txt")


def ended(pid: int) -> bool:
    """Whether a child has ended; it is not yet reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def exit_code(pid: int, limit: float = 120) -> int:
    """Waits until a child ends; returns its exit code, negative for a signal's number."""
    end = time.monotonic() + limit
    while not ended(pid) and time.monotonic() < end:
        time.sleep(0.001)
    assert ended(pid), "the child does not end"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(pid: int, moment) -> bool:
    """Kills a child as soon as `moment()` is true; False if it ended by itself before."""
    while not ended(pid) and not moment():
        time.sleep(0.0002)
    os.kill(pid, signal.SIGKILL)
    return exit_code(pid) == -signal.SIGKILL


def content(config) -> tuple[list[str], dict]:
    """What must not depend on interruptions: metrics less the timing, and the hashes of weights and training state."""
    lines = (config.run / "metrics.jsonl").read_text().splitlines()
    lines = [re.sub(r'"tokens_per_second": [\d.]+', "", line) for line in lines]
    last = saving.latest_checkpoint(config.run)
    hashes = json.loads((last / "manifest.json").read_text())
    return lines, {name: hashes[name] for name in ("model.safetensors", "training_state.bin", "tokenizer.json")}
