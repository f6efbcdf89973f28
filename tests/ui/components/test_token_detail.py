"""What the page says of the selected token."""

from deepseek import SamplingParams
from deepseek.ui.components import token_detail
from deepseek.ui.generation import generate


def test_the_heading_tells_the_mask_of_a_constraint(demo):
    params = SamplingParams(choice=["yes", "you"], temperature=0, seed=0, max_new_tokens=2)
    *_, generation = generate(*demo, "Once", params)
    stage = generation.tokens[0].stages[0]
    mask = f"The choice allows 4 tokens here; the others had {stage.moved:.1%} of the probability."  # y ye yo yes
    heading = token_detail.heading(generation, 0)
    assert mask in heading and "Samplers in use: model → grammar → temperature" in heading
    params = SamplingParams(seed=0, max_new_tokens=1)
    *_, generation = generate(*demo, "Once", params)
    assert "allows" not in token_detail.heading(generation, 0)
