"""Decoding in processes of its own, so that texts share neither Python's lock with the page nor one another's turn.

A page that streams keeps Python busy a part of the time, and a decode loop asks for Python at every tensor operation: in
one process each would wait for the other. Here each process writes all the texts it was given at once, a token of each
at every step, and reads the weights once for all of them.
"""

import contextlib
import itertools
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from deepseek.checkpoints.model_cache import ModelCache
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.engine import Request, TokenTrace, decode_step
from deepseek.inference.sampling import SamplingParams
from deepseek.interpret.interventions import Intervention

MAX_MODELS = 2  # models in each process
TOKEN_TIMEOUT_S = 120  # seconds without a token after which a process is given up
WORKER_DIED = "the model's process ended before its text; it may have been out of memory."


class WorkerPool:
    """`places` processes of `threads` threads each, which begin by opening `checkpoint`; a text goes to the least busy.

    They start one after the other, so that a core is free for the page that is built meanwhile.
    """

    def __init__(self, places: int, threads: int, checkpoint: str):
        self.begin = lambda: _Worker(threads, checkpoint)
        self.guard, self.places = threading.Lock(), places
        self.ready = [self.begin()]
        threading.Thread(target=self._begin_others, daemon=True).start()

    def _begin_others(self) -> None:
        while len(self.ready) < self.places:
            self.ready[-1].opened.wait()
            with self.guard:
                if len(self.ready) < self.places:  # not if it was closed meanwhile
                    self.ready.append(self.begin())

    def stream(
        self,
        checkpoint: str,
        prompt,
        params: SamplingParams,
        force: Mapping[int, int] | None = None,
        changes: Iterable[Intervention] = (),
    ) -> Iterator[TokenTrace]:
        """As `engine.stream` of the model at path `checkpoint`, in a process of its own.

        Closing the generator ends the work. Raises ValueError as `stream` does, and where the process itself fails.
        """
        with self.guard:
            self.ready = [worker if worker.alive else self.begin() for worker in self.ready]
            worker = min(self.ready, key=lambda worker: len(worker.answers))
            number = worker.take(checkpoint, prompt, params, dict(force or {}), list(changes))
        yield from worker.read(number)

    def close(self) -> None:
        """Ends the processes. (They also end with the one that made them.)"""
        with self.guard:
            self.places = 0
        for worker in self.ready:
            worker.end()


class _Worker:
    """This side of one process."""

    def __init__(self, threads: int, checkpoint: str):
        here, there = socket.socketpair()
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deepseek.inference.worker_pool", str(there.fileno()), str(threads), checkpoint],
                pass_fds=[there.fileno()],
                cwd=os.getcwd(),
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                start_new_session=True,  # a Ctrl-C in the terminal is the app's to handle
            )
        self.connection, self.alive, self.opened = Connection(here.detach()), True, threading.Event()
        self.numbers, self.answers = itertools.count(), {}  # number of a text -> queue of what comes of it
        self.sending = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def take(self, *job) -> int:
        """Hands a text over; returns its number."""
        number = next(self.numbers)
        self.answers[number] = queue.SimpleQueue()
        self._send(number, job)
        return number

    def read(self, number: int) -> Iterator[TokenTrace]:
        """The tokens of a text as they come."""
        answers, finished = self.answers[number], False
        try:
            while not finished:
                try:
                    answer = answers.get(timeout=TOKEN_TIMEOUT_S)
                except queue.Empty:
                    self.end()
                    answer = ValueError(WORKER_DIED)
                finished = isinstance(answer, Exception) or bool(answer.finish_reason)
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            self.answers.pop(number, None)
            if not finished:  # closed by its reader
                self._send(number, None)

    def _send(self, number: int, job) -> None:
        with self.sending, contextlib.suppress(OSError):  # the listener sees a closed connection too, and tells
            self.connection.send((number, job))

    def _listen(self) -> None:
        """Hands every answer to the reader it is for, until the process is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                answers = self.connection.recv()
                self.opened.set()
                for number, answer in answers:
                    if found := self.answers.get(number):
                        found.put(answer)
        self.alive = False
        self.opened.set()
        for found in list(self.answers.values()):
            found.put(ValueError(WORKER_DIED))

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def serve(connection: Connection, held: ModelCache) -> None:
    """Writes all the texts it is given at once: receives (number, job) or, to stop that text, (number, None).

    Sends lists of (number, TokenTrace, or the ValueError that ends the text), an empty one when it begins. Raises EOFError
    or ConnectionError when the other side is gone.
    """
    connection.send([])
    texts: dict[int, Request] = {}
    decoders: WeakKeyDictionary[torch.nn.Module, DecodeModel | None] = (
        WeakKeyDictionary()
    )  # None where it does not suit
    while True:
        while not texts or connection.poll():
            number, job = connection.recv()
            texts.pop(number, None)
            if job:
                checkpoint, *rest = job
                try:
                    model, tokenizer = held.open(checkpoint)
                    if model not in decoders:
                        decoders[model] = DecodeModel(model) if supports(model) else None
                    texts[number] = Request(model, tokenizer, *rest)
                except ValueError as error:
                    connection.send([(number, ValueError(str(error)))])  # of a kind that the other side knows
        for model in {text.model for text in texts.values()}:
            numbers = [number for number, text in texts.items() if text.model is model]
            try:
                answers = decode_step([texts[number] for number in numbers], decoders[model])
            except ValueError as error:
                answers = [ValueError(str(error))] * len(numbers)
            connection.send(list(zip(numbers, answers)))
            for number, answer in zip(numbers, answers):
                if isinstance(answer, Exception) or answer.finish_reason:
                    del texts[number]


def main():
    descriptor, threads, checkpoint = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(threads)
    held = ModelCache(MAX_MODELS)
    with contextlib.suppress(ValueError):  # the first job will say why
        model, tokenizer = held.open(checkpoint)
        decode_step(
            [Request(model, tokenizer, "a")], DecodeModel(model) if supports(model) else None
        )  # compiles the loops, or fetches them
    with contextlib.suppress(EOFError, ConnectionError):
        serve(Connection(descriptor), held)


if __name__ == "__main__":
    main()
