"""What the page says of the samplers in use and their order."""

from deepseek import SamplingParams
from deepseek.ui.components import order_control


def test_the_line_names_the_samplers_in_use_in_their_order():
    assert order_control.in_force(SamplingParams()) == "model"
    params = SamplingParams(temperature=0.7, top_k=40, order="top-k,temperature")
    assert order_control.in_force(params) == "model → top-k → temperature"
    assert order_control.in_force(SamplingParams(choice=("a", "b"))) == "model → grammar"


def test_conflicts_stand_below():
    params = SamplingParams(mirostat_tau=5, top_k=40, temperature=0)
    assert order_control.in_force(params).split("\n") == [
        "model → temperature → mirostat", "⚠ mirostat replaces top-k", "⚠ temperature 0 leaves one token to mirostat",
    ]  # fmt: skip
    control = order_control.order_control(params)
    assert control.value == "transformers" and control.props["active"] == ["temperature", "mirostat"]
