"""The learning rate, and which weights decay."""

import math

import pytest

from deepseek.training.optimizer import learning_rate, parameter_groups


def test_learning_rate_warms_up_and_then_falls_or_stays(config):
    settings = dict(lr=0.1, warmup_steps=10, max_steps=110)
    cosine, constant = (config(**settings, schedule=name) for name in ("cosine", "constant"))
    assert [learning_rate(cosine, step) for step in (1, 5, 10)] == pytest.approx([0.01, 0.05, 0.1])
    assert [learning_rate(cosine, step) for step in (35, 60, 110)] == pytest.approx(
        [0.1 * (1 + math.cos(math.pi * progress)) / 2 for progress in (25 / 101, 50 / 101, 100 / 101)]
    )
    assert learning_rate(cosine, 110) > 0, "the last step still trains"
    assert {learning_rate(constant, step) for step in range(10, 111)} == {0.1}
    assert learning_rate(config(warmup_steps=0), 1) > 0


def test_matrices_decay_and_vectors_do_not(model):
    decay, no_decay = parameter_groups(model, 0.1)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    assert len(decay["params"]) + len(no_decay["params"]) == len(list(model.parameters()))
    assert {p.dim() for p in no_decay["params"]} == {1} and min(p.dim() for p in decay["params"]) == 2
