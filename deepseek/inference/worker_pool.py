"""Decoding in worker processes, so that requests wait neither for the page's Python nor for each other.

A page that streams keeps Python busy, and a decode loop needs Python at every tensor operation: in one process each would
wait for the other's lock. Each worker runs all its requests as one batch, so a step reads the weights once. The models are
this process's own: the workers share their memory (shared_model.py) and copy what their kernels lay out in another way.
"""

import contextlib
import gc
import itertools
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from weakref import WeakSet, finalize

import torch

from deepseek.checkpoints.shared_model import SharedModel, open_shared
from deepseek.checkpoints.validation import first_sentence
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.engine import Request, decode_step
from deepseek.inference.token_trace import TokenTrace

TOKEN_TIMEOUT_S = 120  # a worker that gives no token for this long is killed
MAX_ATTEMPTS = 3  # workers that may die under a text


class WorkerDied(ValueError):
    """A worker process has ended before the text did."""

    def __init__(self):
        super().__init__("the model's worker process died before the text was complete; it may have run out of memory.")


class WorkerPool:
    """`num_workers` processes of `num_threads` threads each, which warm up with a model; the least busy gets a request.

    They start one after the other, which leaves a core to the page that is built meanwhile.
    """

    def __init__(self, num_workers: int, num_threads: int, model: SharedModel | None):
        self._lock, self._request_ids, self.num_workers = threading.Lock(), itertools.count(), num_workers
        self._models: WeakSet[SharedModel] = WeakSet()  # that a worker has open
        self._closed = queue.SimpleQueue()  # keys of those that are gone here
        self.num_threads = num_threads
        if model:
            self._give_back_later(model)
        self.workers = [_Worker(num_threads, model)]
        threading.Thread(target=self._start_workers, args=[model], daemon=True).start()
        threading.Thread(target=self._close_models, daemon=True).start()

    def _start_workers(self, model: SharedModel | None) -> None:
        while len(self.workers) < self.num_workers:
            self.workers[-1].ready.wait()
            with self._lock:
                if len(self.workers) < self.num_workers:  # `close` sets it to 0
                    self.workers.append(_Worker(self.num_threads, model))

    def _give_back_later(self, model: SharedModel) -> None:
        """Has the workers close a model once it is gone here."""
        if model not in self._models:
            self._models.add(model)
            finalize(model, self._closed.put, model.key)

    def _close_models(self) -> None:
        """Has the workers give back what is gone here; a finalizer cannot, as it may run while a message is being sent."""
        while (key := self._closed.get()) is not None:
            for worker in self.workers:
                worker.close_model(key)

    @property
    def ready(self) -> bool:
        return self.workers[0].ready.is_set()

    @property
    def num_active_requests(self) -> int:
        return sum(len(worker.outputs) for worker in self.workers)

    def stream(
        self, model: SharedModel, prompt, params, forced_tokens=None, interventions=(), probe=()
    ) -> Iterator[TokenTrace]:
        """`engine.stream` in a worker.

        If the worker dies, a text that has begun goes on in another: one that has not may be the cause. Closing the
        generator stops the work. Raises ValueError as `engine.stream` does, WorkerDied, and for whatever else goes wrong.
        """
        ids, forced_tokens = [], dict(forced_tokens or {})
        for attempt in range(MAX_ATTEMPTS):
            tokens = dict(enumerate(ids)) | forced_tokens
            try:
                request = prompt, params, tokens, list(interventions), True, list(probe)
                with contextlib.closing(self._stream(model, request)) as outputs:
                    for index, token in enumerate(outputs):
                        if index == len(ids):
                            ids.append(token.id)
                            yield token
                return
            except WorkerDied:
                if not ids or attempt + 1 == MAX_ATTEMPTS:
                    raise

    def _stream(self, model: SharedModel, request: tuple) -> Iterator[TokenTrace]:
        request_id, outputs = next(self._request_ids), queue.SimpleQueue()
        with self._lock:
            self.workers = [worker if worker.alive else _Worker(self.num_threads, model) for worker in self.workers]
            worker = min(self.workers, key=lambda worker: len(worker.outputs))
            worker.outputs[request_id] = outputs
            self._give_back_later(model)
        worker.start_request(request_id, model, request)
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
            worker.send("stop", request_id)  # the generator may have been closed

    def close(self) -> None:
        """Ends the workers. (They also end with the process that started them.)"""
        with self._lock:
            self.num_workers = 0
        self._closed.put(None)
        for worker in self.workers:
            worker.kill()


