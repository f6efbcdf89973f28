"""Decoding in processes of its own, so that texts share neither Python's lock with one another nor with the page.

A page that streams keeps Python busy a part of the time, and a decode loop asks for Python at every tensor operation.
In one process each of them waits for the other.
"""

import contextlib
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from deepseek.engine import TokenTrace, stream
from deepseek.held import Held
from deepseek.intervene import Change, each_step
from deepseek.sampling import SamplingParams

MOST_HELD = 2  # models in each process
PATIENCE = 120  # seconds without a token after which a process is given up


class Workers:
    """Processes that each write one text at a time with `threads` threads; `places` of them are kept ready.

    Each begins by opening `checkpoint`.
    """

    def __init__(self, places: int, threads: int, checkpoint: str):
        self.places, self.begin = places, lambda: _Worker(threads, checkpoint)
        self.idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(places):
            self.idle.put(self.begin())

    def stream(
        self,
        checkpoint: str,
        prompt,
        params: SamplingParams,
        force: Mapping[int, int] | None = None,
        changes: Iterable[Change] = (),
    ) -> Iterator[TokenTrace]:
        """As `engine.stream` of the model at path `checkpoint`, under `changes`, in a process of its own.

        Closing the generator ends the work. Raises ValueError as `stream` does, and where the process itself fails.
        """
        try:
            worker = self.idle.get_nowait()
        except queue.Empty:  # who compares writes two texts, and must not wait for another who does
            worker = self.begin()
        try:
            yield from worker.stream(checkpoint, prompt, params, dict(force or {}), list(changes))
        finally:
            if self.idle.qsize() >= self.places:
                worker.end()
            else:
                self.idle.put(worker if worker.alive else self.begin())

    def close(self) -> None:
        """Ends the processes that are idle; one at work ends after its text. (All end with the process that made them.)"""
        while not self.idle.empty():
            self.idle.get().end()


class _Worker:
    """This side of one process."""

    def __init__(self, threads: int, checkpoint: str):
        here, there = socket.socketpair()
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deepseek.worker", str(there.fileno()), str(threads), checkpoint],
                pass_fds=[there.fileno()],
                cwd=os.getcwd(),
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
                start_new_session=True,  # a Ctrl-C in the terminal is the app's to handle
            )
        self.connection = Connection(here.detach())
        self.alive = True

    def stream(self, *job) -> Iterator[TokenTrace]:
        running = True
        try:
            self.connection.send(job)
            while True:
                answer = self._receive()
                running = isinstance(answer, TokenTrace)
                if isinstance(answer, Exception):
                    raise answer
                if not running:
                    return
                yield answer
        except (EOFError, OSError) as error:
            running = False
            self.end()
            raise ValueError("the model's process ended before its text; it may have been out of memory.") from error
        finally:
            if running:  # closed by its reader
                self._stop()

    def _receive(self):
        if not self.connection.poll(PATIENCE):
            raise EOFError
        return self.connection.recv()

    def _stop(self) -> None:
        """Tells the process to stop, and waits until it has."""
        try:
            self.connection.send(None)
            while isinstance(self._receive(), TokenTrace):
                pass
        except (EOFError, OSError):
            self.end()

    def end(self) -> None:
        """Ends the process."""
        self.alive = False
        self.connection.close()
        self.process.kill()
        self.process.wait()


def serve(connection: Connection, held: Held) -> None:
    """Writes one text after another: receives a job, sends its tokens, then None or the ValueError that it raised.

    Anything received meanwhile stops the text. Raises EOFError or ConnectionError when the other side is gone.
    """
    while True:
        job, answer = connection.recv(), None
        if job is None:  # told to stop a text that had just ended
            continue
        checkpoint, prompt, params, force, changes = job
        try:
            model, tokenizer = held.open(checkpoint)
            tokens = each_step(model, changes, stream(model, tokenizer, prompt, params, force))
            for token in tokens:
                connection.send(token)
                if connection.poll():
                    connection.recv()
                    tokens.close()
                    break
        except ValueError as error:
            answer = ValueError(str(error))  # of a kind that the other side knows
        connection.send(answer)


def main():
    descriptor, threads, checkpoint = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(threads)
    held = Held(MOST_HELD)
    with contextlib.suppress(ValueError):  # the first job will say why
        held.open(checkpoint)
    with contextlib.suppress(EOFError, ConnectionError):
        serve(Connection(descriptor), held)


if __name__ == "__main__":
    main()
