"""Experts ablated and forced, against the routers' own choice with an expert masked, on six families."""

import copy
import threading

import pytest
import torch
from small import families
from transformers import AutoModelForCausalLM

from deepseek import SamplingParams, stream, trace
from deepseek.interpret.interventions import Intervention, ablation_effects, intervened
from deepseek.interpret.trace import routers

TEXT = "Once upon a time a fox ran over the hill"
FAMILIES = ["mixtral", "olmoe", "qwen3", "deepseek_v2", "deepseek_v3", "gpt_oss"]


@pytest.fixture(params=["ours", *FAMILIES])
def mixture(request, model):
    """Ours and six families, with a router bias that decides who is chosen where there is one."""
    if request.param == "ours":
        return model
    torch.manual_seed(0)
    mixture = AutoModelForCausalLM.from_config(families()[request.param]).eval()
    for router in routers(mixture).values():
        with torch.no_grad():
            router.weight.normal_(0, 0.5)
            if hasattr(router, "e_score_correction_bias"):
                router.e_score_correction_bias.normal_(0, 0.3)
    return mixture


@torch.no_grad()
def logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits


def router_call(model, layer, ids, interventions=()):
    """The input of a layer's router, and its output."""
    calls = []
    hook = routers(model)[layer].register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    with intervened(model, interventions):
        logits(model, ids)
    hook.remove()
    return calls[0]


def test_no_intervention_is_bitwise_the_same(mixture, tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    before = logits(mixture, ids)
    with intervened(mixture, []):
        assert torch.equal(logits(mixture, ids), before)
    unused = next((e for e in range(4) if not (trace(mixture, tokenizer, ids).routing[0].indices == e).any()), None)
    if unused is not None:
        with intervened(mixture, [Intervention(unused, "off", trace(mixture, tokenizer, ids).routing[0].layer)]):
            assert torch.equal(logits(mixture, ids), before)
    assert torch.equal(logits(mixture, ids), before)


def expected(router, logits_TE, weights, indices, expert, action):
    """The definition, token by token: [{expert: weight}]."""
    sigmoid = hasattr(router, "e_score_correction_bias")
    scores = logits_TE.float().sigmoid() if sigmoid else logits_TE.float().softmax(-1)
    rank = scores + router.e_score_correction_bias if sigmoid else scores
    result = []
    for token in range(len(indices)):
        chosen = indices[token].tolist()
        total = float(weights[token].sum())
        if action == "off" and expert in chosen:
            others = [e for e in range(len(rank[token])) if e not in chosen]
            chosen[chosen.index(expert)] = max(others, key=lambda e: float(rank[token, e]))
        elif action == "force" and expert not in chosen:
            chosen[chosen.index(min(chosen, key=lambda e: float(rank[token, e])))] = expert
        else:
            result.append({e: float(w) for e, w in zip(chosen, weights[token])})
            continue
        whole = sum(float(scores[token, e]) for e in chosen)
        result.append({e: total * float(scores[token, e]) / whole for e in chosen})
    return result


@pytest.mark.parametrize("action", ["off", "force"])
def test_the_choice_is_the_definition_and_is_what_is_recorded(mixture, tokenizer, action):
    ids = tokenizer(TEXT)["input_ids"]
    layer = max(routers(mixture))
    trace(mixture, tokenizer, ids)  # the recording hooks come first, and still see the changed choice
    _, before = router_call(mixture, layer, ids)
    for expert in range(before[0].shape[-1]):
        with intervened(mixture, [Intervention(expert, action, layer)]):
            routing = trace(mixture, tokenizer, ids).routing[-1]
        expected_TK = expected(routers(mixture)[layer], *before, expert, action)
        for weights, indices, want in zip(routing.weights, routing.indices, expected_TK):
            assert dict(zip(indices.tolist(), weights.tolist())) == pytest.approx(want, rel=1e-4)
        assert (routing.indices == expert).any(-1).float().mean() == (0 if action == "off" else 1)


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "gpt_oss", "olmoe", "deepseek_v3"])
def test_off_is_the_routers_own_choice_with_that_expert_masked(name, tokenizer):
    """Routers without groups that renormalise: their formula, with the expert's score at minus infinity."""
    config = families()[name]
    config.norm_topk_prob, config.n_group, config.topk_group = True, 1, 1
    torch.manual_seed(1)
    mixture = AutoModelForCausalLM.from_config(config).eval()
    layer = max(routers(mixture))
    router = routers(mixture)[layer]
    with torch.no_grad():
        router.weight.normal_(0, 0.5)
    ids = tokenizer(TEXT)["input_ids"][1:]  # the first one's embedding is 0: all scores are the same
    _, (raw, _, before) = router_call(mixture, layer, ids)
    _, (_, weights, indices) = router_call(mixture, layer, ids, [Intervention(2, "off", layer)])
    masked = raw.float().clone()
    masked[:, 2] = -torch.inf
    scores = masked.sigmoid() if name == "deepseek_v3" else masked.softmax(-1)
    want, chosen = scores.topk(indices.shape[-1], -1)
    want = want / want.sum(-1, keepdim=True) * getattr(config, "routed_scaling_factor", 1.0)
    assert (before == 2).any() and not (indices == 2).any()
    order, other = indices.argsort(-1), chosen.argsort(-1)
    assert torch.equal(indices.gather(-1, order), chosen.gather(-1, other))
    torch.testing.assert_close(weights.gather(-1, order).float(), want.gather(-1, other), atol=1e-5, rtol=1e-4)