class _Worker:
    """The pool's side of one process, which opens `model` first, if there is one.

    It is sent ("open", key, pickled model) and then its file, ("close", key), ("start", request id, key, request) and
    ("stop", request id).
    """

    def __init__(self, num_threads: int, model: SharedModel | None):
        self.connection, worker_end = Pipe()
        with worker_end:
            arguments = [str(worker_end.fileno()), str(num_threads)]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deepseek.inference.worker_pool", *arguments],
                pass_fds=[worker_end.fileno()],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                start_new_session=True,  # Ctrl-C in the terminal is for the app alone
            )
        self.alive, self.ready = True, threading.Event()
        self.outputs: dict[int, queue.SimpleQueue] = {}  # request id -> its tokens, or its error
        self._open: set[int] = set()  # keys of models
        self._send_lock = threading.Lock()
        threading.Thread(target=self._receive, daemon=True).start()
        if model:  # in a thread, as it takes until the process has imported torch and reads
            threading.Thread(target=self._open_model, args=[model], daemon=True).start()
        else:
            self.ready.set()

    def send(self, *message) -> None:
        with self._send_lock, contextlib.suppress(OSError):  # `_receive` reports a closed connection
            self.connection.send(message)

    def start_request(self, request_id: int, model: SharedModel, request: tuple) -> None:
        self._open_model(model)
        self.send("start", request_id, model.key, request)

    def _open_model(self, model: SharedModel) -> None:
        with self._send_lock, contextlib.suppress(OSError):
            if model.key not in self._open:
                self._open.add(model.key)
                self.connection.send(("open", model.key, model.pickled))
                with socket.socket(fileno=os.dup(self.connection.fileno())) as channel:
                    socket.send_fds(channel, [b"f"], [model.file.fileno()])

    def close_model(self, key: int) -> None:
        if key in self._open:
            self._open.discard(key)
            self.send("close", key)

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


def serve(connection: Connection) -> None:
    """The worker's loop over the messages of _Worker. Raises EOFError or OSError when the other side is gone.

    Sends lists of (request id, TokenTrace or the ValueError that ends the request), and an empty one for each model opened.
    Whatever goes wrong with a request ends that request alone.
    """
    models: dict[int, tuple | ValueError] = {}  # key -> (model, tokenizer, DecodeModel or None), or why it did not open
    requests: dict[int, tuple[Request, DecodeModel | None]] = {}
    while True:
        while not requests or connection.poll():
            kind, key, *rest = connection.recv()
            if kind == "open":
                with socket.socket(fileno=os.dup(connection.fileno())) as channel:
                    _, (descriptor,), *_ = socket.recv_fds(channel, 1, 1)
                models[key] = _open_model(descriptor, *rest)
                connection.send([])
            elif kind == "close":
                del models[key]
                gc.collect()  # a model's parts refer to each other
            elif kind == "stop":
                requests.pop(key, None)
            else:
                try:
                    requests[key] = _start_request(models, *rest)
                except BaseException as error:  # a tokenizer written in Rust raises more than Exceptions
                    connection.send([(key, _plain(error))])
        _decode_step(connection, requests)  # whose names do not outlast it: they would keep models in memory


def _decode_step(connection: Connection, requests: dict[int, tuple[Request, DecodeModel | None]]) -> None:
    """Decodes a token of every request, those of one model as a batch, sends them and removes what is complete."""
    for model in {request.model for request, _ in requests.values()}:
        batch = {key: request for key, (request, _) in requests.items() if request.model is model}
        _, decode_model = requests[next(iter(batch))]
        try:
            outputs = decode_step(list(batch.values()), decode_model)
        except Exception as error:
            outputs = [error] * len(batch)
        outputs = [output if isinstance(output, TokenTrace) else _plain(output) for output in outputs]
        connection.send(list(zip(batch, outputs)))
        for key, output in zip(batch, outputs):
            if isinstance(output, Exception) or output.finish_reason:
                del requests[key]


def _open_model(descriptor: int, pickled: bytes) -> tuple | ValueError:
    """(model, tokenizer, DecodeModel or None) of a shared model, or why it cannot be opened."""
    try:
        with open(descriptor, "rb") as file:
            model, tokenizer = open_shared(file, pickled)
        decode_model = DecodeModel(model) if supports(model) else None
        with contextlib.suppress(Exception):  # the first request will report it
            # Compiles the kernels or loads them from Numba's cache.
            decode_step([Request(model, tokenizer, "a")], decode_model)
        return model, tokenizer, decode_model
    except Exception as error:
        return _plain(error)


def _start_request(models: dict, key: int, request: tuple) -> tuple[Request, DecodeModel | None]:
    if isinstance(models[key], ValueError):
        raise models[key]
    model, tokenizer, decode_model = models[key]
    return Request(model, tokenizer, *request), decode_model


def _plain(error: BaseException) -> ValueError:
    """An error as a ValueError, which surely unpickles, with a sentence."""
    return ValueError(str(error) if isinstance(error, ValueError) else f"the model failed: {first_sentence(error)}")


def main():
    descriptor, num_threads = map(int, sys.argv[1:])
    torch.set_num_threads(num_threads)
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(descriptor))


if __name__ == "__main__":
    main()
