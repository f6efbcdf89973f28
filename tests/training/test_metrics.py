"""What is computed from metrics.jsonl, against its lines."""

import json

import numpy as np
import pytest

from deepseek.training.metrics import History, cut, dead_experts, downsample_indices, duration, routing_change, smooth


def line(step, load, loss=1.0):
    values = dict(load_balancing_loss=0.1, lr=1e-3, grad_norm=None if step == 2 else 0.5, tokens_per_second=100.0)
    values |= dict(tokens=64 * step, load=load, max_violation=[0.0] * len(load))
    return {"step": step, "loss": loss, **values}


def probe(step, indices):
    return {"step": step, "probe": {"tokens": ["a", "b"], "layers": [1], "indices": indices, "weights": indices}}


def test_columns_do_not_depend_on_how_the_lines_are_split():
    even = [[0.25] * 4] * 2
    lines = [probe(0, [[[0, 1], [2, 3]]]), *(line(step, even, 5 - step) for step in range(1, 5))]
    lines.insert(3, {"step": 2, "val_loss": 3.5, "val_bits_per_byte": 1.0})
    lines.append({"step": 4, "samples": [{"prompt": "Once", "text": "Once more"}]})
    lines = json.loads(json.dumps(lines))
    whole, pieces = History(), History()
    whole.add(lines)
    for start in range(0, len(lines), 2):
        pieces.add(lines[start : start + 2])
    for history in (whole, pieces):
        assert history.steps == [1, 2, 3, 4]
        assert history.series["loss"] == [4, 3, 2, 1]
        assert np.isnan(history.series["grad_norm"][1])
        assert history.validation == [(2, 3.5)]
        assert history.samples == [(4, [{"prompt": "Once", "text": "Once more"}])]
        assert [step for step, _ in history.probes] == [0]
        assert history.seconds_left(14) == pytest.approx(10 * 64 / 100)


def test_the_time_left_includes_slow_steps():
    """Every second step saves a checkpoint at a tenth of the speed: a step takes 0.64 or 6.4 seconds."""
    history = History()
    for step in range(1, 101):
        history.add([{**line(step, [[0.5, 0.5]]), "tokens_per_second": 10.0 if step % 2 else 100.0}])
    assert history.seconds_left(200) == pytest.approx(50 * 0.64 + 50 * 6.4, rel=0.01)
    assert history.seconds_left(100) == 0
    before = history.seconds_left(300)
    history.add([{**line(101, [[0.5, 0.5]]), "tokens_per_second": 0.01}])  # it was paused for two hours
    assert history.seconds_left(301) == pytest.approx(before, rel=0.02)


@pytest.mark.parametrize("pauses", [[0.0, 0.0], [0.0] * 3, [0.01, 0.02], [0.0]])
def test_pauses_do_not_count_for_the_time_left(pauses):
    """A laptop that sleeps twice: hours in one step, whose speed is rounded to 0."""
    history = History()
    for step, speed in enumerate([100.0] * 20 + pauses, 1):
        history.add([{**line(step, [[0.5, 0.5]]), "tokens_per_second": speed}])
    assert history.seconds_left(len(history.steps) + 10) == pytest.approx(10 * 0.64)
    history = History()
    history.add([{**line(1, [[0.5, 0.5]]), "tokens_per_second": 0.0}])
    assert duration(history.seconds_left(2)) == "21 min 20 s"


@pytest.mark.parametrize(
    "content, num_bytes, kept",
    [
        ("1\n2\n3\n", 4, "1\n2\n"),
        ("1\n2\n3\n", 5, "1\n2\n"),
        ("1\n2", 100, "1\n"),
        ("1\n", 0, ""),
        ("1", 9, ""),
        (None, 9, ""),
    ],
)
def test_a_file_is_cut_to_whole_lines_and_never_filled_up(tmp_path, content, num_bytes, kept):
    file = tmp_path / "metrics.jsonl"
    if content is not None:
        file.write_text(content)
    cut(file, num_bytes)
    assert file.read_text() == kept


def test_a_duration_has_its_two_largest_units():
    assert [duration(seconds) for seconds in (59.4, 61, 3700)] == ["59 s", "1 min 1 s", "1 h 1 min"]


def test_smoothing_goes_from_nothing_to_the_mean_of_all():
    values = np.random.default_rng(0).normal(size=50).tolist()
    assert smooth(values, 0).tolist() == values
    assert smooth(values, 100) == pytest.approx(np.cumsum(values) / np.arange(1, 51))
    weights = 0.9 ** np.arange(49, -1, -1)
    assert smooth(values, 90)[-1] == pytest.approx((weights * values).sum() / weights.sum())
    assert smooth([float("nan"), 2.0, float("inf"), 4.0], 100)[1:].tolist() == [2, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 799, 800, 801, 10_000])
def test_downsampling_keeps_the_ends(count):
    indices = downsample_indices(count, 800)
    assert len(indices) == min(count, 800) and indices[0] == 0 and indices[-1] == count - 1
    assert len(set(indices)) == len(indices)


def test_a_dead_expert_has_under_a_hundredth_of_an_even_load_over_the_last_steps():
    load = np.full((120, 3, 8), 1 / 8)
    load[70:, 1, 5] = 0.0012  # an even load is 0.125
    load[70:, 2, 0] = 0.0013
    load[:70, 0, 3] = 0.0  # long ago
    assert dead_experts(load) == [(1, 5)]
    assert dead_experts(load[-49:]) == []


def test_routing_change_counts_tokens_whose_set_of_experts_changed():
    history = History()
    history.add([probe(0, [[[0, 1], [2, 3]]]), probe(10, [[[1, 0], [2, 4]]]), probe(20, [[[1, 0], [4, 2]]])])
    assert routing_change(history.probes) == [(10, 0.5), (20, 0.0)]
