"""The walk of one token, against the model computed from its tensors alone, and on twelve other architectures."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from small import dense, families
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, GraniteConfig, Olmo2Config

from deepseek.interpret.trace import trace
from deepseek.interpret.walk import matrix_row

TEXT = "Once upon a time a fox 🦊 ran"
POSITION = 9
COMMON = dict(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip


def rms_norm(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x_TR, interleaved_theta):
    """RoFormer's rotation of the pairs (0, 1), (2, 3)... of each row by its position; the pairs' halves side by side."""
    count, width = x_TR.shape[-2:]
    angles = torch.arange(count)[:, None] * interleaved_theta ** -(torch.arange(0, width, 2) / width)
    first, second = x_TR[..., 0::2], x_TR[..., 1::2]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def gated(x, weights, name):
    gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


@torch.no_grad()
def by_hand(model, ids):
    """Every number of the walk of every token, from the state dict and the configuration of our model."""
    weights, config = model.state_dict(), model.config
    heads, nope, rope = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    x = weights["model.embed_tokens.weight"][ids]
    final, head = weights["model.norm.weight"], weights["lm_head.weight"]
    lens = lambda x: (rms_norm(x, final, config.rms_norm_eps) @ head.T).softmax(-1)  # noqa: E731
    layers, embedding = [], (x, lens(x))
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}."
        part = lambda key, name=name: weights[f"{name}{key}.weight"]  # noqa: E731
        h = rms_norm(x, part("input_layernorm"), config.rms_norm_eps)
        c_q = rms_norm(h @ part("self_attn.q_a_proj").T, part("self_attn.q_a_layernorm"))
        q = (c_q @ part("self_attn.q_b_proj").T).view(len(ids), heads, nope + rope).transpose(0, 1)
        latent = h @ part("self_attn.kv_a_proj_with_mqa").T
        c_kv = rms_norm(latent[:, : config.kv_lora_rank], part("self_attn.kv_a_layernorm"))
        key = rotated(latent[:, config.kv_lora_rank :], config.rope_parameters["rope_theta"])
        k_v = (c_kv @ part("self_attn.kv_b_proj").T).view(len(ids), heads, -1).transpose(0, 1)
        scores = q[..., :nope] @ k_v[..., :nope].mT
        scores = scores + rotated(q[..., nope:], config.rope_parameters["rope_theta"]) @ key.T
        causal = torch.full((len(ids), len(ids)), -math.inf).triu(1)
        attention = (scores / math.sqrt(nope + rope) + causal).softmax(-1)
        attended = (attention @ k_v[..., nope:]).transpose(0, 1).flatten(1) @ part("self_attn.o_proj").T
        middle = x + attended
        h = rms_norm(middle, part("post_attention_layernorm"), config.rms_norm_eps)
        row = dict(before=x, attention=attention, middle=middle, c_q=c_q, c_kv=c_kv, key=key)
        if index < config.first_k_dense_replace:
            added = gated(h, weights, name + "mlp")
        else:
            scores = (h @ part("mlp.gate").T).sigmoid()
            bias = weights[name + "mlp.gate.e_score_correction_bias"]
            order = (scores + bias).argsort(-1, descending=True)
            chosen = scores.gather(-1, order[:, : config.num_experts_per_tok])
            chosen = config.routed_scaling_factor * chosen / chosen.sum(-1, keepdim=True)
            gate_up, down = (weights[f"{name}mlp.experts.{kind}_proj"] for kind in ("gate_up", "down"))
            outputs = []
            for expert in range(config.n_routed_experts):
                gate, up = (h @ gate_up[expert].T).chunk(2, -1)
                outputs.append((F.silu(gate) * up) @ down[expert].T)
            outputs = torch.stack(outputs, 1)
            used = outputs.gather(1, order[:, : config.num_experts_per_tok, None].expand(-1, -1, x.shape[1]))
            routed, shared = (chosen[..., None] * used).sum(1), gated(h, weights, name + "mlp.shared_experts")
            added = routed + shared
            row |= dict(scores=scores, bias=bias, order=order, weights=chosen, routed=routed, shared=shared)
        x = middle + added
        layers.append({**row, "after": x, "lens": lens(x)})
    normed = rms_norm(x, final, config.rms_norm_eps)
    return embedding, layers, normed, normed @ head.T


def close(value, abs=1e-4):
    return pytest.approx(value.tolist() if torch.is_tensor(value) else value, abs=abs, rel=1e-4)


def assert_top(entries, probabilities):
    top = probabilities.topk(len(entries))
    assert [entry["id"] for entry in entries] == top.indices.tolist()
    assert [entry["probability"] for entry in entries] == close(top.values)


def assert_added(added, before, after):
    cosine = (before @ after) / (before.norm() * after.norm())
    assert added == close(
        {"norm": (after - before).norm().item(), "residual_norm": after.norm().item(), "cosine": cosine.item()}
    )


@pytest.mark.parametrize("position", [0, POSITION])
def test_every_number_is_that_of_the_models_tensors(model, tokenizer, position):
    traced = trace(model, tokenizer, TEXT)
    walk, p = traced.walk(position), position
    (embedding, first_lens), layers, normed, logits = by_hand(model, traced.ids)
    assert (walk["position"], walk["id"], walk["token"]) == (p, traced.ids[p], traced.tokens[p])
    assert walk["next"] == {"id": traced.ids[p + 1], "token": traced.tokens[p + 1]}
    assert walk["embedding"]["norm"] == close(embedding[p].norm().item())
    assert_top(walk["embedding"]["lens"], first_lens[p])
    for index, (row, true) in enumerate(zip(walk["layers"], layers, strict=True)):
        before, middle, after = true["before"][p], true["middle"][p], true["after"][p]
        assert row["layer"] == index
        assert row["input_norm"] == close(before.norm().item()) and row["output_norm"] == close(after.norm().item())
        assert row["cosine"] == close(F.cosine_similarity(before, after, dim=0).item())
        assert_added(row["attention"]["added"], before, middle)
        assert_added(row["feed_forward"]["added"], middle, after)
        for head, weights in enumerate(row["attention"]["weights"]):
            assert weights == close(true["attention"][head, p, : p + 1])
        for name, key in (("query", "c_q"), ("key_value", "c_kv"), ("rotary_key", "key")):
            vector = true[key][p]
            assert row["latent"][name] == {
                "width": len(vector), "norm": close(vector.norm().item()), "values": close(vector)
            }  # fmt: skip
        assert row["cache"] == dict(elements=16 + 4, bytes=80, full_elements=9 * 16, full_bytes=576)
        assert_top(row["lens"], true["lens"][p])
        if index == 0:
            assert row["router"] is None and row["feed_forward"]["routed_norm"] is None
            assert [lack.split(":")[0] for lack in row["lacks"]] == ["No experts"]
            continue
        chosen, router = true["order"][p, :2], row["router"]
        assert (router["scoring"], router["runner_up"]) == ("sigmoid", true["order"][p, 2].item())
        assert router["scores"] == close(true["scores"][p]) and router["bias"] == close(true["bias"])
        weights = dict(zip(chosen.tolist(), true["weights"][p].tolist()))
        assert {entry["expert"]: entry["weight"] for entry in router["chosen"]} == close(weights)
        assert router["chosen"][0]["weight"] >= router["chosen"][1]["weight"]
        assert row["feed_forward"]["routed_norm"] == close(true["routed"][p].norm().item())
        assert row["feed_forward"]["shared_norm"] == close(true["shared"][p].norm().item())
        assert row["lacks"] == []
    assert walk["final_norm"]["norm"] == close(normed[p].norm().item())
    top = logits[p].topk(10)
    assert [entry["id"] for entry in walk["logits"]] == top.indices.tolist()
    assert [entry["logit"] for entry in walk["logits"]] == close(top.values)
    assert [entry["probability"] for entry in walk["logits"]] == close(logits[p].softmax(-1)[top.indices])
    assert all(entry["token"] == tokenizer.decode([entry["id"]]) for entry in walk["logits"])


@pytest.fixture(params=[*families(), *dense(), "gemma2", "neox", "olmo2"])
def other(request):
    """Eight architectures of other tests, one with norms on both sides of a part, one behind, and one with parallel parts."""
    more = {
        "gemma2": Gemma2Config(**COMMON, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5),
        "neox": GPTNeoXConfig(**COMMON),
        "olmo2": Olmo2Config(**COMMON),
    }
    torch.manual_seed(0)
    return request.param, AutoModelForCausalLM.from_config({**families(), **dense(), **more}[request.param]).eval()


def test_any_model_has_what_it_has_and_says_what_it_lacks(other, tokenizer):
    name, model = other
    traced = trace(model, tokenizer, TEXT)
    walk = json.loads(json.dumps(traced.walk(POSITION)))
    with torch.no_grad():
        output = model(torch.tensor([traced.ids]), output_hidden_states=True)
    logits = output.logits[0, POSITION]
    assert [entry["logit"] for entry in walk["logits"]] == close(logits.topk(10).values)
    assert [entry["probability"] for entry in walk["logits"]] == close(logits.softmax(-1).topk(10).values)
    assert walk["layers"][-1]["lens"][0]["probability"] == walk["logits"][0]["probability"]
    states = [state[0, POSITION] for state in output.hidden_states]
    moe_layers = [entry.layer for entry in traced.routing]
    for row, before, after in zip(walk["layers"], states[:-1], states[1:]):
        is_last = row["layer"] == len(walk["layers"]) - 1
        assert row["input_norm"] == close(before.norm().item())
        if not is_last:  # transformers gives the last one behind the final norm
            assert row["output_norm"] == close(after.norm().item())
            assert row["cosine"] == close(F.cosine_similarity(before, after, dim=0).item())
        assert row["feed_forward"]["added"]["residual_norm"] == close(row["output_norm"])
        assert [sum(weights) for weights in row["attention"]["weights"]] == close([1.0] * 4) or name == "gpt_oss"
        assert (row["latent"] is None) == ("deepseek" not in name)
        assert (row["router"] is not None) == (row["layer"] in moe_layers)
        lacks = " ".join(row["lacks"])
        assert ("No latent attention" in lacks) == (row["latent"] is None)
        assert ("No experts" in lacks) == (row["router"] is None)
        if row["router"]:
            chosen = [entry["expert"] for entry in row["router"]["chosen"]]
            assert row["router"]["runner_up"] not in chosen
            assert row["feed_forward"]["routed_norm"] > 0
            assert ("No shared expert" in lacks) == (row["feed_forward"]["shared_norm"] is None) != ("deepseek" in name)


def test_additions_that_are_not_those_of_the_parts_are_left_out(tokenizer):
    """Granite scales what its parts add."""
    config = GraniteConfig(**COMMON, residual_multiplier=0.5)
    row = trace(AutoModelForCausalLM.from_config(config).eval(), tokenizer, TEXT).walk(POSITION)["layers"][0]
    assert row["attention"]["added"] is row["feed_forward"]["added"] is None and row["output_norm"] > 0
    assert any(lack.startswith("Not two additions") for lack in row["lacks"])


@pytest.mark.parametrize("position", [-1, 99, True, 1.0, "1", None])
def test_a_position_outside_the_text_is_refused(model, tokenizer, position):
    with pytest.raises(ValueError, match=f"^position is {position!r}; it must be a whole number from 0 to"):
        trace(model, tokenizer, TEXT).walk(position)


def test_the_last_token_has_no_next_one(model, tokenizer):
    traced = trace(model, tokenizer, [5])
    walk = traced.walk(0)
    assert walk["next"] is None and walk["layers"][1]["attention"]["weights"] == [[1.0]] * 9


def test_a_matrix_row_is_that_of_the_tensor(model, mixtral):
    weights = model.state_dict()
    for of, index, layer, name in (
        ("embedding", 7, None, "model.embed_tokens.weight"),
        ("output", 7, None, "model.embed_tokens.weight"),  # tied
        ("router", 3, 2, "model.layers.2.mlp.gate.weight"),
    ):
        row = matrix_row(model, of, index, layer)
        assert (row["name"], row["row"]) == (name, index)
        assert row["values"] == close(weights[name][index]) and row["norm"] == close(weights[name][index].norm().item())
    assert matrix_row(mixtral, "output", 7)["name"] == "lm_head.weight"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("embedding", 300, None), "^index is 300; it must be from 0 to 299"),
        (("output", True, None), "^index is True"),
        (("router", 8, 1), "^index is 8; it must be from 0 to 7"),
        (("router", 0, 0), "^layer is 0; it must be one with experts"),
        (("router", 0, None), "^layer is None"),
        (("bias", 0, 1), "^of is 'bias'; it must be one of embedding, output, router"),
        (([], 0, 1), r"^of is \[\]"),
    ],
)
def test_a_row_that_there_is_not_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        matrix_row(model, *arguments)
