"""Decoding in processes of its own: the same tokens, stopped, refused and replaced as one would wish."""

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
def workers(checkpoint):
    workers = WorkerPool(2, 1, checkpoint)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def here(checkpoint):
    return load(checkpoint)


def ids(tokens):
    return [token.id for token in tokens]


def test_the_tokens_are_those_of_this_process(workers, checkpoint, here):
    there, expected = list(workers.stream(checkpoint, "Once", PARAMS)), list(stream(*here, "Once", PARAMS))
    assert len(there) == 20
    for one, other in zip(there, expected):
        one.milliseconds = other.milliseconds
    assert there == expected


def test_forced_tokens_and_changes_of_experts_go_along(workers, checkpoint, here):
    there = workers.stream(checkpoint, "Once", PARAMS, {3: 7}, [Intervention(1, "off")])
    expected = list(stream(*here, "Once", PARAMS, {3: 7}, [Intervention(1, "off")]))
    assert ids(there) == ids(expected) != ids(stream(*here, "Once", PARAMS, {3: 7}))
    assert all(expert != 1 for token in expected for chosen in token.experts.values() for expert, _ in chosen)


def test_a_closed_text_stops_and_its_process_writes_the_next(workers, checkpoint, here):
    expected = ids(stream(*here, "Once", PARAMS))
    for taken in (1, 3, 19, 20):
        tokens = workers.stream(checkpoint, "Once", PARAMS)
        assert ids(islice(tokens, taken)) == expected[:taken]
        tokens.close()
        assert ids(workers.stream(checkpoint, "Once", PARAMS)) == expected
    assert not any(worker.answers for worker in workers.ready)


def test_a_refusal_comes_through_and_the_process_goes_on(workers, checkpoint):
    for _ in range(3):
        with pytest.raises(ValueError, match="prompt is empty"):
            list(workers.stream(checkpoint, " ", PARAMS))
        with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
            list(workers.stream("nowhere", "Once", PARAMS))
    assert len(list(workers.stream(checkpoint, "Once", PARAMS))) == 20


def test_more_texts_than_places_are_written_at_once(workers, checkpoint, here):
    prompts = ["Once", "fox", "the hill", "dogs"]
    with ThreadPoolExecutor(4) as pool:
        there = list(pool.map(lambda prompt: ids(workers.stream(checkpoint, prompt, PARAMS)), prompts))
    assert there == [ids(stream(*here, prompt, PARAMS)) for prompt in prompts]
    assert not any(worker.answers for worker in workers.ready)


def test_a_killed_process_is_told_of_and_replaced(workers, checkpoint):
    tokens = workers.stream(checkpoint, "Once", PARAMS)
    next(tokens)
    (victim,) = [worker for worker in workers.ready if worker.answers]
    os.kill(victim.process.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match="process ended before its text"):
        list(tokens)
    assert len(list(workers.stream(checkpoint, "Once", PARAMS))) == 20


def test_a_text_that_nobody_reads_ends_and_one_that_is_left_stops(workers, checkpoint):
    texts = [workers.stream(checkpoint, "Once", PARAMS) for _ in range(4)]
    for tokens in texts:
        next(tokens)
        tokens.close()
    assert not any(worker.answers for worker in workers.ready)


def test_a_process_ends_with_the_one_that_made_it(checkpoint):
    workers = WorkerPool(1, 1, checkpoint)
    next(tokens := workers.stream(checkpoint, "Once", PARAMS))
    worker = workers.ready[0]
    with socket.socket(fileno=os.dup(worker.connection.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)  # as the end of this process would
    worker.process.wait(30)
    tokens.close()
