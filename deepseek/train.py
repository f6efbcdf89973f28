"""Training from the command line: `python -m deepseek.train --name NAME ...`; `--help` lists the settings.

One run per folder of runs trains at a time. SIGTERM and Ctrl-C end a run after its current step, with a checkpoint.
"""

import collections
import ctypes
import os
import signal
import sys

from transformers.utils import logging as transformers_logging

from deepseek.checkpoints.loading import CheckpointError
from deepseek.data.file_formats import DataError
from deepseek.training import job_process
from deepseek.training.config import TrainConfig, TrainingError, parse
from deepseek.training.metrics import SPEED_WINDOW_STEPS, TrainStep, duration, seconds_left
from deepseek.training.resource_check import check_resources
from deepseek.training.trainer import resume_point, train


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks for the next step: returning them costs a CPU run about a third of its speed."""
    if mallopt := getattr(ctypes.pythonapi, "mallopt", None):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def report(config: TrainConfig, step: TrainStep, speeds) -> None:
    """Prints what a step did; `speeds`, tokens per second of the last steps, give the time left."""
    left = duration(seconds_left(config.max_steps - step.step, step.tokens / step.step, speeds))
    losses = f"Loss: {step.loss:.4f}, Load Balancing Loss: {step.load_balancing_loss:.6f}"
    lines = [f"Step {step.step} - {losses} | lr {step.lr:.2e}, {step.tokens_per_second:.0f} tokens/s, {left} left"]
    if step.validation:
        nats, bits = step.validation["val_loss"], step.validation["val_bits_per_byte"]
        lines.append(f"  held out: {nats:.4f} nats per token, {bits:.4f} bits per byte")
    lines += [f"  Sample {number}: {sample['text']!r}" for number, sample in enumerate(step.samples or [], 1)]
    if step.checkpoint:
        lines.append(f"  saved {step.checkpoint}")
    print("\n".join(lines), flush=True)


def main():
    config, resume = parse()
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    is_main = os.environ.get("RANK", "0") == "0"  # of several processes one holds the lock and records the end
    if is_main:
        try:
            lock = job_process.lock(config.root, config.name)
            check_resources(config, resume_point(config, resume))
        except TrainingError as error:
            sys.exit(f"error: {error}")
        config.run.mkdir(exist_ok=True)
        job_process.record_start(config.run)

    signals, step, failure, state, reason = [], None, None, "finished", ""
    speeds = collections.deque(maxlen=SPEED_WINDOW_STEPS)

    def stop(signal_number, _):
        signals.append(signal_number)
        if step is None:
            raise KeyboardInterrupt  # before the first step there is nothing to save

    try:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # blocked by runs.start until now
        for step in train(config, resume, stopped=lambda: bool(signals)):
            if is_main:
                speeds.append(step.tokens_per_second)
                report(config, step, speeds)
        if signals and step.step < config.max_steps:
            state = "stopped"
    except KeyboardInterrupt:
        state = "stopped"
    except Exception as error:
        failure, state, reason = error, "failed", job_process.explain_error(error)
    if is_main:
        os.close(lock)  # before the end is recorded, so that a process that reads it can start the next run
        job_process.record_end(config.run, state, reason)
    if isinstance(failure, (TrainingError, DataError, CheckpointError)):
        sys.exit(f"error: {reason}")
    if failure:
        raise failure


if __name__ == "__main__":
    main()
