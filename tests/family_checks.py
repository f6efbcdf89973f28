"""What the package shows of a model, held to the model itself: `CHECKS` raise AssertionError where the two differ.

What really ran is read from hooks on the experts and attention modules themselves, never from a router's logits.
"""

import copy
import re
from contextlib import contextmanager, nullcontext

import pytest
import torch
from families import EXPERTS, VOCABULARY, without_expert
from transformers import AutoModelForCausalLM

from deepseek import SamplingParams, load, stream, trace
from deepseek.checkpoints.mapped_experts import expert_stacks
from deepseek.checkpoints.memory import LOADING_FACTOR
from deepseek.interpret.interventions import Intervention, intervened
from deepseek.interpret.model_parts import decoder_layers, layer_index, layer_list
from deepseek.interpret.moe_layers import moe_layers, why_no_experts, without_shared_experts

IDS = torch.randint(1, VOCABULARY, (24,), generator=torch.Generator().manual_seed(1)).tolist()
TABLES = {"deepseek_v4"}  # looks up the experts of its first layers by token id
NOT_MAPPED = {"doge", "ernie4_5_vl_moe"}  # the same; and experts of text and images in one list
NOT_GIVEN = {"doge"}  # multiplies by rows of a matrix of experts
NOT_CAUSAL = {"doge"}  # mixes the logits of its tokens in a full pass
ONE_BY_ONE = {"phimoe"}  # weighs each expert against those left
WEIGHS_ITS_OWN = {"inkling_text"}  # number of experts, and no more
SOFTMAX_PLUS_BIAS = {"ernie4_5_moe", "longcat_flash", "zaya"}  # one expert less scales the others' scores, but no bias


@torch.inference_mode()
def logits_of(model, ids=IDS):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


@contextmanager
def hooked(model, hook):
    """Calls `hook(name, module, arguments, output)` for every module of a model."""
    handles = []
    for name, module in model.named_modules():

        def after(module, args, keywords, output, name=name):
            hook(name, module, [*args, *keywords.values()], output)

        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ran_experts(model, ids=IDS) -> dict[int, list[dict[int, float]]]:
    """{layer: for every token {expert: weight}} of a pass, as the experts modules were given them."""
    ran, states = {}, {}

    def note(name, module, inputs, output):
        layer, tensors = layer_index(name.partition("layers.")[2] or name), [x for x in inputs if torch.is_tensor(x)]
        kind = type(module).__name__
        if kind == "Llama4Router":
            states[layer] = tensors[0]
        elif kind == "Llama4TextExperts":  # gets every token for every expert, times its weight, which is 0 for most
            scale_ET = tensors[0].view(module.num_experts, len(ids), -1).norm(dim=-1) / states[layer].norm(dim=-1)
            ran[layer] = [{e: w for e, w in enumerate(column) if w} for column in scale_ET.T.tolist()]
        elif kind == "JetMoeTopKGating" and "mlp" in name:  # sorts the tokens by expert
            _, tokens, weights, sizes, _ = output
            ran[layer] = [{} for _ in ids]
            experts = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).tolist()
            for token, expert, weight in zip(tokens.tolist(), experts, weights.tolist()):
                ran[layer][token][expert] = weight
        elif name.endswith(".experts") and any(not x.is_floating_point() for x in tensors):
            indices = next(x for x in tensors if not x.is_floating_point())
            weights = next(x for x in tensors if x.is_floating_point() and x.shape == indices.shape)
            ran[layer] = [dict(zip(*pair)) for pair in zip(indices.tolist(), weights.tolist())]

    with hooked(model, note):
        logits_of(model, ids)
    return ran


def by_token(routing) -> list[dict[int, float]]:
    return [dict(zip(*pair)) for pair in zip(routing.indices.tolist(), routing.weights.tolist())]


def assert_same(actual, expected, tolerance=1e-5):
    assert len(actual) == len(expected)
    for pairs, other in zip(actual, expected):
        assert pairs == pytest.approx(other, abs=tolerance), f"{pairs} and {other}"


def check_opens(name, model, tokenizer, folder):
    """A folder as transformers saves it opens, with the same logits."""
    model.save_pretrained(folder)
    opened, _ = load(folder, torch.float32)
    torch.testing.assert_close(logits_of(opened), logits_of(model), atol=1e-4, rtol=1e-4)


