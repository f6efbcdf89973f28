"""One token's way through the whole model, as numbers: what the page's Walk draws, for any transformers causal model.

Shape letters: T tokens, D hidden width, E experts, R rotary width.
"""

from collections.abc import Iterator

import torch

from deepseek.interpret.kv_cache import cache_elements
from deepseek.interpret.model_parts import decoder, decoder_layers
from deepseek.interpret.moe_layers import moe_layers
from deepseek.interpret.residual_stream import Addition
from deepseek.interpret.trace import MAX_ATTENTION_TOKENS, Routing, Trace
from deepseek.model.mla import apply_rotary_emb

NUM_LENS_TOKENS = 3


@torch.inference_mode()
def walk(trace: Trace, position: int) -> dict:
    """What the model did with the token at `position`, from 0, layer by layer, down to the token it predicts next.

    JSON's types. `norm` is a Euclidean norm, `cosine` the one between the residual stream before and after an addition.

    - `position`, `id`, `token`; `next`, {"id", "token"} that the text goes on with, or None at its end.
    - `embedding`: {"norm", "lens"} of the residual stream before the first layer.
    - `layers`, a row a layer:
        - `layer`; `input_norm` and `output_norm` of the residual stream, and the `cosine` between the two.
        - `attention`: {"weights" (heads x tokens up to this one), "added" as below}.
        - `latent`: {"query", "key_value", "rotary_key"}: what latent attention (DeepSeek-V2, section 2.1) computes of the
          token, each {"width", "norm", "values"}: c_q and c_kv after their norms, and the rotated key, its pairs in halves.
          `query` is None without a query projection of low rank; `latent` is None for other attention.
        - `cache`: {"elements", "bytes", "full_elements", "full_bytes"}: what the layer caches of a token, and what the same
          heads would cache as keys and values.
        - `router`: {"scoring" ("sigmoid", "softmax" or "other"), "scores" (of every expert), "bias" (of every expert, added
          to the scores to choose, not to weigh; None without one), "chosen": [{"expert", "weight"}], the largest weight
          first, "runner_up": the best-ranked expert not chosen, or None}. None for a dense layer.
        - `feed_forward`: {"added" as below, "routed_norm", "shared_norm": of what routed and shared experts add}.
        - `lens`: the logit lens (nostalgebraist, 2020) of the layer's output, [{"id", "token", "probability"}], top three.
        - `lacks`: sentences on what this layer does not have, or what was not found in it.
    - `added`: {"norm" of what is added, "residual_norm" of the residual stream after it, "cosine"}, or None if not found.
    - `final_norm`: {"norm"} of the residual stream behind the final norm.
    - `logits`: the ten largest, [{"id", "token", "logit", "probability"}].

    Raises ValueError for a position outside the text.
    """
    if type(position) is not int or position not in range(len(trace.ids)):
        raise ValueError(f"position is {position!r:.40}; it must be a whole number from 0 to {len(trace.ids) - 1}.")
    lens, top = _lens(trace, position), trace.top_logits
    routing = {entry.layer: entry for entry in trace.routing}
    rows = []
    for index, module in enumerate(decoder_layers(trace.model)):
        row = _layer(trace, position, index, module)
        row["router"] = _router(routing[index], module, position) if index in routing else None
        row["lens"] = lens[index + 1]
        row["lacks"] = list(_lacks(row, module))
        rows.append(row)
    is_last = position + 1 == len(trace.ids)
    return {
        "position": position,
        "id": trace.ids[position],
        "token": trace.tokens[position],
        "next": None if is_last else {"id": trace.ids[position + 1], "token": trace.tokens[position + 1]},
        "embedding": {"norm": _norm(trace.hidden_states[0][0, position]), "lens": lens[0]},
        "layers": rows,
        "final_norm": {"norm": _norm(trace.hidden_states[-1][0, position])},
        "logits": [
            {"id": token, "token": trace.tokenizer.decode([token]), "logit": logit, "probability": probability}
            for token, logit, probability in zip(
                *(column[position].tolist() for column in (top.ids, top.logits, top.probabilities))
            )
        ],
    }


def _lens(trace: Trace, position: int) -> list[list[dict]]:
    """The likeliest next tokens after the embedding and after each layer."""
    rows = trace.lens_logits(slice(position, position + 1), NUM_LENS_TOKENS)
    return [
        [
            {"id": token, "token": trace.tokenizer.decode([token]), "probability": probability}
            for token, probability in zip(row.ids[0].tolist(), row.probabilities[0].tolist())
        ]
        for row in rows
    ]


def _layer(trace: Trace, position: int, index: int, module) -> dict:
    """A layer's row without what the router and the lens give."""
    residual = trace.residual_stream[index]
    own, full = cache_elements(trace.model)[index]
    itemsize = trace.model.dtype.itemsize
    return {
        "layer": index,
        "input_norm": _at(residual.input_norm, position),
        "output_norm": _at(residual.output_norm, position),
        "cosine": _at(residual.cosine, position),
        "attention": {
            "weights": _attention_weights(trace, position, index),
            "added": _added(residual.attention, position),
        },
        "latent": _latent(trace, position, index, module),
        "cache": dict(elements=own, bytes=own * itemsize, full_elements=full, full_bytes=full * itemsize),
        "feed_forward": {
            "added": _added(residual.feed_forward, position),
            "routed_norm": _at(residual.routed_norm, position),
            "shared_norm": _at(residual.shared_norm, position),
        },
    }


