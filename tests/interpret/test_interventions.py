"""Experts ablated, forced and steered, against the definitions of six families' routers; test_families.py has all."""

import copy
import threading

import pytest
import torch
from small import families
from transformers import AutoModelForCausalLM

from deepseek import SamplingParams, stream, trace
from deepseek.interpret.interventions import Intervention, intervened, parse_intervention, parse_interventions
from deepseek.interpret.moe_layers import moe_layers

TEXT = "Once upon a time a fox ran over the hill"
FAMILIES = ["mixtral", "olmoe", "qwen3", "deepseek_v2", "deepseek_v3", "gpt_oss"]


@pytest.fixture(params=["ours", *FAMILIES])
def mixture(request, model):
    """Ours and six families, with a router bias that decides who is chosen where there is one."""
    if request.param == "ours":
        return model
    torch.manual_seed(0)
    mixture = AutoModelForCausalLM.from_config(families()[request.param]).eval()
    for layer in moe_layers(mixture).values():
        router = layer.router
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
    hook = moe_layers(model)[layer].router.register_forward_hook(
        lambda _, inputs, output: calls.append((inputs[0], output))
    )
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


def expected(name, config, router, logits_TE, expert, action):
    """The router's rule from its paper, with the expert ranked last or first: [{expert: weight}]."""
    logits_TE, is_sigmoid = logits_TE.float(), hasattr(router, "e_score_correction_bias")
    scores_TE = logits_TE.sigmoid() if is_sigmoid else logits_TE.softmax(-1)
    rank_TE = scores_TE + router.e_score_correction_bias if is_sigmoid else scores_TE.clone()
    rank_TE[:, expert] = -torch.inf if action == "off" else torch.inf
    if is_sigmoid and config.n_group > 1:
        groups_TGE = rank_TE.unflatten(-1, (config.n_group, -1))
        best_TG = groups_TGE.topk(2).values.sum(-1).topk(config.topk_group).indices
        outside_TG = torch.ones_like(groups_TGE[..., 0], dtype=torch.bool).scatter(-1, best_TG, False)
        rank_TE = groups_TGE.masked_fill(outside_TG[..., None], -torch.inf).flatten(-2)
    indices_TK = rank_TE.topk(config.num_experts_per_tok).indices
    weights_TK = scores_TE.gather(-1, indices_TK)
    if name in ("mixtral", "gpt_oss") or is_sigmoid and config.norm_topk_prob:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    weights_TK = weights_TK * getattr(config, "routed_scaling_factor", 1.0)
    return [dict(zip(*pair)) for pair in zip(indices_TK.tolist(), weights_TK.tolist())]


@pytest.mark.parametrize("action", ["off", "force"])
def test_the_choice_is_the_definition_and_is_what_is_recorded(mixture, tokenizer, action):
    ids = tokenizer(TEXT)["input_ids"][1:]  # the first one's embedding is 0: all scores are the same
    layer, config = max(moe_layers(mixture)), mixture.config
    trace(mixture, tokenizer, ids)  # the recording hooks come first, and still see the changed choice
    _, (logits_TE, *_) = router_call(mixture, layer, ids)
    for expert in range(logits_TE.shape[-1]):
        with intervened(mixture, [Intervention(expert, action, layer)]):
            routing = trace(mixture, tokenizer, ids).routing[-1]
        want = expected(config.model_type, config, moe_layers(mixture)[layer].router, logits_TE, expert, action)
        for weights, indices, pairs in zip(routing.weights, routing.indices, want):
            assert dict(zip(indices.tolist(), weights.tolist())) == pytest.approx(pairs, rel=1e-4)
        assert (routing.indices == expert).any(-1).float().mean() == (0 if action == "off" else 1)


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
    """The decoder adds `router_biases` to its ranks; the model's own forward runs under a watch over its routers."""
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


