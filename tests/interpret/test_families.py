"""Every mixture of experts that transformers has for text, tiny and random: what is shown of it is what it does."""

import pytest
from families import SEEING, mixtures, tiny_model, tiny_seeing_model
from family_checks import CHECKS, NOT_GIVEN, NOT_MAPPED, SEEING_CHECKS

from deepseek.checkpoints.loading import CheckpointError


@pytest.mark.parametrize("name", mixtures())
def test_what_is_shown_of_a_family_is_what_it_does(name, tokenizer, tmp_path):
    model = tiny_model(name)
    for column, check in CHECKS.items():
        if name in NOT_GIVEN and column in ("traces", "intervenes", "steers"):
            with pytest.raises((AssertionError, StopIteration)):
                check(name, model, tokenizer, tmp_path)
        elif name in NOT_MAPPED and column == "maps":
            with pytest.raises(CheckpointError, match="memory"):
                check(name, model, tokenizer, tmp_path)
        else:
            check(name, model, tokenizer, tmp_path)


@pytest.mark.parametrize("name", SEEING)
def test_the_text_part_of_a_model_that_sees_images_opens_and_is_shown(name, tokenizer, tmp_path):
    model = tiny_seeing_model(name)
    for column in SEEING_CHECKS:
        if name in NOT_MAPPED and column == "maps":
            with pytest.raises(CheckpointError, match="in a form that cannot be read by the expert"):
                CHECKS[column](name, model, tokenizer, tmp_path)
        else:
            CHECKS[column](name, model, tokenizer, tmp_path)
