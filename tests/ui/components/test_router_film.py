"""The film of a run's routing: which figures are drawn when, for few and for 128 experts; and the same as JSON."""

import json

import gradio as gr
import numpy as np
import pytest

from deepseek.training.metrics import History
from deepseek.ui.components import router_film
from deepseek.ui.components.router_json import routing_json

TOKENS = 60


def history(experts=8, k=2, steps=(0, 5, 10)):
    rng, run = np.random.default_rng(0), History()
    words = [f"w{n}" for n in rng.integers(20, size=TOKENS)]
    for step in steps:
        indices = rng.random((2, TOKENS, experts)).argsort(-1)[..., :k]
        values = {"tokens": words, "layers": [1, 3], "experts": experts, "indices": indices.tolist()}
        run.add([{"step": step, "probe": {**values, "weights": np.full(indices.shape, 1 / k).tolist()}}])
        run.add([{"step": step, "routing": {**values, "bias": rng.normal(size=(2, experts)).tolist()}}])
    return run


@pytest.fixture
def p():
    with gr.Blocks():
        return router_film.build()


def test_a_step_of_the_film_draws_its_own_figures_and_marks_the_curves(p):
    run, shown = history(), {}
    updates = router_film.redraw(p, shown, run, None, None)
    assert updates[p["film layer"]]["value"] == 1 and updates[p["probe note"]] == "Checkpoint 2: step 10"
    assert updates[p["router curves"]].layout.shapes[0].x0 == 10
    assert router_film.redraw(p, shown, run, None, 1) == {}, "nothing is drawn twice"
    updates = router_film.redraw(p, shown, run, 1, 1)
    assert updates[p["router curves"]].layout.shapes[0].x0 == 5
    record = run.router_records[1]
    assert list(updates[p["film experts"]].data[0].y) == record.load[0].tolist()
    updates = router_film.redraw(p, shown, run, 1, 3)  # the other layer
    assert set(updates) == {p[name] for name in ("film experts", "film pairs", "film vocabulary")}
    assert list(updates[p["film experts"]].data[1].y) == record.bias[1].tolist()
    assert router_film.redraw(p, {}, History(), None, 1) == {p["probes"]: gr.update(visible=False)}


def test_of_128_experts_the_tables_show_the_busiest_and_the_bars_keep_one_order(p):
    run = history(128, 8)
    orders = []
    for index in (0, 2):
        updates = router_film.redraw(p, {}, run, index, 3)
        bars, pairs, words = (updates[p[name]] for name in ("film experts", "film pairs", "film vocabulary"))
        orders.append(list(bars.data[0].x))
        assert len(orders[-1]) == 128 and np.shape(pairs.data[0].z) == (16, 16) and len(words.data[0].z) == 16
        assert list(pairs.data[0].x) == orders[-1][:16]
        assert [int(name.split()[1]) for name in words.data[0].y] == list(map(int, orders[-1][:16]))
    assert orders[0] == orders[1]
    newest = run.router_records[-1].load[1]
    assert list(map(int, orders[0])) == sorted(range(128), key=lambda expert: -newest[expert])


def test_the_same_is_served_as_json():
    run = history()
    answer = json.loads(json.dumps(routing_json(run, 5), allow_nan=False))
    assert answer["steps"] == [0, 5, 10] and answer["layers"] == [1, 3] and answer["alarms"] == []
    checkpoint, record = answer["checkpoint"], run.router_records[1]
    assert checkpoint["indices"] == record.indices.tolist() and checkpoint["bias"] == record.bias.tolist()
    word, times, total = checkpoint["vocabulary_specialization"][1][4][0]
    tokens = [token for token, chosen in zip(record.tokens, record.indices[1].tolist()) if 4 in chosen]
    assert times == tokens.count(word) and total == record.tokens.count(word)
    assert routing_json(run, -1)["checkpoint"]["step"] == 10
    for step in (7, True, None, [1]):
        with pytest.raises(ValueError, match="^step is .*; it must be one of -1, 0, 5, 10.$"):
            routing_json(run, step)
    assert routing_json(History(), -1)["checkpoint"] is None