def check_maps(name, model, tokenizer, folder):
    """With room for half of its experts they stay in the files, and the logits are the same."""
    model.save_pretrained(folder)
    experts = sum(parameter.nbytes for parameter in expert_stacks(model).values())
    size = sum(parameter.nbytes for parameter in model.parameters()) - experts // 2
    mapped, _ = load(folder, torch.float32, max_memory=int(LOADING_FACTOR * size))
    torch.testing.assert_close(logits_of(mapped), logits_of(model), atol=1e-4, rtol=1e-4)
    assert mapped.expert_cache.num_reads


def check_streams(name, model, tokenizer, folder):
    """Greedy tokens are those of full passes without a cache, and each has the experts of every MoE layer."""
    tokens, ids = list(stream(model, tokenizer, IDS, SamplingParams(temperature=0, max_new_tokens=4))), [*IDS]
    for _ in tokens:
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    if name in NOT_CAUSAL:
        options = dict(do_sample=False, max_new_tokens=4, pad_token_id=0, eos_token_id=-1)
        ids = model.generate(torch.tensor([IDS]), **options)[0].tolist()
    assert [token.id for token in tokens] == ids[len(IDS) :]
    assert all(list(token.experts) == list(moe_layers(model)) for token in tokens)


def check_traces(name, model, tokenizer, folder):
    """Experts and weights of every token are those that the experts modules were given; the weights follow the scores."""
    ran, traced = ran_experts(model), trace(model, tokenizer, IDS)
    if name in NOT_GIVEN:
        assert not traced.routing, "traced"
        raise AssertionError(why_no_experts(model))
    assert ran and [routing.layer for routing in traced.routing] == sorted(ran) == list(moe_layers(model))
    for routing in traced.routing:
        assert_same(by_token(routing), ran[routing.layer])
        assert routing.scores.shape == routing.ranks.shape == (len(IDS), routing.num_experts)


