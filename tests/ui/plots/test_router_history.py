"""The figures of how routers change: their data against the records, and that many layers and experts stay readable."""

import numpy as np
import pytest

from deepseek.training.router_history import RouterRecord, router_curves
from deepseek.ui.plots import router_history as plots


def records(layers, experts, k, steps=(0, 5, 10), tokens=60, bias=True):
    rng = np.random.default_rng(0)
    words = [f"<b>{n}" for n in rng.integers(20, size=tokens)]
    result = []
    for step in steps:
        values = {"tokens": words, "layers": list(range(1, layers + 1)), "experts": experts}
        values["indices"] = rng.random((layers, tokens, experts)).argsort(-1)[..., :k].tolist()
        result.append(RouterRecord.parse(step, values | ({"bias": rng.normal(size=(layers, experts))} if bias else {})))
    return result


def test_every_curve_has_a_line_a_layer_a_dotted_one_by_chance_and_a_mark_at_the_step():
    curves = router_curves(records(3, 8, 2))
    figure = plots.router_curves(curves, 5)
    lines = {trace.meta: trace for trace in figure.data}
    assert len(lines) == 6 * 3 + 4
    line = lines["router saturation, top-1, layer 2"]
    assert list(line.x) == [0, 5, 10]
    assert list(line.y) == [row[1] for row in curves["curves"]["saturation_top_1"]]
    chance = lines["co-activation, by chance"]
    assert chance.line.dash == "dot"
    assert list(chance.y) == pytest.approx(np.mean(curves["chance"]["co_activation"], axis=1))
    assert "MaxVio, by chance" not in lines
    assert sum(trace.showlegend for trace in figure.data) == 4
    (mark,) = figure.layout.shapes
    assert (mark.x0, mark.x1) == (5, 5)


def test_many_layers_are_summarised_and_an_unknown_bias_has_no_row():
    curves = router_curves(records(24, 8, 2, bias=False))
    figure = plots.router_curves(curves, 0)
    lines = {trace.meta: trace for trace in figure.data}
    assert len(lines) == 5 * 3 + 4
    values = np.array(curves["curves"]["max_violation"])
    assert list(lines["MaxVio, mean of the layers"].y) == pytest.approx(values.mean(1))
    assert list(lines["MaxVio, highest layer"].y) == pytest.approx(values.max(1))


@pytest.mark.parametrize("experts, k", [(8, 2), (128, 8)])
def test_a_layers_experts_show_load_and_bias_in_the_given_order(experts, k):
    one = records(2, experts, k)[0]
    order = np.argsort(-one.counts[1], kind="stable").tolist()
    load, bias = plots.layer_experts(one, 1, order).data
    assert list(load.x) == list(bias.x) == [str(expert) for expert in order]
    assert list(load.y) == sorted(one.load[1], reverse=True)
    assert list(bias.y) == one.bias[1][order].tolist()
    assert len(plots.layer_experts(records(2, experts, k, bias=False)[0], 1, order).data) == 1
