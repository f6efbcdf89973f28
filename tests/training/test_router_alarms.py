"""Alarms for dead and collapsed experts: when they come, whom they name, since when, and when they stay away."""

import json

import numpy as np
import pytest
import torch

from deepseek.training import runs
from deepseek.training.metrics import History
from deepseek.training.router_alarms import Alarm, AlarmWatch, alarm_sentences, collapsed_experts, router_alarms
from deepseek.training.trainer import Trainer, train


def lines_of(load):
    """The lines of metrics.jsonl of these loads, (steps, layers, experts), with two experts a token."""
    columns = dict(loss=1.0, load_balancing_loss=0.1, lr=0.1, grad_norm=1.0, tokens_per_second=1.0)
    for step, load_LE in enumerate(load.tolist(), 1):
        yield {"step": step, **columns, "tokens": step, "load": load_LE, "max_violation": [0.0] * len(load_LE)}


def history(load):
    """A run of these loads."""
    run = History()
    run.add([*lines_of(load)])
    return run


def test_an_expert_is_dead_since_the_step_of_its_last_tokens():
    load = np.full((200, 2, 4), 0.25)
    load[119:, 1, 2] = 0  # from step 120 on
    assert router_alarms(history(load[:168])) == [], "it had tokens in the last 50 steps"
    (alarm,) = router_alarms(history(load))
    assert alarm == Alarm("dead", 2, 2, 120, 0.0), "layer 1 is the first with experts"
    load[190:, 1, 2] = 0.25
    assert router_alarms(history(load)) == [], "it is back"


def test_a_second_death_counts_from_the_second():
    load = np.full((300, 1, 4), 0.25)
    load[:100, 0, 1] = load[200:, 0, 1] = 0
    (alarm,) = router_alarms(history(load))
    assert (alarm.expert, alarm.since) == (1, 201)


def test_each_alarm_is_told_once_whenever_it_begins_and_a_watch_stays_small(tmp_path):
    load, watch, told = np.full((300, 1, 4), 0.25), AlarmWatch(tmp_path), []
    load[:100, 0, 1] = load[200:, 0, 1] = load[210:, 0, 2] = 0
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for line in lines_of(load):
            print(json.dumps(line), file=file, flush=True)
            told += [(line["step"], alarm.expert, alarm.since) for alarm in watch.new_alarms()]
    assert told == [(50, 1, 1), (250, 1, 201), (260, 2, 211)]
    assert len(watch.history.steps) == len(watch.history.load) == 100
    assert [alarm.since for alarm in AlarmWatch(tmp_path).new_alarms()] == [201, 211], "of a run that is resumed"


def test_an_expert_that_nearly_every_token_chooses_has_collapsed():
    load = np.full((120, 1, 8), 1 / 8)
    load[60:, 0] = (1 - 0.48) / 7
    load[60:, 0, 3] = 0.48  # of the choices: 96 % of the tokens, with two choices each
    (alarm,) = router_alarms(history(load))
    assert (alarm.kind, alarm.expert, alarm.since) == ("collapsed", 3, 61) and alarm.tokens == pytest.approx(0.96)
    assert collapsed_experts(np.full((50, 1, 2), 0.5), k=2) == [], "of two experts both get every token"
    assert collapsed_experts(load[:105], k=2) == [] and collapsed_experts(load[:40], k=2) == []


def test_a_sentence_names_layer_experts_and_step_and_counts_many():
    alarms = [Alarm("dead", 3, expert, 100 + expert, 0.0) for expert in range(10)]
    dead, collapsed = alarm_sentences([*alarms, Alarm("collapsed", 4, 7, 1250, 0.961)])
    assert dead.startswith("Dead experts in layer 3: expert 0 (since step 100), expert 1 (since step 101), ")
    assert (
        "expert 7 (since step 107) and 2 more. The router sends almost no tokens to them, so they learn nothing."
        in dead
    )
    start = "Collapsed router in layer 4: expert 7 (since step 1,250). Nearly every token (96%) goes there"
    assert collapsed.startswith(start)
    (one,) = alarm_sentences(alarms[:1])
    start = "Dead expert in layer 3: expert 0 (since step 100). The router sends almost no tokens to it, so it learns nothing."
    assert one.startswith(start)


@pytest.mark.parametrize("kind, push", [("dead", -1e3), ("collapsed", 1e3)])
def test_a_run_raises_the_alarm_for_an_expert_that_its_router_is_made_to_avoid_or_to_choose(
    config, monkeypatch, kind, push
):
    """From step 21 on, by the router's bias."""
    train_step = Trainer.train_step

    def with_push(trainer):
        if trainer.step >= 20:
            trainer.routers[0].e_score_correction_bias[5] = push
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", with_push)
    config = config(max_steps=80, batch_size=2, save_every=40, probe="a fox")
    watch, told = AlarmWatch(config.run), []
    for step in train(config):
        told += [(step.step, alarm.expert, alarm.since) for alarm in watch.new_alarms()]
        if step.step == 60:
            assert router_alarms(runs.history(config.run)) == []
    ((first, *what),) = told
    assert 60 < first <= 70 and what == [5, 21], "once, when it has lasted about 50 steps"
    (alarm,) = router_alarms(runs.history(config.run))
    assert (alarm.kind, alarm.layer, alarm.expert, alarm.since) == (kind, 1, 5, 21)
    assert alarm.tokens == (0 if kind == "dead" else 1)
    record = runs.history(config.run).router_records[-1]
    assert record.bias[0][5] == torch.tensor(record.bias[0]).abs().max().item() * np.sign(push)
