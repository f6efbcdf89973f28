"""The figures of a sampled text."""

from types import SimpleNamespace

import pytest

from deepseek.inference.text_stats import sample_stats


def test_figures_of_a_repeating_text():
    figures = sample_stats([SimpleNamespace(id=i % 4, milliseconds=10.0, probability=0.5) for i in range(16)])
    assert figures["tokens"] == 16 and figures["tokens_per_second"] == 100 and figures["mean_probability"] == 0.5
    assert figures["distinct_2_grams"] == 4 / 15
    assert figures["repeated_4_grams"] == pytest.approx(1 - 4 / 13)
