"""What the endpoints answer with: generations, traces, importance, steering and prefix trees as JSON."""

from dataclasses import asdict
from statistics import fmean

from deepseek.inference.sweep import SharedTokens
from deepseek.inference.why_not import why_not
from deepseek.interpret import importance, routing_stats, steering
from deepseek.interpret.trace import Routing, Trace
from deepseek.model import load_balancing
from deepseek.ui.components.found_experts import find_experts
from deepseek.ui.components.traces import knocked_out, within_deadline
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import Generation


def generation_json(generation: Generation, traces: bool, probed: list[int]) -> dict:
    """A Generation as JSON; once it has ended also with prompt, ids, `traces` and what became of the `probed` ids."""
    answer = {
        "text": generation.output,
        "tokens": len(generation.tokens),
        "seconds": round(generation.seconds, 3),
        "seed": generation.params.seed,
        "finish_reason": generation.finish_reason,
    }
    if generation.finish_reason:
        answer |= {"prompt": generation.prompt, "ids": list(generation.ids)}
        if traces:
            answer["traces"] = [token.as_dict() for token in generation.tokens]
        if probed:
            tokens, forced = enumerate(generation.tokens), generation.forced_tokens
            answer["why_not"] = [why_not(token, probed, index in forced) for index, token in tokens]
    return answer


def trace_json(trace: Trace) -> dict:
    """A Trace as JSON, without the attention."""
    layers = []
    for layer, counts in zip(trace.routing, routing_stats.expert_counts(trace.routing)):
        ratios = routing_stats.co_activation(layer).tolist()
        layers.append(
            {
                "layer": layer.layer,
                "indices": layer.indices.tolist(),
                "weights": layer.weights.tolist(),
                "load": load_balancing.load_shares(counts).tolist(),
                "max_violation": float(load_balancing.max_violation(counts)),
                "kl": routing_stats.soft_kl(layer),
                "vocabulary_specialization": routing_stats.vocabulary_specialization(trace.tokens, layer),
                "co_activation": [[None if ratio != ratio else ratio for ratio in row] for row in ratios],
            }
        )
    lens, cache = trace.lens(), trace.cache()
    return {
        "ids": trace.ids,
        "tokens": trace.tokens,
        "probabilities": trace.probabilities,
        "routing": layers,
        "transitions": routing_stats.transitions(trace.routing),
        "lens": {
            "choices": lens.choices.tolist(),
            "texts": lens.texts,
            "probabilities": lens.probabilities.tolist(),
            "first_match_layer": lens.first_match_layer,
        },
        "cache": {
            "bytes": cache.bytes,
            "uncompressed": cache.uncompressed,
            "raw_norms": None if cache.raw_norms is None else cache.raw_norms.tolist(),
            "kept_norms": None if cache.cached_norms is None else cache.cached_norms.tolist(),
        },
    }


def tree_json(node: SharedTokens) -> dict:
    """A prefix tree of outputs as JSON."""
    return {
        "samples": node.samples,
        "position": node.position,
        "text": "".join(token.text for token in node.tokens),
        "children": [tree_json(child) for child in node.children],
    }


def routing_difference(a: list[Routing], b: list[Routing]) -> dict:
    """Jensen-Shannon divergence of two texts' expert loads per layer, in bits, beside the permutation baseline."""
    divergences = routing_stats.layer_divergences(a, b)
    baseline = routing_stats.permutation_baseline(a, b)
    return {"divergence": divergences, "mean": fmean(divergences), "permutation_baseline": baseline}


def importance_json(model, tokenizer, text) -> dict:
    """The importance of every expert for a text as JSON. Raises gr.Error."""
    layers = importance.ranked_layers(model)
    outs = list(knocked_out(model, tokenizer, text, layers))
    order = [(each.layer, each.expert) for each in sorted(outs, key=lambda each: -each.loss_change)]
    steps = {
        "top_disabled": importance.top_disabled(model, tokenizer, text),
        "cumulative": importance.cumulative(model, tokenizer, text, order),
        "runner_ups": importance.runner_ups(model, tokenizer, text),
    }
    answer = {"knock_outs": [asdict(each) | {"kl": each.mean_kl, "kl_T": each.kl_T.tolist()} for each in outs]}
    for name, each in steps.items():
        answer[name] = [asdict(step) for step in within_deadline(each, text, name.replace("_", " "))]
    for row in answer["runner_ups"]:
        row["kl_T"] = row["kl_T"].tolist()
    return answer


def steering_json(model, tokenizer, texts_a, texts_b, count: int, strength: float) -> dict:
    """The experts that two lists of texts use differently and what steering by them does, as JSON. Raises gr.Error."""
    with user_errors():
        for name, texts in (("texts_a", texts_a), ("texts_b", texts_b)):
            if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
                raise ValueError(f"{name} are {texts!r:.60}; they must be a list of texts.")
        found = find_experts(model, tokenizer, {"A": "\n".join(texts_a), "B": "\n".join(texts_b)})
        interventions = steering.steering(found.differences, count, strength)
        effects = {
            name.lower(): asdict(steering.measure_effect(model, tokenizer, texts, interventions))
            for name, texts in found.held_out.items()
        }
    return {
        "differences": [asdict(each) | {"difference": each.difference} for each in found.differences],
        "verdict": steering.verdict(found.differences),
        "interventions": [asdict(each) for each in interventions],
        "effect": effects,
    }
