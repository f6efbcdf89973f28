"""Orders of the samplers, and what they say of conflicts."""

import itertools
import random

import pytest

from deepseek.inference.sampler_order import SAMPLER_ORDERS, STAGES, canonical_order, conflicts, parse_order
from deepseek.inference.sampling import SAMPLERS, SamplingParams


def test_every_sampler_has_a_place_in_both_named_orders():
    names = SAMPLERS.keys() - {"grammar"}  # always the first
    assert all(set(order) == names and len(order) == len(names) for order in SAMPLER_ORDERS.values())
    before = ("repetition", "n-gram", "presence and frequency", "temperature", "top-k", "top-p", "min-p")
    assert tuple(name for name in SAMPLER_ORDERS["transformers"] if name in before) == before  # as in version 0.1


def test_any_order_is_an_order():
    rng = random.Random(0)
    for _ in range(50):
        stages = rng.sample(STAGES, len(STAGES))
        assert parse_order(",".join(stages)) == tuple(stages)
        assert SamplingParams(order=stages).order == SamplingParams(order=" ; ".join(stages)).order == ",".join(stages)
    for name, stages in SAMPLER_ORDERS.items():
        assert canonical_order(",".join(stages)) == name == canonical_order(name)


def test_samplers_that_are_not_named_keep_their_place_after_the_one_before():
    stages = parse_order("min-p,temperature")
    assert stages.index("temperature") == stages.index("min-p") + stages[stages.index("min-p") :].index("temperature")
    assert stages[stages.index("temperature") + 1] == "top-n-sigma" and set(stages) == set(STAGES)
    assert stages.index("epsilon") == stages.index("min-p") + 1


def test_the_names_of_other_programs_are_taken():
    """llama.cpp's --samplers."""
    stages = parse_order("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature")
    names = ["presence and frequency", "DRY", "top-n-sigma", "top-k", "typical", "top-p", "min-p", "XTC", "temperature"]
    assert [name for name in stages if name in names] == names
    assert canonical_order("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;eta;xtc;temp") == "llama.cpp"


@pytest.mark.parametrize(
    "order, message",
    [
        ("sideways", "order is 'sideways'; it must be transformers, llama.cpp, or some of logit bias, .* between"),
        ("top-k,,top-p", "order is 'top-k,,top-p', of which '' is none; it must be"),
        ("top-k,top_k", "order is 'top-k,top_k'; it must name top-k once."),
        ("penalties,repetition", "order is 'penalties,repetition'; it must name repetition once."),
    ],
)
def test_a_bad_order_is_refused_in_one_sentence(order, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SamplingParams(order=order)


@pytest.mark.parametrize(
    "order, active, notes",
    [
        ("transformers", {"top-k", "top-p", "temperature"}, []),
        ("transformers", {"XTC", "top-p"}, ["XTC after top-p can leave one token"]),
        ("XTC,top-p", {"XTC", "top-p"}, []),
        ("transformers", {"mirostat", "top-k", "XTC"}, ["mirostat replaces top-k, XTC"]),
        ("top-k,n-gram", {"n-gram", "top-k"}, ["n-gram after top-k is skipped where it would leave no token"]),
        ("top-k,repetition", {"repetition", "top-k"}, ["repetition after top-k brings back no token"]),
        (
            "adaptive-p,top-k",
            {"adaptive-p", "top-k"},
            ["top-k after adaptive-p works on its curve, no longer on the model's probabilities"],
        ),
    ],
)
def test_conflicts_are_said(order, active, notes):
    assert conflicts(parse_order(order), active, greedy=False) == notes


def test_greedy_leaves_nothing_to_what_follows():
    assert conflicts(parse_order("transformers"), {"temperature", "top-k"}, greedy=True) == [
        "temperature 0 leaves one token to top-k"
    ]
    assert not conflicts(parse_order("llama.cpp"), {"temperature", "top-k"}, greedy=True)


def test_conflicts_of_any_settings_are_sentences():
    names = ["top-k", "XTC", "mirostat", "adaptive-p", "n-gram", "temperature"]
    for order in itertools.permutations(names):
        for note in conflicts(parse_order(",".join(order)), set(names), greedy=True):
            assert note[-1] != "," and "  " not in note