def check_intervenes(name, model, tokenizer, folder):
    """With an expert barred the model does what it does when it is built without that expert, weights included."""
    layers = [index for index, layer in moe_layers(model).items() if layer.ranks]
    assert layers, why_no_experts(model)
    if name in SOFTMAX_PLUS_BIAS:
        model = copy.deepcopy(model)
        for key, tensor in [*model.named_buffers(), *model.named_parameters()]:
            tensor.data.mul_(0 if "bias" in key else 1)
    layer, before = layers[0], trace(model, tokenizer, IDS).routing
    before = next(routing for routing in before if routing.layer == layer)
    counts = torch.bincount(before.indices.flatten(), minlength=EXPERTS)
    expert = int(counts[: EXPERTS // 2 if name in TABLES else EXPERTS].argmax())
    smaller = without_expert(model, name, expert)
    expected = [
        {other + (other >= expert): weight for other, weight in pairs.items()} for pairs in ran_experts(smaller)[layer]
    ]
    with intervened(model, [Intervention(expert, "off", layer)]):
        after = next(routing for routing in trace(model, tokenizer, IDS).routing if routing.layer == layer)
        assert_same(ran_experts(model)[layer], by_token(after))
    unused = ~(before.indices == expert).any(-1)
    assert torch.equal(after.indices[unused], before.indices[unused]) and not unused.all()
    sums = [[sum(pairs.values()) or 1 for pairs in side] for side in (by_token(after), expected)]
    normalised = [
        [{e: w / total for e, w in pairs.items()} for pairs, total in zip(side, totals)]
        for side, totals in zip((by_token(after), expected), sums)
    ]
    assert_same(*normalised)
    if sums[0] == pytest.approx(sums[1], abs=1e-4):
        with intervened(model, [Intervention(expert, "off")]):
            torch.testing.assert_close(logits_of(model), logits_of(smaller), atol=2e-4, rtol=1e-4)
    else:  # a softmax over all experts that is not normalised over the chosen ones: scores weigh as they are
        ratio = (before.weights / before.scores.gather(-1, before.indices)).median()
        scores = after.scores.gather(-1, after.indices).where(after.weights > 0, 0)  # zaya's tokens may run none
        torch.testing.assert_close(after.weights, ratio * scores)
    with intervened(model, [Intervention(expert, "force", layer)]):
        forced = next(routing for routing in trace(model, tokenizer, IDS).routing if routing.layer == layer)
    assert (forced.indices == expert).any(-1).all() and forced.weights.isfinite().all()
    for chosen, own in zip(forced.indices.tolist(), before.indices.tolist()):
        assert {*chosen} - {expert} <= {*own}


def check_steers(name, model, tokenizer, folder):
    """At strength 1 every token runs a promoted expert, with the largest weight, and none a suppressed one; a strength
    between them changes how many do. Without its shared experts a layer is what it is with their output matrices at 0, and with a
    routed one in their place every token runs one more."""
    layer = next(index for index, each in moe_layers(model).items() if each.ranks)

    def ran(*interventions):
        with intervened(model, [Intervention(3, *each[:1], layer, *each[1:]) for each in interventions]):
            return ran_experts(model)[layer]

    def count(*interventions):
        return sum(3 in chosen for chosen in ran(*interventions))

    own, promoted = count(), ran(("promote",))
    assert all(3 in chosen for chosen in promoted) and not count(("suppress",))
    for chosen in () if name in ONE_BY_ONE else promoted:
        assert chosen[3] >= max(chosen.values()) - 1e-5
    assert own <= count(("promote", 0.7)) <= count(("promote", 0.95)) and count(("suppress", 0.7)) <= own
    assert count(("promote", 0.95)) > own or own == len(IDS)
    without = copy.deepcopy(model)
    shared = [part for each in moe_layers(without).values() for part in each.shared]
    for part in shared:
        for parameter in part.parameters():
            parameter.data.zero_()
    with without_shared_experts(model, moe_layers(model)):
        changed = logits_of(model)
    torch.testing.assert_close(changed, logits_of(without), atol=1e-5, rtol=1e-4)
    assert not shared or not torch.equal(changed, logits_of(model))
    own, has_shared = ran(), bool(moe_layers(model)[layer].shared)
    refused = pytest.raises(ValueError, match="weighs no more experts") if name in WEIGHS_ITS_OWN else nullcontext()
    with refused, without_shared_experts(model, moe_layers(model), more_routed=1):
        assert [len(chosen) for chosen in ran_experts(model)[layer]] == [len(chosen) + has_shared for chosen in own]


def check_lens(name, model, tokenizer, folder):
    """A row of the lens is what the model predicts when it is cut off behind that layer."""
    lens = trace(model, tokenizer, IDS).lens()
    for row, choices in enumerate(lens.choices):
        cut = copy.deepcopy(model)
        parent, attribute = layer_list(cut)
        setattr(parent, attribute, getattr(parent, attribute)[:row])
        highest = logits_of(cut).softmax(-1).max(-1)
        assert torch.equal(choices, highest.indices)
        torch.testing.assert_close(lens.probabilities[row], highest.values, atol=1e-5, rtol=1e-4)


def check_attention(name, model, tokenizer, folder):
    """Maps are those that the modules of an eager model return; a layer whose modules return none says so."""
    config = copy.deepcopy(model.config)
    eager = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    for (_, buffer), (_, own) in zip(eager.named_buffers(), model.named_buffers()):
        buffer.copy_(own)
    maps = {}

    def note(module_name, module, inputs, output):
        for part in output if isinstance(output, tuple) and re.search("Attention|MLA", type(module).__name__) else ():
            is_map = torch.is_tensor(part) and part.dim() == 4 and part.shape[-2:] == (len(IDS), len(IDS))
            if is_map and (part >= 0).all() and (part.sum(-1) < 1.0001).all():
                layer = layer_index(module_name.partition("layers.")[2] or module_name)
                maps.setdefault(layer, []).append(part[0])

    with hooked(eager, note):
        logits_of(eager)
    traced = trace(model, tokenizer, IDS)
    without = []
    for layer in range(len(decoder_layers(model))):
        if layer in maps:
            expected = torch.cat(maps[layer])
            torch.testing.assert_close(traced.attention(layer), expected, atol=2e-5, rtol=0)
            if name not in NOT_CAUSAL:
                torch.testing.assert_close(traced.attention(layer, 11, 17), expected[:, 11:17, :17], atol=2e-5, rtol=0)
        else:
            without.append(layer)
            with pytest.raises(
                ValueError, match=rf"^layer is {layer}, which (does not compute attention|attends to blocks)"
            ):
                traced.attention(layer)
    assert maps, "no layer has attention"


ALL = check_opens, check_maps, check_streams, check_traces, check_intervenes, check_steers, check_lens, check_attention
CHECKS = {re.sub("^check_", "", check.__name__): check for check in ALL}
SEEING_CHECKS = "opens", "maps", "streams", "traces", "steers", "lens"  # of models that also see or hear
