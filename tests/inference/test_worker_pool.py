"""Decoding in worker processes: the same tokens, stopped, refused, and a dead worker replaced."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from deepseek import SamplingParams, load, stream
from deepseek.inference.worker_pool import WorkerPool
from deepseek.interpret.interventions import Intervention

PARAMS = SamplingParams(temperature=0.9, top_k=40, seed=5, max_new_tokens=20)


@pytest.fixture(scope="module")
def pool(checkpoint):
    pool = WorkerPool(2, 1, checkpoint)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(checkpoint)


def ids(tokens):
    return [token.id for token in tokens]


def test_traces_are_those_of_this_process(pool, checkpoint, loaded):
    traces, expected = list(pool.stream(checkpoint, "Once", PARAMS)), list(stream(*loaded, "Once", PARAMS))
    assert len(traces) == 20
    for trace, expected_trace in zip(traces, expected):
        trace.milliseconds = expected_trace.milliseconds
    assert traces == expected and pool.ready


def test_forced_tokens_and_interventions_reach_the_worker(pool, checkpoint, loaded):
    options = ("Once", PARAMS, {3: 7}, [Intervention(1, "off")])
    expected = list(stream(*loaded, *options))
    assert ids(pool.stream(checkpoint, *options)) == ids(expected) != ids(stream(*loaded, "Once", PARAMS, {3: 7}))
    assert all(expert != 1 for token in expected for pairs in token.experts.values() for expert, _ in pairs)


def test_a_closed_stream_stops_and_its_worker_takes_the_next(pool, checkpoint, loaded):
    expected = ids(stream(*loaded, "Once", PARAMS))
    for num_tokens in (1, 3, 19, 20):
        tokens = pool.stream(checkpoint, "Once", PARAMS)
        assert ids(islice(tokens, num_tokens)) == expected[:num_tokens]
        tokens.close()
        assert ids(pool.stream(checkpoint, "Once", PARAMS)) == expected
    assert pool.num_active_requests == 0


def test_an_error_reaches_the_caller_and_the_worker_continues(pool, checkpoint):
    for _ in range(3):
        with pytest.raises(ValueError, match="prompt is empty"):
            list(pool.stream(checkpoint, " ", PARAMS))
        with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
            list(pool.stream("nowhere", "Once", PARAMS))
    assert len(list(pool.stream(checkpoint, "Once", PARAMS))) == 20


def test_more_requests_than_workers_run_at_once(pool, checkpoint, loaded):
    prompts = ["Once", "fox", "the hill", "dogs"]
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda prompt: ids(pool.stream(checkpoint, prompt, PARAMS)), prompts))
    assert outputs == [ids(stream(*loaded, prompt, PARAMS)) for prompt in prompts]
    assert pool.num_active_requests == 0


def test_a_killed_worker_is_reported_and_replaced(pool, checkpoint):
    tokens = pool.stream(checkpoint, "Once", PARAMS)
    next(tokens)
    assert pool.num_active_requests == 1
    (victim,) = [worker for worker in pool.workers if worker.outputs]
    os.kill(victim.process.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match="worker process died before the text was complete"):
        list(tokens)
    assert len(list(pool.stream(checkpoint, "Once", PARAMS))) == 20


def test_streams_that_are_closed_early_leave_no_request(pool, checkpoint):
    streams = [pool.stream(checkpoint, "Once", PARAMS) for _ in range(4)]
    for tokens in streams:
        next(tokens)
        tokens.close()
    assert pool.num_active_requests == 0


def test_a_worker_ends_with_the_process_that_started_it(pool, checkpoint):
    next(tokens := pool.stream(checkpoint, "Once", PARAMS))
    (worker,) = [worker for worker in pool.workers if worker.outputs]
    with socket.socket(fileno=os.dup(worker.connection.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)  # as the end of this process would
    worker.process.wait(30)
    tokens.close()
