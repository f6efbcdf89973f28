"""What the model would have predicted after a token if one of its experts had not run, in one layer, for this token alone."""

from contextlib import nullcontext

import torch

from deepseek.interpret.moe_layers import RanExperts, biased_experts, recorded_experts, replaced_experts
from deepseek.interpret.trace import Trace
from deepseek.model.deepseek_v3 import COMPUTE_BOUND_TOKENS

NUM_WORDS = 8
ACTIONS = ("off", "runner-up")


@torch.inference_mode()
def what_if(trace: Trace, position: int, layer: int, expert: int, action: str) -> dict:
    """The next-token distribution after the token at `position` before and after a change of its routing in `layer`.

    `expert` is one that the token chose there. "off": it does not run, nothing takes its place, the other weights stay.
    "runner-up": the router chooses with that expert barred, as `Intervention` has it.

    Returns {"kl": KL(before || after) in nats (Kullback and Leibler, 1951), "chosen": the experts that ran, [{"expert",
    "weight"}], and three lists of {"id", "token", "before", "after"} with probabilities: "before" and "after", the most
    likely next tokens of each, and "moved", those whose probability changed most}. Two or three forward passes over the text.

    Raises ValueError for a position, layer, expert or action that this text and model do not have, and for a model whose
    experts are given sorted tokens.
    """
    if type(position) is not int or position not in range(len(trace.ids)):
        raise ValueError(f"position is {position!r:.40}; it must be a whole number from 0 to {len(trace.ids) - 1}.")
    routing = {entry.layer: entry for entry in trace.routing}
    if type(layer) is not int or layer not in routing:
        allowed = (
            f"one with experts: {', '.join(map(str, routing))}" if routing else "one with experts, and there is none"
        )
        raise ValueError(f"layer is {layer!r:.40}; it must be {allowed}.")
    chosen = routing[layer].indices[position].tolist()
    if type(expert) is not int or expert not in chosen:
        raise ValueError(
            f"expert is {expert!r:.40}; it must be one that this token chose: {', '.join(map(str, chosen))}."
        )
    if action not in ACTIONS:
        raise ValueError(f"action is {action!r:.40}; it must be one of {', '.join(ACTIONS)}.")
    if action == "runner-up" and len(chosen) == routing[layer].num_experts:
        raise ValueError("action is 'runner-up'; it must be off: this token chose all experts.")
    before, _ = _next_token(trace, position)
    indices_K, weights_K = routing[layer].indices[position], routing[layer].weights[position]
    if action == "off":
        weights_K = weights_K * (indices_K != expert)
    else:
        bias_E = torch.zeros(routing[layer].num_experts)
        bias_E[expert] = -torch.inf
        _, barred = _next_token(trace, position, biased_experts(trace.model, {layer: bias_E}))
        indices_K, weights_K = barred[layer].indices[position], barred[layer].weights[position]
    replacing = replaced_experts(trace.model, layer, position, indices_K, weights_K)
    after, ran = _next_token(trace, position, replacing)
    if not torch.equal(ran[layer].indices[position], indices_K):
        raise ValueError(
            f"layer is {layer}; the experts of this model sort its tokens first, so those of one cannot be changed."
        )
    kl = torch.where(before > 0, before * (before / after).log(), 0).sum().item()

    def words(order):
        ids = order.topk(min(NUM_WORDS, len(order))).indices.tolist()
        return [
            {
                "id": token,
                "token": trace.tokenizer.decode([token]),
                "before": before[token].item(),
                "after": after[token].item(),
            }
            for token in ids
        ]

    return {
        "kl": max(0.0, kl),  # rounding may leave less
        "chosen": [
            {"expert": expert, "weight": weight}
            for weight, expert in sorted(zip(weights_K.tolist(), indices_K.tolist()), reverse=True)
        ],
        "before": words(before),
        "after": words(after),
        "moved": words((after - before).abs()),
    }


def _next_token(trace: Trace, position: int, change=None) -> tuple[torch.Tensor, dict[int, RanExperts]]:
    """Probabilities of the next token, (vocabulary,) float64, and the experts that ran, in a pass within `change`."""
    # Later tokens have no effect, but a model may run longer texts in another precision: as many tokens as were traced then.
    ids = trace.ids[: max(position + 1, COMPUTE_BOUND_TOKENS)]
    ids_1T = torch.tensor([ids], device=trace.model.device)
    with change or nullcontext(), recorded_experts(trace.model) as ran:
        logits = trace.model(ids_1T, use_cache=False, logits_to_keep=len(ids) - position).logits[0, 0]
    return logits.double().softmax(-1), ran
