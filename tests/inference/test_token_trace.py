"""What is recorded of a token: how much each sampler moved, ranks, reports, and what decided."""

import numpy as np
import pytest

from deepseek import SamplingParams, stream
from deepseek.inference.sampling import SamplingState, apply_samplers
from deepseek.inference.token_trace import Candidate, Stage, TokenTrace, record_samplers
from deepseek.kernels.sampling import softmax_entropy

LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))


def record(params, token=0, probe=(), **state):
    state = SamplingState([], [], **state)
    steps = list(apply_samplers(LOGITS, params, state))
    probs_V, _ = softmax_entropy(LOGITS)
    return record_samplers(LOGITS, probs_V, steps, state.details, token, list(probe), str)


def test_a_stage_tells_the_probability_that_it_moved():
    stages, _ = record(SamplingParams(top_k=2, temperature=0.5, order="top-k,temperature"))
    moved = {stage.name: stage.moved for stage in stages if stage.active}
    assert moved["top-k"] == pytest.approx(0.3)  # what it removed goes to the two that are left
    assert moved["temperature"] == pytest.approx(16 / 25 - 4 / 7, abs=1e-6)
    assert sum(stage.moved for stage in stages) == pytest.approx(sum(moved.values()))


def test_probed_tokens_have_ranks_at_every_stage():
    params = SamplingParams(banned_tokens=["9"], top_k=2, order="top-k,banned tokens")
    stages, candidates = record(params, probe=[1, 4])
    by_id = {candidate.id: candidate for candidate in candidates}
    after = [stage.name for stage in stages].index("top-k") + 1
    assert by_id[1].ranks == [2] * (len(stages) + 1) and by_id[0].ranks == []
    assert by_id[4].ranks == [5] * after + [0] * (len(stages) + 1 - after) and by_id[4].removed_by == "top-k"


def test_samplers_report_what_they_drew_and_keep():
    stages, _ = record(SamplingParams(xtc_probability=0.5, adaptive_target=0.3), uniform=0.25)
    details = {stage.name: stage.details for stage in stages if stage.details}
    assert details["XTC"] == {"drawn": 0.25, "acts": 1.0}
    assert details["adaptive-p"]["target"] == pytest.approx(0.3)
    assert not any(stage.details for stage in record(SamplingParams())[0])


def token(probabilities, sampler_probability=None):
    stages = [Stage(name, True, True, 5) for name in ("temperature", "top-k")]
    candidate = Candidate(7, "x", probabilities, None)
    last = probabilities[-1] if sampler_probability is None else sampler_probability
    return TokenTrace(7, "x", 0, probabilities[0], last, 1, 1.0, 1.0, stages, [candidate])


@pytest.mark.parametrize(
    "probabilities, decided_by",
    [
        ([0.5, 0.6, 0.9], "model"),
        ([0.1, 0.15, 0.9], "top-k"),
        ([0.1, 0.6, 0.9], "temperature"),
        ([0.1, 0.05, 0.06], "model"),
        ([0.1, 0.6, 0.0], "forced"),
    ],
)
def test_what_decided_is_what_added_most(probabilities, decided_by):
    assert token(probabilities).decided_by == decided_by


def test_without_a_record_the_model_decides():
    bare = TokenTrace(7, "x", 0, 0.2, 0.9, 1, 1.0, 1.0, [], [])
    assert bare.decided_by == "model"


def test_a_stream_probes_the_ids_it_is_asked_for(model, tokenizer):
    params = SamplingParams(top_k=2, mirostat_tau=0, seed=0, max_new_tokens=3)
    plain = list(stream(model, tokenizer, "Once", params))
    probed = list(stream(model, tokenizer, "Once", params, probe=[5]))
    assert [a.id for a in plain] == [b.id for b in probed]
    for each in probed:
        (candidate,) = [c for c in each.candidates if c.id == 5]
        assert len(candidate.ranks) == len(each.stages) + 1 and candidate.ranks[0] >= 1
        assert (candidate.ranks[-1] == 0) == (candidate.removed_by is not None)
    with pytest.raises(ValueError, match="^probe holds id -1; it must be from 0 to"):
        next(stream(model, tokenizer, "Once", params, probe=[-1]))


def test_the_state_along_a_text_is_that_of_the_tokens_whatever_the_batch_or_the_branch(model, tokenizer):
    """A branch that takes the tokens themselves, or another first token and then its own, tells the same mu and target."""
    params = SamplingParams(mirostat_tau=3.0, mirostat_eta=0.3, adaptive_target=0.4, dry_multiplier=1.0, seed=5,
                            xtc_probability=0.5, max_new_tokens=12)  # fmt: skip

    def told(tokens):
        return [[stage.details for stage in each.stages] for each in tokens]

    whole = list(stream(model, tokenizer, "Once", params))
    forced = list(stream(model, tokenizer, "Once", params, {index: each.id for index, each in enumerate(whole[:7])}))
    assert [each.id for each in forced] == [each.id for each in whole] and told(forced) == told(whole)
    assert len({each.stages[-2].details["mu"] for each in whole}) == len(whole)