def test_at_every_layer_and_several_at_once(model, tokenizer):
    with intervened(model, [Intervention(0, "off"), Intervention(1, "off", 2), Intervention(5, "force", 1)]):
        first, second = trace(model, tokenizer, TEXT).routing
    assert not (first.indices == 0).any() and not (second.indices <= 1).any()
    assert (first.indices == 5).any(-1).all() and not (second.indices == 5).any(-1).all()
    with intervened(model, [Intervention(e, "off") for e in range(6)]):
        for layer in trace(model, tokenizer, TEXT).routing:
            assert sorted({*layer.indices.flatten().tolist()}) == [6, 7]
    with intervened(model, [Intervention(3, "force"), Intervention(4, "force")]):
        for layer in trace(model, tokenizer, TEXT).routing:
            assert layer.indices.sort(-1).values.tolist() == [[3, 4]] * len(layer.indices)


def test_interventions_at_once_never_mix(model, tokenizer):
    """Eight threads, each with another expert off or none, on a model that was never used."""
    shared = copy.deepcopy(model)
    params = SamplingParams(seed=3, max_new_tokens=12)
    plans = [[]] + [[Intervention(expert, "off")] for expert in range(7)]
    samples, barrier = [None] * 8, threading.Barrier(8)

    def work(index):
        barrier.wait()
        samples[index] = list(stream(shared, tokenizer, TEXT, params, interventions=plans[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for index, tokens in enumerate(samples):
        alone = list(stream(model, tokenizer, TEXT, params, interventions=plans[index]))
        assert [token.id for token in tokens] == [token.id for token in alone]
        used = {e for token in tokens for to in token.experts.values() for e, _ in to}
        assert index == 0 or index - 1 not in used
    assert [t.id for t in samples[0]] == [t.id for t in stream(model, tokenizer, TEXT, params)]
    assert len({tuple(token.id for token in tokens) for tokens in samples}) > 1


def test_two_requests_in_turn_in_one_thread(model, tokenizer):
    params = SamplingParams(temperature=0, max_new_tokens=10)
    plain = [token.id for token in stream(model, tokenizer, TEXT, params)]
    changed = [token.id for token in stream(model, tokenizer, TEXT, params, interventions=[Intervention(1, "force")])]
    streams = [stream(model, tokenizer, TEXT, params, interventions=each) for each in ([], [Intervention(1, "force")])]
    pairs = zip(*streams)
    ids_a, ids_b = zip(*[(a.id, b.id) for a, b in pairs])
    assert list(ids_a) == plain and list(ids_b) == changed and plain != changed


def test_decoding_under_interventions_is_the_forward_pass_under_them(model, tokenizer):
    """The decoder adds `router_biases`; the model's own forward has its routers' outputs replaced."""
    changes = [Intervention(1, "off"), Intervention(2, "force", 1), Intervention(5, "off", 2)]
    tokens = list(
        stream(model, tokenizer, TEXT, SamplingParams(temperature=0, max_new_tokens=12), interventions=changes)
    )
    ids = tokenizer(TEXT)["input_ids"] + [token.id for token in tokens]
    with intervened(model, changes):
        traced = trace(model, tokenizer, ids)
    choices = traced.lens().choices[-1]
    assert choices[-len(tokens) - 1 : -1].tolist() == [token.id for token in tokens]
    for layer in traced.routing:
        ours = [token.experts[layer.layer] for token in tokens]
        assert [[e for e, _ in chosen] for chosen in ours] == layer.indices[-len(tokens) :].tolist()
        weights = torch.tensor([[w for _, w in chosen] for chosen in ours])
        assert torch.allclose(weights, layer.weights[-len(tokens) :], atol=1e-5)


def test_ablation_effects_are_the_differences_of_two_passes(model, tokenizer):
    effects = {(layer, expert): effect for layer, expert, effect in ablation_effects(model, tokenizer, TEXT)}
    assert set(effects) == {(layer, expert) for layer in (1, 2) for expert in range(8)}

    def loss():
        return -torch.tensor(trace(model, tokenizer, TEXT).probabilities[1:]).log().mean().item()

    baseline = loss()
    for (layer, expert), effect in effects.items():
        with intervened(model, [Intervention(expert, "off", layer)]):
            assert effect == pytest.approx(loss() - baseline, abs=2e-5)
    assert any(abs(effect) > 1e-3 for effect in effects.values())
    assert {layer for layer, *_ in ablation_effects(model, tokenizer, TEXT, [2])} == {2}


@pytest.mark.parametrize(
    "changes, refusal",
    [
        ([Intervention(8, "off")], "expert is 8; it must be from 0 to 7"),
        ([Intervention(-1, "off")], "expert is -1; it must be from 0 to 7"),
        ([Intervention(1.5, "off")], "expert is 1.5; it must be"),
        ([Intervention(1, "dim")], "action is 'dim'; it must be one of off, force"),
        ([Intervention(1, ["off"])], r"action is \['off'\]; it must be one of off, force"),
        ([Intervention(1, "off", 0)], "layer is 0; it must be one with experts: 1, 2"),
        ([Intervention(1, "off"), Intervention(1, "force", 2)], "expert 1 is switched off and forced at once"),
        (
            [Intervention(e, "off") for e in range(7)],
            "layer 1 has 7 experts off and 0 forced; it must be at most 6 and 2",
        ),
        ([Intervention(e, "force") for e in range(3)], "layer 1 has 0 experts off and 3 forced"),
    ],
)
def test_an_impossible_intervention_is_refused(model, changes, refusal):
    with pytest.raises(ValueError, match=f"^{refusal}"), intervened(model, changes):
        raise AssertionError


def test_a_dense_model_has_no_interventions(llama, tokenizer):
    with pytest.raises(ValueError, match="this model has no experts"), intervened(llama, [Intervention(0, "off")]):
        raise AssertionError
    assert list(ablation_effects(llama, tokenizer, TEXT)) == []


def test_one_token_has_no_loss(model, tokenizer):
    with pytest.raises(ValueError, match="^text has 1 token"):
        list(ablation_effects(model, tokenizer, [5]))