def test_decoding_under_steering_is_the_forward_pass_under_it(model, tokenizer):
    """The kernels add offsets to scores and ranks; the model's own forward runs under a watch over its routers."""
    changes = [
        Intervention(1, "promote", 1, 0.6), Intervention(2, "promote"), Intervention(5, "suppress", strength=0.3),
        Intervention(0, "suppress", 2), Intervention(4, "off", 1), Intervention(3, "promote"), Intervention(6, "promote"),
    ]  # fmt: skip
    params = SamplingParams(temperature=0, max_new_tokens=12)
    tokens = list(stream(model, tokenizer, TEXT, params, interventions=changes))
    ids = tokenizer(TEXT)["input_ids"] + [token.id for token in tokens]
    with intervened(model, changes):
        traced = trace(model, tokenizer, ids)
    for layer in traced.routing:
        ours = [token.experts[layer.layer] for token in tokens]
        weights = torch.tensor([[w for _, w in chosen] for chosen in ours])
        assert torch.allclose(weights, layer.weights[-len(tokens) :], atol=1e-5)
        assert [{e for e, _ in chosen} for chosen in ours] == [{*row} for row in layer.indices[-len(tokens) :].tolist()]
        assert {*layer.indices.flatten().tolist()} <= {2, 3, 6}  # three promoted above all: their own scores decide


def test_a_text_names_an_intervention_and_a_list_any_number():
    changes = [Intervention(3, "off"), Intervention(0, "force", 2), Intervention(17, "promote", 4, 0.5)]
    texts = ["off 3", "force 0@2", "promote 17@4 0.5"]
    assert list(map(str, changes)) == texts and [parse_intervention(text) for text in texts] == changes
    dicts = [{"expert": 3, "action": "off"}, {"expert": 0, "action": "force", "layer": 2}]
    assert parse_interventions(dicts) == changes[:2]
    assert (
        parse_interventions(texts) == parse_interventions("\n\n".join(texts)) == parse_interventions(changes) == changes
    )
    assert parse_interventions([]) == parse_interventions("") == []


@pytest.mark.parametrize(
    "value, refusal",
    [
        ("dim 3", "intervention is 'dim 3'; it must be an action"),
        ("off", "intervention is 'off'"),
        ("promote 3 1.2.3", "strength is '1.2.3'; it must be a number"),
        (5, "interventions are 5; they must be a list"),
        ([{"expert": "a", "action": "off"}], "interventions are "),
        ([{"expert": True, "action": "off"}], "interventions are "),
        ([{"expert": 1, "action": "off", "nope": 2}], "interventions are "),
    ],
)
def test_what_names_no_intervention_is_refused(value, refusal):
    with pytest.raises(ValueError, match=f"^{refusal}"):
        parse_interventions(value)


@pytest.mark.parametrize(
    "changes, refusal",
    [
        ([Intervention(8, "off")], "expert is 8; it must be from 0 to 7"),
        ([Intervention(-1, "off")], "expert is -1; it must be from 0 to 7"),
        ([Intervention(1.5, "off")], "expert is 1.5; it must be"),
        ([Intervention(1, "dim")], "action is 'dim'; it must be one of off, force, promote, suppress"),
        ([Intervention(1, ["off"])], r"action is \['off'\]; it must be one of off, force"),
        ([Intervention(1, "off", 0)], "layer is 0; it must be one with experts: 1, 2"),
        ([Intervention(1, "off"), Intervention(1, "force", 2)], "expert 1 is switched off and forced at once"),
        (
            [Intervention(1, "promote", strength=0.5), Intervention(1, "suppress", 2)],
            "expert 1 is promoted by 0.5 and suppressed at once",
        ),
        ([Intervention(1, "promote", strength=1.5)], "strength is 1.5; it must be a number above 0, at most 1"),
        ([Intervention(1, "promote", strength="a")], "strength is 'a'; it must be a number"),
        ([Intervention(1, "suppress", strength=float("nan"))], "strength is nan; it must be a number"),
        ([Intervention(1, "off", strength=0.5)], "strength is 0.5; it must be 1, as off has no other"),
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
    with (
        pytest.raises(ValueError, match="This model is dense: it has no experts"),
        intervened(llama, [Intervention(0, "off")]),
    ):
        raise AssertionError
