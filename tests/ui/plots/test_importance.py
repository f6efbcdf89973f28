"""The figures of importance and steering, against the records they show."""

import torch

from deepseek.interpret.importance import KnockOut, LossPoint, RunnerUps
from deepseek.interpret.steering import Effect, RateDifference
from deepseek.ui.plots import importance as plots


def knock_out(layer, expert, kl, loss=0.0):
    return KnockOut(layer, expert, 2, loss, torch.tensor(kl))


def test_the_most_important_of_many_experts_have_a_row_and_those_looked_for_too():
    measured = [knock_out(layer, expert, [0.0, expert / 128 + layer]) for layer in range(3) for expert in range(128)]
    shown = plots.shown_experts(measured, [(0, 5), (1, 127), (9, 9)])
    assert [(each.layer, each.expert) for each in shown[:3]] == [(1, 127), (0, 5), (2, 127)]
    assert len(shown) == plots.MAX_SHOWN + 2 and shown[-1].expert == 112 and shown[-1].layer == 2
    figure = plots.knock_out_map(["a", "<b>"], shown)
    assert figure.data[0].y[:2] == ("127@1", "5@0") and figure.data[0].x == ("1 a", "2 &lt;b&gt;")
    assert list(figure.data[0].z)[0] == [0.0, round(127 / 128 + 1, 4)] and figure.layout.height < 600
    assert plots.knock_out_rows([knock_out(1, 2, [0.5, 1.5], -0.25)]) == [["2@1", "2", "-0.250", "1.000"]]


def test_curves_are_drawn_as_given():
    points = [LossPoint("a", 0, 1.0), LossPoint("a", 3, 2.5), LossPoint("b", 0, 1.0)]
    figure = plots.loss_curves(points, "experts off")
    assert [(line.name, list(line.x), list(line.y)) for line in figure.data] == [
        ("a", [0, 3], [1.0, 2.5]),
        ("b", [0], [1.0]),
    ]
    assert figure.layout.xaxis.title.text == "experts off" and "nats" in figure.layout.yaxis.title.text


def test_a_cross_marks_where_the_next_word_changes():
    row = RunnerUps(4, [(1, 2), (0, 3)], torch.tensor([0.25, 0.5]), [7, 8], [7, 9], [0, 1])
    map, crosses = plots.runner_up_map(["a", "b"], [row], {7: " x", 8: "y", 9: "<z>"}).data
    assert list(map.z) == [[0.25, 0.5]] and map.y == ("layer 4",)
    assert list(map.customdata[0]) == ["expert 2 for 1: ·x", "expert 3 for 0: y → &lt;z&gt;"]
    assert (crosses.x, crosses.y, crosses.customdata) == (("2 b",), ("layer 4",), ("expert 3 for 0: y → &lt;z&gt;",))
    same = RunnerUps(4, [(1, 2)], torch.tensor([0.0]), [7], [7], [0])
    assert len(plots.runner_up_map(["a"], [same], {7: "x"}).data[1].x) == 0


def test_differences_no_better_than_chance_are_pale():
    differences = [
        RateDifference(1, expert, 0.5, 0.1 * expert, 0.05, 0.01 if expert < 2 else 0.4) for expert in range(40)
    ]
    (bars,) = plots.rate_differences(differences).data
    assert len(bars.y) == plots.MAX_SHOWN and bars.y[:2] == ("0@1", "1@1") and list(bars.x[:2]) == [0.5, 0.4]
    assert list(bars.error_x.array)[:1] == [0.05] and list(bars.marker.opacity[:3]) == [1, 1, 0.35]
    assert bars.marker.color[0] != bars.marker.color[9] and "p = 0.010" in bars.customdata[0]


def test_the_effect_has_both_lists_without_and_with():
    effects = {
        "list A": Effect(2.0, -0.5, 0.1, (0.2, 1.0), (0.3, 0.0)),
        "list B": Effect(3.0, 0.25, 0.2, (0.1, 1.0), (0.4, 0.0)),
    }
    loss, without, with_ = plots.steering_effect(effects).data
    assert list(loss.y) == [-0.5, 0.25] and list(loss.error_y.array) == [0.1, 0.2] and loss.x == ("list A", "list B")
    assert list(without.y) == [0.2, 0.3, 0.1, 0.4] and list(with_.y) == [1.0, 0.0, 1.0, 0.0]
    assert without.x == ("list A<br>promoted", "list A<br>suppressed", "list B<br>promoted", "list B<br>suppressed")
