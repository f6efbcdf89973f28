"""Decoding in worker processes, so that requests wait neither for the page's Python nor for each other.

A page that streams keeps Python busy, and a decode loop needs Python at every tensor operation: in one process each would
wait for the other's lock. Each worker runs all its requests as one batch, so a step reads the weights once.
"""

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from deepseek.checkpoints.model_cache import ModelCache
from deepseek.checkpoints.validation import first_sentence
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.engine import Request, decode_step
from deepseek.inference.token_trace import TokenTrace

MAX_MODELS = 2  # models that each worker keeps open
TOKEN_TIMEOUT_S = 120  # a worker that gives no token for this long is killed
MAX_ATTEMPTS = 3  # workers that may die under a text


class WorkerDied(ValueError):
    """A worker process has ended before the text did."""

    def __init__(self):
        super().__init__("the model's worker process died before the text was complete; it may have run out of memory.")


class WorkerPool:
    """`num_workers` processes of `num_threads` threads each, which open `checkpoint` first; the least busy gets a request.

    They start one after the other, which leaves a core to the page that is built meanwhile.
    """

    def __init__(self, num_workers: int, num_threads: int, checkpoint: str):
        self._start_worker = lambda: _Worker(num_threads, checkpoint)
        self._lock, self._request_ids, self.num_workers = threading.Lock(), itertools.count(), num_workers
        self.workers = [self._start_worker()]
        threading.Thread(target=self._start_workers, daemon=True).start()

    def _start_workers(self) -> None:
        while len(self.workers) < self.num_workers:
            self.workers[-1].ready.wait()
            with self._lock:
                if len(self.workers) < self.num_workers:  # `close` sets it to 0
                    self.workers.append(self._start_worker())

    @property
    def ready(self) -> bool:
        return self.workers[0].ready.is_set()

    @property
    def num_active_requests(self) -> int:
        return sum(len(worker.outputs) for worker in self.workers)

    def stream(
        self, checkpoint: str, prompt, params, forced_tokens=None, interventions=(), probe=()
    ) -> Iterator[TokenTrace]:
        """`engine.stream` with the model at path `checkpoint`, in a worker.

        If the worker dies, a text that has begun goes on in another: one that has not may be the cause. Closing the
        generator stops the work. Raises ValueError as `engine.stream` does, WorkerDied, and for whatever else goes wrong.
        """
        ids, forced_tokens = [], dict(forced_tokens or {})
        for attempt in range(MAX_ATTEMPTS):
            tokens = dict(enumerate(ids)) | forced_tokens
            try:
                request = checkpoint, prompt, params, tokens, list(interventions), True, list(probe)
                with contextlib.closing(self._stream(*request)) as outputs:
                    for index, token in enumerate(outputs):
                        if index == len(ids):
                            ids.append(token.id)
                            yield token
                return
            except WorkerDied:
                if not ids or attempt + 1 == MAX_ATTEMPTS:
                    raise

    def _stream(self, *request) -> Iterator[TokenTrace]:
        request_id, outputs = next(self._request_ids), queue.SimpleQueue()
        with self._lock:
            self.workers = [worker if worker.alive else self._start_worker() for worker in self.workers]
            worker = min(self.workers, key=lambda worker: len(worker.outputs))
            worker.outputs[request_id] = outputs
        worker.send(request_id, request)
        try:
            while True:
                try:
                    output = outputs.get(timeout=TOKEN_TIMEOUT_S)
                except queue.Empty:
                    worker.kill()
                    output = WorkerDied()
                if isinstance(output, Exception):
                    raise output
                yield output
                if output.finish_reason:
                    return
        finally:
            worker.outputs.pop(request_id, None)
            worker.send(request_id, None)  # the generator may have been closed

    def close(self) -> None:
        """Ends the workers. (They also end with the process that started them.)"""
        with self._lock:
            self.num_workers = 0
        for worker in self.workers:
            worker.kill()


class _Worker:
    """The pool's side of one process."""

    def __init__(self, num_threads: int, checkpoint: str):
        self.connection, worker_end = Pipe()
        with worker_end:
            arguments = [str(worker_end.fileno()), str(num_threads), checkpoint]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deepseek.inference.worker_pool", *arguments],
                pass_fds=[worker_end.fileno()],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                start_new_session=True,  # Ctrl-C in the terminal is for the app alone
            )
        self.alive, self.ready = True, threading.Event()
        self.outputs: dict[int, queue.SimpleQueue] = {}  # request id -> its tokens, or its error
        self._send_lock = threading.Lock()
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, request_id: int, request: tuple | None) -> None:
        """Sends a request, or None to stop it."""
        with self._send_lock, contextlib.suppress(OSError):  # `_receive` reports a closed connection
            self.connection.send((request_id, request))

    def _receive(self) -> None:
        """Puts every output in the queue of its request until the process is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                outputs = self.connection.recv()
                self.ready.set()
                for request_id, output in outputs:
                    if waiting := self.outputs.get(request_id):
                        waiting.put(output)
        self.alive = False
        self.ready.set()
        for outputs in list(self.outputs.values()):
            outputs.put(WorkerDied())

    def kill(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def serve(connection: Connection, models: ModelCache) -> None:
    """The worker's loop. Receives (request id, arguments), or (request id, None) to stop that request.

    Sends lists of (request id, TokenTrace or the ValueError that ends the request), an empty one at first. Whatever goes
    wrong with a request ends that request alone. Raises EOFError or ConnectionError when the other side is gone.
    """
    connection.send([])
    requests: dict[int, Request] = {}
    decode_models: WeakKeyDictionary[torch.nn.Module, DecodeModel | None] = WeakKeyDictionary()  # None: not supported
    while True:
        while not requests or connection.poll():
            request_id, arguments = connection.recv()
            requests.pop(request_id, None)
            if arguments:
                checkpoint, *rest = arguments
                try:
                    model, tokenizer = models.get(checkpoint)
                    if model not in decode_models:
                        decode_models[model] = DecodeModel(model) if supports(model) else None
                    requests[request_id] = Request(model, tokenizer, *rest)
                except BaseException as error:  # a tokenizer written in Rust raises more than Exceptions
                    connection.send([(request_id, _plain(error))])
        for model in {request.model for request in requests.values()}:
            batch = {request_id: request for request_id, request in requests.items() if request.model is model}
            try:
                outputs = decode_step(list(batch.values()), decode_models[model])
            except Exception as error:
                outputs = [error] * len(batch)
            outputs = [output if isinstance(output, TokenTrace) else _plain(output) for output in outputs]
            connection.send(list(zip(batch, outputs)))
            for request_id, output in zip(batch, outputs):
                if isinstance(output, Exception) or output.finish_reason:
                    del requests[request_id]


def _plain(error: BaseException) -> ValueError:
    """An error as a ValueError, which surely unpickles, with a sentence."""
    return ValueError(str(error) if isinstance(error, ValueError) else f"the model failed: {first_sentence(error)}")


def main():
    descriptor, num_threads, checkpoint = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(num_threads)
    models = ModelCache(MAX_MODELS)
    with contextlib.suppress(Exception):  # the first request will report it
        model, tokenizer = models.get(checkpoint)
        # Compiles the kernels or loads them from Numba's cache.
        decode_step([Request(model, tokenizer, "a")], DecodeModel(model) if supports(model) else None)
    with contextlib.suppress(EOFError, ConnectionError):
        serve(Connection(descriptor), models)


if __name__ == "__main__":
    main()
