"""Decoding in worker processes: the same tokens, stopped, refused, and a dead worker replaced."""

import contextlib
import copy
import gc
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import wait_until

from deepseek import SamplingParams, load, stream
from deepseek.checkpoints.shared_model import SharedModel
from deepseek.inference import worker_pool
from deepseek.inference.worker_pool import WorkerPool, serve
from deepseek.interpret.interventions import Intervention

PARAMS = SamplingParams(temperature=0.9, top_k=40, seed=5, max_new_tokens=20)


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(checkpoint)


@pytest.fixture(scope="module")
def shared(loaded):
    return SharedModel(*loaded)


@pytest.fixture(scope="module")
def pool(shared):
    pool = WorkerPool(2, 1, shared)
    yield pool
    pool.close()


def ids(tokens):
    return [token.id for token in tokens]


def test_traces_are_those_of_this_process(pool, shared, loaded):
    traces, expected = list(pool.stream(shared, "Once", PARAMS)), list(stream(*loaded, "Once", PARAMS))
    assert len(traces) == 20
    for trace, expected_trace in zip(traces, expected):
        trace.milliseconds = expected_trace.milliseconds
    assert traces == expected and pool.ready


def test_forced_tokens_and_interventions_reach_the_worker(pool, shared, loaded):
    options = ("Once", PARAMS, {3: 7}, [Intervention(1, "off")])
    expected = list(stream(*loaded, *options))
    assert ids(pool.stream(shared, *options)) == ids(expected) != ids(stream(*loaded, "Once", PARAMS, {3: 7}))
    assert all(expert != 1 for token in expected for pairs in token.experts.values() for expert, _ in pairs)


def test_a_closed_stream_stops_and_its_worker_takes_the_next(pool, shared, loaded):
    expected = ids(stream(*loaded, "Once", PARAMS))
    for num_tokens in (1, 3, 19, 20):
        tokens = pool.stream(shared, "Once", PARAMS)
        assert ids(islice(tokens, num_tokens)) == expected[:num_tokens]
        tokens.close()
        assert ids(pool.stream(shared, "Once", PARAMS)) == expected
    assert pool.num_active_requests == 0


def test_an_error_reaches_the_caller_and_the_worker_continues(pool, shared):
    for _ in range(3):
        with pytest.raises(ValueError, match="prompt is empty"):
            list(pool.stream(shared, " ", PARAMS))
    assert len(list(pool.stream(shared, "Once", PARAMS))) == 20


def test_more_requests_than_workers_run_at_once(pool, shared, loaded):
    prompts = ["Once", "fox", "the hill", "dogs"]
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda prompt: ids(pool.stream(shared, prompt, PARAMS)), prompts))
    assert outputs == [ids(stream(*loaded, prompt, PARAMS)) for prompt in prompts]
    assert pool.num_active_requests == 0


def serve_until_closed(connection):
    with contextlib.suppress(EOFError, OSError):
        serve(connection)


def worker_of_a_request(pool):
    (worker,) = [worker for worker in pool.workers if worker.outputs]
    return worker


def test_a_text_goes_on_when_its_worker_is_killed(pool, shared, loaded):
    params = replace(PARAMS, max_new_tokens=40)
    tokens = pool.stream(shared, "Once", params, {30: 7})
    first = [next(tokens).id]
    assert pool.num_active_requests == 1
    os.kill(worker_of_a_request(pool).process.pid, signal.SIGKILL)
    assert first + ids(tokens) == ids(stream(*loaded, "Once", params, {30: 7}))


def test_what_goes_wrong_with_one_users_model_ends_that_request_alone(shared, loaded, mixtral):
    mixed = copy.deepcopy(mixtral)
    mixed.model.layers[1].self_attn.o_proj.double()  # a product of two dtypes is a RuntimeError
    here, there = Pipe()
    threading.Thread(target=serve_until_closed, args=(there,)).start()
    with here:
        models = [shared, SharedModel(mixed, loaded[1]), SimpleNamespace(file=shared.file, pickled=b"damaged")]
        for key, model in enumerate(models):
            here.send(("open", key, model.pickled))
            with socket.socket(fileno=os.dup(here.fileno())) as channel:
                socket.send_fds(channel, [b"f"], [model.file.fileno()])
            assert here.recv() == []
        for request_id, key in enumerate([0, 1, 0, 2]):
            here.send(("start", request_id, key, ("Once", PARAMS, {}, [])))
        outputs = {0: [], 1: [], 2: [], 3: []}
        while len(outputs[2]) < PARAMS.max_new_tokens:
            for request_id, output in here.recv():
                outputs[request_id].append(output)
    assert ids(outputs[0]) == ids(outputs[2]) == ids(stream(*loaded, "Once", PARAMS))
    for failed in (1, 3):
        assert str(outputs[failed][0]).startswith("the model failed: ") and len(outputs[failed]) == 1


@pytest.mark.parametrize("is_first", [False, True], ids=["", "with which a new worker began"])
def test_a_model_that_is_gone_here_is_given_back_by_the_workers(pool, loaded, is_first):
    model = SharedModel(copy.deepcopy(loaded[0]), loaded[1])
    key, inode = model.key, str(os.fstat(model.file.fileno()).st_ino)
    if is_first:
        pool.workers[0].kill()
        wait_until(lambda: not pool.workers[0].alive)
    assert len(list(pool.stream(model, "Once", PARAMS))) == 20
    (worker,) = [worker for worker in pool.workers if key in worker._open]
    maps = Path(f"/proc/{worker.process.pid}/maps")
    assert inode in maps.read_text().split()
    del model
    gc.collect()
    wait_until(lambda: inode not in maps.read_text().split())
    assert not any(key in worker._open for worker in pool.workers)


def test_streams_that_are_closed_early_leave_no_request(pool, shared):
    streams = [pool.stream(shared, "Once", PARAMS) for _ in range(4)]
    for tokens in streams:
        next(tokens)
        tokens.close()
    assert pool.num_active_requests == 0


def test_a_worker_ends_with_the_process_that_started_it_and_its_end_is_reported(pool, shared, monkeypatch):
    monkeypatch.setattr(worker_pool, "MAX_ATTEMPTS", 1)
    next(tokens := pool.stream(shared, "Once", replace(PARAMS, max_new_tokens=200)))
    (worker,) = [worker for worker in pool.workers if worker.outputs]
    with socket.socket(fileno=os.dup(worker.connection.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)  # as the end of this process would
    worker.process.wait(30)
    with pytest.raises(ValueError, match="worker process died before the text was complete"):
        list(tokens)