def _lacks(row: dict, module) -> Iterator[str]:
    """Sentences on what a layer does not have, or what was not found in it."""
    if row["attention"]["weights"] is None:
        yield "No attention weights: this layer mixes its tokens in another way, or attends to blocks of them."
    if row["latent"] is None:
        yield "No latent attention: the keys and values of every head are cached."
    elif row["latent"]["query"] is None:
        yield "No latent query: queries come straight from the normed residual stream."
    if row["attention"]["added"] is None:
        yield "Not two additions: no two parts of this layer add up to what it changes in the residual stream."
    if row["router"]:
        if row["attention"]["added"] and row["feed_forward"]["shared_norm"] is None:
            yield "No shared expert, or none whose output is added as it is."
    elif any(name.endswith("experts") for name, _ in module.named_modules()):
        yield "No routing: this layer does not tell which experts it runs."
    else:
        yield "No experts: the feed-forward network is dense, every token runs all of it."


def _norm(values_D: torch.Tensor) -> float:
    return values_D.float().norm().item()


def _at(values_T: torch.Tensor | None, position: int) -> float | None:
    return None if values_T is None else values_T[position].item()


def _added(addition: Addition | None, position: int) -> dict | None:
    names = ("norm", "residual_norm", "cosine")
    return addition and {name: _at(getattr(addition, name), position) for name in names}


def _attention_weights(trace: Trace, position: int, layer: int) -> list[list[float]] | None:
    """(heads, tokens up to this one). Where one attention() call may hold the text, it is asked for whole: once for all."""
    whole = len(trace.ids) <= MAX_ATTENTION_TOKENS
    first, last = (0, len(trace.ids)) if whole else (position, position + 1)
    try:
        return trace.attention(layer, first, last)[:, position - first, : position + 1].tolist()
    except ValueError:  # a layer without attention
        return None


def _latent(trace: Trace, position: int, index: int, module) -> dict | None:
    """The latents of the token in a layer, by the layer's own modules; None for other than latent attention."""
    attention = getattr(module, "self_attn", None)
    if not hasattr(attention, "kv_a_proj_with_mqa"):
        return None
    rotary, state_D = getattr(decoder(trace.model), "rotary_emb", None), trace.hidden_states[index][0, position]
    if state_D.dim() > 1 or not hasattr(rotary, "inv_freq"):  # several residual streams, or several rotations
        return None
    config, hidden_D = trace.model.config.get_text_config(), module.input_layernorm(state_D)
    latent = attention.kv_a_layernorm.weight.numel()
    key_value, key_R = attention.kv_a_proj_with_mqa(hidden_D).tensor_split([latent], -1)
    angles = position * rotary.inv_freq.float()
    cos, sin = (part * getattr(rotary, "attention_scaling", 1.0) for part in (angles.cos(), angles.sin()))
    has_latent_query = getattr(attention, "q_a_proj", None) is not None
    return {
        "query": _vector(attention.q_a_layernorm(attention.q_a_proj(hidden_D))) if has_latent_query else None,
        "key_value": _vector(attention.kv_a_layernorm(key_value)),
        "rotary_key": _vector(apply_rotary_emb(key_R.float(), cos, sin, getattr(config, "rope_interleave", True))),
    }


def _vector(values_D: torch.Tensor) -> dict:
    return {"width": len(values_D), "norm": _norm(values_D), "values": values_D.float().tolist()}


def _router(routing: Routing, module, position: int) -> dict:
    biases = (value for name, value in module.named_buffers() if name.endswith("e_score_correction_bias"))
    bias_E, chosen_K = next(biases, None), routing.indices[position]
    weights = routing.weights[position].tolist()
    others_E = routing.ranks[position].scatter(0, chosen_K, -torch.inf)
    return {
        "scoring": routing.scoring or "other",
        "scores": routing.scores[position].tolist(),
        "bias": None if bias_E is None else bias_E.tolist(),
        "chosen": [{"expert": expert, "weight": weight} for expert, weight in zip(chosen_K.tolist(), weights)],
        "runner_up": others_E.argmax().item() if len(chosen_K) < routing.num_experts else None,
    }


def matrix_row(model, of: str, index: int, layer: int | None = None) -> dict:
    """A row of one of the matrices that a walk meets: {"name" of the tensor, "row", "norm", "values" (hidden width)}.

    `of` is "embedding" (`index` is a token's id), "output" (likewise) or "router" (`index` is an expert of `layer`).
    Raises ValueError for a row that the model does not have.
    """
    modules = {
        "embedding": model.get_input_embeddings(),
        "output": model.get_output_embeddings(),
        "router": getattr(moe_layers(model).get(layer), "router", None),
    }
    if of not in list(modules):  # which allows what cannot be hashed
        raise ValueError(f"of is {of!r:.40}; it must be one of {', '.join(modules)}.")
    weight = getattr(modules[of], "weight", None)
    if weight is None:
        raise ValueError(f"layer is {layer!r:.40}; it must be one with experts.")
    if type(index) is not int or index not in range(len(weight)):
        raise ValueError(f"index is {index!r:.40}; it must be from 0 to {len(weight) - 1}.")
    name = next(name for name, parameter in model.named_parameters() if parameter is weight)
    return {"name": name, "row": index, "norm": _norm(weight[index]), "values": weight[index].float().tolist()}
