"""TODO"""

import collections
import ctypes
import os
import signal
import sys

from transformers.utils import logging as transformers_logging

from deepseek.checkpoints import loading
from deepseek.data import readers
from deepseek.training import job_process, resource_check
from deepseek.training.config import TrainConfig, TrainingError, parse
from deepseek.training.metrics import SPEED_WINDOW_STEPS, duration, seconds_left
from deepseek.training.trainer import TrainStep, resume_point, train


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks for the next step; giving them back costs a CPU run about a third of its speed."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def report(config: TrainConfig, step: TrainStep, speeds) -> None:
    """Prints what a step did; `speeds` are the tokens a second of the last steps, which tell the time left."""
    left = duration(seconds_left(config.max_steps - step.step, step.tokens / step.step, speeds))
    print(
        f"Step {step.step} - Loss: {step.loss:.4f}, Load Balancing Loss: {step.load_balancing_loss:.6f}"
        f" | lr {step.lr:.2e}, {step.tokens_per_second:.0f} tokens/s, {left} left",
        flush=True,
    )
    if step.validation:
        print(f"  held out: {step.validation['val_loss']:.4f} nats a token, "
              f"{step.validation['val_bits_per_byte']:.4f} bits a byte", flush=True)  # fmt: skip
    for number, text in enumerate(step.samples or [], 1):
        print(f"  Sample {number}: {text['text']!r}", flush=True)
    if step.checkpoint:
        print(f"  committed {step.checkpoint}", flush=True)


class Stopped(BaseException):
    """A signal to stop came before the first step, when there is nothing to commit."""


def main():
    config, resume = parse()
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    first = os.environ.get("RANK", "0") == "0"  # of several processes one holds the lock and writes down the end
    if first:
        try:
            lock = job_process.lock(config.root, config.name)
            resource_check.check_resources(config, resume_point(config, resume))
        except (job_process.RunInProgress, TrainingError) as error:
            sys.exit(f"error: {error}")
        config.run.mkdir(exist_ok=True)
        job_process.record_start(config.run)

    signals, step, failure, state, reason = [], None, None, "finished", ""
    speeds = collections.deque(maxlen=SPEED_WINDOW_STEPS)

    def stop(number, _):
        signals.append(number)
        if step is None:
            raise Stopped

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # held back by runs.start until now
        for step in train(config, resume, stopped=lambda: bool(signals)):
            if first:
                speeds.append(step.tokens_per_second)
                report(config, step, speeds)
        if signals and step.step < config.max_steps:
            state = "stopped"
    except Stopped:
        state = "stopped"
    except Exception as error:
        failure, state, reason = error, "failed", job_process.explain_error(error)
    if first:
        os.close(lock)  # before the end can be seen, so that whoever sees it can start the next
        job_process.record_end(config.run, state, reason)
    if isinstance(failure, (TrainingError, readers.DataError, loading.CheckpointError)):
        sys.exit(f"error: {reason}")
    if failure:
        raise failure


if __name__ == "__main__":
    main()
