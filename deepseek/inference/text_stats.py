"""Figures of a sampled text: its length, speed, mean probability, and how much it repeats itself."""

from collections.abc import Sequence
from statistics import fmean

from deepseek.inference.token_trace import TokenTrace


def repetition(ids: list[int]) -> dict[str, float]:
    """Fraction of distinct 2-grams (Li et al., 2016), and of 4-grams that repeat an earlier one (Welleck et al., 2020)."""
    pairs, fours = list(zip(ids, ids[1:])), list(zip(ids, ids[1:], ids[2:], ids[3:]))
    return {
        "distinct_2_grams": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "repeated_4_grams": 1 - len(set(fours)) / len(fours) if fours else 0.0,
    }


def sample_stats(tokens: Sequence[TokenTrace]) -> dict[str, float]:
    """Length, speed, mean probability under the model and `repetition` of an output of at least one token."""
    milliseconds = sum(token.milliseconds for token in tokens)
    return {
        "tokens": len(tokens),
        "tokens_per_second": 1e3 * len(tokens) / milliseconds if milliseconds else 0.0,
        "mean_probability": fmean(token.probability for token in tokens),
        **repetition([token.id for token in tokens]),
    }
