"""The loss of what decodes: that of the model's own forward in its own weights, and near it in rounded ones."""

import pytest

from deepseek.inference.stepwise import StepwiseModel
from deepseek.training.validation import evaluate

TEXTS = ["Once upon a time a fox ran over the hill.", "The end.", "dogs " * 40]


@pytest.mark.parametrize("name", ["model", "mixtral"])
def test_the_loss_is_that_of_the_models_forward_and_moves_with_rounded_weights(name, request, tokenizer):
    model = request.getfixturevalue(name)
    own = evaluate(model, tokenizer, TEXTS, 32, batch_size=3)
    same = evaluate(StepwiseModel(model, "model"), tokenizer, TEXTS, 32, batch_size=3)
    assert same.bits_per_byte == pytest.approx(own.bits_per_byte, abs=1e-5) and same.tokens == own.tokens
    rounded = evaluate(StepwiseModel(model, "int8"), tokenizer, TEXTS, 32, batch_size=3)
    assert 0 < abs(rounded.bits_per_byte - own.bits_per_byte) < 0.1


def test_a_model_without_a_decode_model_is_refused(llama):
    with pytest.raises(ValueError, match="model is of type 'llama'"):
        StepwiseModel(llama, "int8")
