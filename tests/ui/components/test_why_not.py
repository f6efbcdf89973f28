"""The panel that says why another word was not written."""

import json

import gradio as gr
import pytest

from deepseek import SamplingParams
from deepseek.interpret.interventions import Intervention
from deepseek.ui.components import why_not
from deepseek.ui.generation import generate


@pytest.fixture(scope="module")
def generation(demo):
    params = SamplingParams(top_k=5, temperature=0.8, xtc_probability=0.4, mirostat_tau=0, seed=3, max_new_tokens=6)
    *_, last = generate(*demo, "Once upon a time", params, interventions=[Intervention(5, "force", 2)])
    return last


def test_the_probed_token_is_the_one_that_was_written(demo, generation):
    """With the same interventions, and what the samplers keep along the text."""
    for index in (0, 4):
        token, probed = generation.tokens[index], why_not.probed(generation, index, [7])
        assert probed.id == token.id and probed.stages == token.stages
        before = {c.id: (c.probabilities, c.removed_by) for c in token.candidates}
        assert before.items() <= {c.id: (c.probabilities, c.removed_by) for c in probed.candidates}.items()


def test_an_answer_says_rank_probability_and_what_removed_it(generation):
    generation.selected = 4
    sentence, table = why_not.answer(generation, "purple")
    assert sentence.startswith("Token 5. “·") and "under the model with" in sentence and "top-k removed it." in sentence
    rows = json.loads(table)
    assert [row[1] for row in rows][:2] == ["model", "temperature"] and rows[-1][2:] == ["", "", "removed"]
    assert rows[0][2].replace(",", "").isdecimal() and rows[0][3].endswith("%")


def test_an_answer_tells_who_chose_the_token(generation):
    token = generation.tokens[4]
    generation.selected = 4
    other = next(c for c in token.candidates if c.removed_by is None and c.id != token.id)
    assert "it stayed in, and the draw fell on" in why_not.answer(generation, other.text)[0]
    generation.forced_tokens = {4: token.id}
    assert "it stayed in, and you chose" in why_not.answer(generation, other.text)[0]
    generation.forced_tokens = {}


def test_a_bad_word_is_refused(generation):
    with pytest.raises(gr.Error, match="why_not is '  '; it must be a word of 1 to 100 characters."):
        why_not.answer(generation, "  ")
