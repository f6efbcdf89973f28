"""Training from the command line: `python -m deepseek.train --name NAME ...`; `--help` lists the settings.

One run per folder of runs trains at a time. SIGTERM, Ctrl-C and a closed terminal end a run after its current step, with a
checkpoint, and at once before its first step.
"""

import collections
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from deepseek.training import job_process
from deepseek.training.config import TrainConfig, TrainingError, parse
from deepseek.training.metrics import SPEED_WINDOW_STEPS, TrainStep, duration, seconds_left


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks for the next step: returning them costs a CPU run about a third of its speed."""
    if mallopt := getattr(ctypes.pythonapi, "mallopt", None):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def report(config: TrainConfig, step: TrainStep, speeds, alarms: Iterable[str] = (), best: Path | None = None) -> None:
    """Prints what a step did; `speeds`, tokens per second of the last steps, give the time left.

    `alarms` are the sentences of those that are new, `best` is the run's best checkpoint by validation loss.
    """
    left = duration(seconds_left(config.max_steps - step.step, step.tokens / step.step, speeds))
    losses = f"Loss: {step.loss:.4f}, Load Balancing Loss: {step.load_balancing_loss:.6f}"
    lines = [f"Step {step.step} - {losses} | lr {step.lr:.2e}, {step.tokens_per_second:.0f} tokens/s, {left} left"]
    if step.validation:
        nats, bits = step.validation["val_loss"], step.validation["val_bits_per_byte"]
        lines.append(f"  held out: {nats:.4f} nats per token, {bits:.4f} bits per byte")
    lines += [f"  Sample {number}: {sample['text']!r}" for number, sample in enumerate(step.samples or [], 1)]
    lines += [f"  Alarm: {alarm}" for alarm in alarms]
    if step.checkpoint:
        lines.append(f"  saved {step.checkpoint}")
    if best:
        lines.append(f"  best by validation loss: {best.name}")
    print("\n".join(lines), flush=True)


@contextlib.contextmanager
def stop_signals(run: Path, is_main: bool):
    """Yields (the signals received that ask for a stop, an event to set once there is a step to save).

    Until then a signal ends the process at once, recorded as a stop if it `is_main`. Python would only hear it after an import,
    or after a tokenizer has learned from gigabytes: a thread is woken through a pipe.
    """
    signals, has_steps = [], threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait():
        if os.read(reader, 1) and not has_steps.is_set():
            if is_main and (run / job_process.PROCESS_FILE).exists():
                job_process.record_end(run, "stopped")
            os._exit(0)
        os.close(reader)

    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores a closed terminal
            signal.signal(number, lambda number, _: signals.append(number))
    threading.Thread(target=wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # blocked by runs.start until now
    try:
        yield signals, has_steps
    finally:
        signal.set_wakeup_fd(-1)
        os.close(writer)


def main():
    config, resume = parse()
    is_main = os.environ.get("RANK", "0") == "0"  # of several processes one holds the lock and records the end
    try:
        lock = job_process.lock(config.root, config.name) if is_main else None
        with stop_signals(config.run, is_main) as (signals, has_steps):
            run(config, resume, lock, signals, has_steps)
    except TrainingError as error:
        sys.exit(f"error: {error}")


def run(config: TrainConfig, resume: bool, lock: int | None, signals: list[int], has_steps: threading.Event) -> None:
    """Trains, prints and records how it ended; `lock` is None on all but the main process.

    Raises TrainingError with the sentence of whatever a user can mend, else the error itself.
    """
    # Seconds of imports, in which a stop is heard.
    from transformers.utils import logging as transformers_logging

    from deepseek.checkpoints import saving
    from deepseek.checkpoints.loading import CheckpointError
    from deepseek.data.file_formats import DataError
    from deepseek.training.resource_check import check_resources, resume_point
    from deepseek.training.router_alarms import AlarmWatch, alarm_sentences
    from deepseek.training.trainer import train

    keep_freed_memory()
    logging.basicConfig(format="Note: %(message)s", stream=sys.stdout)
    transformers_logging.disable_progress_bar()
    if lock is not None:
        logging.getLogger("deepseek").setLevel(logging.INFO)  # notes on the data
        check_resources(config, resume_point(config, resume))
        config.run.mkdir(exist_ok=True)
        job_process.record_start(config.run)
        for note in config.notes():
            print(f"Note: {note}", flush=True)

    failure, state, reason, last_step = None, "finished", "", config.max_steps
    speeds, watch = collections.deque(maxlen=SPEED_WINDOW_STEPS), AlarmWatch(config.run)
    try:
        for step in train(config, resume, stopped=lambda: bool(signals)):
            has_steps.set()
            last_step = step.step
            if lock is not None:
                speeds.append(step.tokens_per_second)
                best = saving.best_of(saving.list_checkpoints(config.run)) if step.checkpoint else None
                alarms = alarm_sentences(watch.new_alarms())
                with contextlib.suppress(OSError):  # the terminal, or who reads the output, is gone; the run is not
                    report(config, step, speeds, alarms, best)
        if last_step < config.max_steps:
            state = "stopped"
        elif lock is not None and not has_steps.is_set():
            print(f"The run has taken its {last_step} steps; a larger --max-steps extends it.", flush=True)
    except Exception as error:
        failure, state, reason = error, "failed", job_process.explain_error(error)
    if lock is not None:
        os.close(lock)  # before the end is recorded, so that a process that reads it can start the next run
        job_process.record_end(config.run, state, reason)
    mendable = isinstance(failure, (TrainingError, DataError, CheckpointError, OSError))
    if failure and (mendable or job_process.full_resource(failure)):
        raise TrainingError(reason) from failure
    if failure:
        raise failure


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # no terminal that cannot print a sample ends a run
    main()
