"""Every family with a decode model through the engine: transformers' greedy tokens, batches, interventions and traces."""

import pytest
import torch
from families import tiny_model

from deepseek import SamplingParams, stream
from deepseek.inference.decode_model import FAMILIES, DecodeModel, supports
from deepseek.inference.engine import Request, decode_step
from deepseek.interpret.interventions import Intervention

PROMPT = "Once upon a time"
INTERVENTIONS = Intervention(1, "off"), Intervention(2, "force", 3), Intervention(5, "off", 2)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    model = tiny_model(request.param, sliding_window=256)
    assert supports(model)
    return model


def drained(requests, decode_model):
    """The tokens of requests decoded together until all have ended."""
    tokens = [[] for _ in requests]
    while running := [pair for pair in zip(requests, tokens) if not pair[0].finish_reason]:
        for (_, own), token in zip(running, decode_step([request for request, _ in running], decode_model)):
            token.milliseconds = 0.0
            own.append(token)
    return tokens


def test_greedy_tokens_are_those_of_transformers_generate(family, tokenizer):
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    options = dict(attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
    expected = family.generate(ids, **options)[0, ids.shape[1] :].tolist()
    params = SamplingParams(temperature=0, max_new_tokens=40)
    assert [token.id for token in stream(family, tokenizer, PROMPT, params)] == expected


def test_the_models_own_forward_is_not_run_after_the_prompt(family, tokenizer):
    passes = []
    hook = family.register_forward_hook(lambda *_: passes.append(1))
    list(stream(family, tokenizer, PROMPT, SamplingParams(seed=0, max_new_tokens=6)))
    hook.remove()
    assert len(passes) <= 3, "two of them count the elements of the cache"


@pytest.mark.parametrize("interventions", [(), INTERVENTIONS], ids=["free", "interventions"])
def test_traces_are_those_of_the_models_own_forward(family, tokenizer, interventions):
    params = SamplingParams(seed=3, max_new_tokens=16, temperature=0.9)
    decoded, own = (
        drained([Request(family, tokenizer, PROMPT, params, interventions=interventions)], decode_model)[0]
        for decode_model in (DecodeModel(family), None)
    )
    assert [token.text for token in decoded] == [token.text for token in own]
    for token, expected in zip(decoded, own):
        assert token.probability == pytest.approx(expected.probability, abs=1e-5)
        assert token.experts.keys() == expected.experts.keys() and token.experts
        for layer, pairs in token.experts.items():
            assert dict(pairs) == pytest.approx(dict(expected.experts[layer]), abs=1e-5)


def test_a_batch_gives_each_request_the_traces_it_gets_alone(family, tokenizer):
    """They end one after the other; one has interventions and one a forced token."""
    jobs = []
    for index in range(5):
        params = SamplingParams(seed=index, max_new_tokens=4 + 3 * index, top_k=(0, 8)[index % 2], temperature=1.2)
        forced = {2: 7} if index == 3 else None
        jobs.append((PROMPT[: 4 + index], params, forced, INTERVENTIONS if index == 4 else ()))
    decode_model = DecodeModel(family)
    alone = [drained([Request(family, tokenizer, *job)], decode_model)[0] for job in jobs]
    together = drained([Request(family, tokenizer, *job) for job in jobs], decode_model)
    for tokens, expected in zip(together, alone, strict=True):
        assert [(token.id, token.rank) for token in tokens] == [(token.id, token.rank) for token in expected]
        for token, same in zip(tokens, expected):  # the pass over the prompt is torch's, which rounds as it likes
            assert token.probability == pytest.approx(same.probability, abs=1e-6)
            assert token.experts.keys() == same.experts.keys()
            for layer, pairs in token.experts.items():
                assert dict(pairs) == pytest.approx(dict(same.experts[layer]), abs=1e-6)
