"""The training figures' data, against the metrics they show."""

import numpy as np
import pytest

from deepseek.training.metrics import History
from deepseek.ui.plots import training

LAYERS, EXPERTS = 5, 8


def history(steps, seed=0):
    """A run of `steps` steps with a validation every 100."""
    generator = np.random.default_rng(seed)
    load = generator.dirichlet([20] * EXPERTS, (steps, LAYERS))
    run = History()
    for step in range(1, steps + 1):
        metrics = dict(loss=5 - step / steps, load_balancing_loss=0.1, lr=1e-3, grad_norm=1.0, tokens_per_second=900.0)
        violation = (load[step - 1].max(-1) * EXPERTS - 1).tolist()
        row = {"step": step, **metrics, "tokens": step, "load": load[step - 1].tolist(), "max_violation": violation}
        run.add([row])
        if step % 100 == 0:
            run.add([{"step": step, "val_loss": 4.5, "val_bits_per_byte": 1.2}])
    return run, load


@pytest.fixture(scope="module")
def long_run():
    return history(10_000)


def test_loss_curves_hold_raw_and_smoothed_losses_and_validation(long_run):
    run, _ = history(300)
    raw, smoothed, validation = training.loss_curves({"<b>a": run}, 100).data
    assert list(raw.x) == run.steps and np.allclose(raw.y, run.series["loss"])
    assert np.allclose(smoothed.y, np.cumsum(run.series["loss"]) / np.arange(1, 301))
    assert list(validation.x) == [100, 200, 300] and np.allclose(validation.y, 4.5)
    assert "<" not in smoothed.name
    assert len(training.loss_curves({"a": run, "b": run}, 0).data) == 4


def test_a_map_column_is_the_mean_of_its_steps(long_run):
    for run, load in (history(100), long_run):
        heatmap = training.load_map(run).data[0]
        z = np.array(heatmap.z, dtype=float)
        width = len(load) / z.shape[1]
        assert z.shape == (LAYERS * (EXPERTS + 1) - 1, min(len(load), training.MAX_COLUMNS))
        row = 2 * (EXPERTS + 1) + 3  # layer 2, expert 3, with an empty row after every layer
        first = load[: round(np.ceil(width)), 2, 3].mean() * EXPERTS
        assert z[row, 0] == pytest.approx(first, abs=0.006)
        assert np.isnan(z[EXPERTS]).all()
        assert heatmap.x[-1] == len(load) and len(set(heatmap.y)) == len(heatmap.y)


def test_violation_has_a_line_a_layer():
    run, load = history(50)
    lines = training.violation_curves(run, 0).data
    assert len(lines) == LAYERS
    assert np.allclose(lines[4].y, load[:, 4].max(-1) * EXPERTS - 1, atol=1e-5)


def test_ten_thousand_steps_stay_small(long_run):
    run, _ = long_run
    figures = [
        training.loss_curves({"a": run, "b": run}, 60),
        training.curve({"a": run, "b": run}, "grad_norm", 60),
        training.load_map(run),
        training.violation_curves(run, 60),
    ]
    assert max(len(figure.to_json()) for figure in figures) < 300_000
    assert max(len(trace.x) for figure in figures for trace in figure.data) <= 1000


def test_probe_figures_show_experts_and_what_changed():
    run, _ = history(10)
    indices = np.array([[[0, 1], [2, 3], [4, 5], [6, 7]], [[7, 6], [5, 4], [3, 2], [1, 0]]])
    for step, experts in ((0, indices), (10, np.where(indices == 7, 2, indices))):
        probe = {"tokens": list("abcd"), "layers": [1, 2], "experts": 8, "indices": experts.tolist()}
        run.add([{"step": step, "probe": {**probe, "weights": np.full(experts.shape, 0.5).tolist()}}])
    first, last = (np.array(training.probe_map(probe).data[0].z) for _, probe in run.probes)
    assert first.tolist() == indices[:, :, 0].tolist() and last[1, 0] == 2
    bars = training.routing_change_bars(run).data[0]
    assert list(bars.x) == ["10"] and list(bars.y) == [2 / 8]
