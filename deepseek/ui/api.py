"""The named endpoints, for gradio_client and plain HTTP; the page itself does not use them."""

import random
from collections.abc import Iterator

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.interpret import routing_stats
from deepseek.interpret.interventions import Intervention
from deepseek.interpret.trace import Routing, Trace
from deepseek.model import load_balancing
from deepseek.ui.components.text_view import look
from deepseek.ui.errors import user_error
from deepseek.ui.generation import GENERATION_QUEUE, MODEL_QUEUE, first_difference, side_by_side
from deepseek.ui.generation import generate as generate_text
from deepseek.ui.server import model_registry
from deepseek.ui.tabs import compare, compare_domains, intervene, long_text


def as_data(seen: Trace) -> dict:
    """All of a Trace but the attention, as JSON."""
    layers = []
    for layer, counts in zip(seen.routing, routing_stats.expert_counts(seen.routing)):
        layers.append(
            {
                "layer": layer.layer,
                "indices": layer.indices.tolist(),
                "weights": layer.weights.tolist(),
                "load": load_balancing.load_shares(counts).tolist(),
                "max_violation": float(load_balancing.max_violation(counts)),
                "kl": routing_stats.soft_kl(layer),
                "favourites": routing_stats.vocabulary_specialization(seen.tokens, layer),
                "together": [
                    [None if x != x else x for x in row] for row in routing_stats.co_activation(layer).tolist()
                ],
            }
        )
    try:
        lens = seen.lens()
    except ValueError:  # a model whose final norm is not found
        lens = None
    cache = seen.cache()
    return {
        "ids": seen.ids,
        "tokens": seen.tokens,
        "probabilities": seen.probabilities,
        "routing": layers,
        "flow": routing_stats.transitions(seen.routing),
        "lens": lens
        and {
            "choices": lens.choices.tolist(),
            "texts": lens.texts,
            "probabilities": lens.probabilities.tolist(),
            "first_match_layer": lens.first_match_layer,
        },
        "cache": {
            "bytes": cache.bytes,
            "uncompressed": cache.uncompressed,
            "raw_norms": None if cache.raw is None else cache.raw.tolist(),
            "kept_norms": None if cache.kept is None else cache.kept.tolist(),
        },
    }


def compared(one: list[Routing], other: list[Routing]) -> dict:
    """How differently two texts are routed: Jensen-Shannon divergence in bits, layer by layer, and what chance gives."""
    found = routing_stats.layer_divergences(one, other)
    return {
        "divergence": found,
        "mean": compare_domains.mean(found),
        "chance": routing_stats.permutation_baseline(one, other),
    }


def as_changes(given) -> list[Intervention]:
    """Interventions from JSON. Raises ValueError; an expert that the model lacks is refused when it runs."""
    try:
        changes = [Intervention(**one) for one in given]
        if all(isinstance(c.expert, int) and isinstance(c.layer, int | None) for c in changes):
            return changes
    except TypeError:
        pass
    raise ValueError(
        f"changes are {given!r:.60}; they must be a list of expert, action and, but for all layers, layer."
    )


def build(checkpoint: str) -> None:
    """For the page's own `checkpoint`, adds /generate, /trace and /compare to the page under construction."""

    def generate(
        prompt: str,
        temperature: float = 1.0,
        dynamic_temperature: bool = False,
        temperature_min: float = 0.5,
        temperature_max: float = 1.5,
        temperature_exponent: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        no_repeat_ngram_size: int = 0,
        order: str = "transformers",
        repetition_scope: str = "all",
        penalty_scope: str = "output",
        max_new_tokens: int = 128,
        stop: list[str] = [],  # noqa: B006  (read, never changed)
        seed: int = -1,
        traces: bool = False,
        changes: list[dict] = [],  # noqa: B006  (read, never changed)
    ) -> Iterator[dict]:
        """Continues a prompt; streams {"text", "tokens", "seconds", "seed", "finish"} as it grows, and at the end, with
        traces=True, "traces": what happened to each token. The settings are those of SamplingParams; seed -1 draws one.
        Changes are experts switched off or forced, {"expert": 3, "action": "off" or "force", "layer": 2}, without a layer
        in all of them.
        """
        values = {**locals()}
        for name in ("prompt", "traces", "changes", "checkpoint"):
            values.pop(name, None)
        if seed in (-1, None):
            values["seed"] = random.randrange(2**31)
        try:
            if not isinstance(traces, bool):
                raise ValueError(f"traces is {traces!r:.60}; it must be true or false.")
            params, made = SamplingParams(**values), as_changes(changes)
        except ValueError as error:
            raise user_error(error) from error
        for generation in generate_text(*model_registry.get_model(checkpoint), prompt, params, interventions=made):
            last = generation.tokens[-1] if generation.tokens else None
            answer = {
                "text": generation.text[len(prompt) :],
                "tokens": len(generation.tokens),
                "seconds": round(generation.seconds, 3),
                "seed": params.seed,
                "finish": "time" if generation.late else last and last.finish_reason,
            }
            if traces and answer["finish"]:
                answer["traces"] = [token.as_dict() for token in generation.tokens]
            yield answer

    def trace(text: str, attention_layer: int = -1, other: str = "", losses: bool = False) -> dict:
        """What the model does with a text: {"ids", "tokens", "probabilities", "routing": [{"layer", "indices",
        "weights", "load", "max_violation", "kl", "favourites" (an expert: [text, times taken, times there]), "together"
        (experts x experts, 1 is independence)}], "flow": [[layer's place, expert, next layer's expert, tokens]], "lens":
        {"choices", "texts", "probabilities", "first_lead"} (layers + 1 x tokens) or null, "cache": {"bytes",
        "uncompressed", "raw_norms", "kept_norms"} (layers x tokens)}. With attention_layer from 0 on also "attention" (heads x
        tokens x tokens); with another text "compared": {"divergence" (bits, a layer), "mean", "chance"}; with losses
        "loss_change" (layers of experts x experts): nats a token that the text loses with that expert off.
        """
        model, tokenizer = model_registry.get_model(checkpoint)
        layers = model.config.num_hidden_layers
        if isinstance(attention_layer, bool) or attention_layer not in range(-1, layers):
            message = f"attention_layer is {attention_layer!r:.60}; it must be a whole number from -1 to {layers - 1}."
            raise user_error(ValueError(message))
        if not isinstance(other, str):
            raise user_error(ValueError(f"other is {other!r:.60}; it must be text."))
        if not isinstance(losses, bool):
            raise user_error(ValueError(f"losses is {losses!r:.60}; it must be true or false."))
        seen = look(model, tokenizer, text)
        answer = as_data(seen)
        if attention_layer != -1:
            try:
                answer["attention"] = seen.attention(int(attention_layer)).tolist()
            except ValueError as error:
                raise user_error(error) from error
        if other:
            answer["compared"] = seen.routing and compared(
                seen.routing, long_text.read_long_text(model, tokenizer, other).routing
            )
        if losses:
            rows = {}
            for rows in intervene.losses(model, tokenizer, text, [r.layer for r in seen.routing]):  # noqa: B007
                pass
            answer["loss_change"] = list(rows.values())
        return answer

    def compare_texts(prompt: str, a: dict = {}, b: dict = {}, seed: int = 0) -> dict:  # noqa: B006  (read, never changed)
        """One prompt and seed under two settings, each the fields of SamplingParams that are not neutral: {"a", "b":
        {"text", "figures"}, "first_difference" (place in the output, from 0, or null), "settings": {name: [a, b]}}.
        """
        if seed is None:  # which a single text may leave to chance
            raise user_error(ValueError("seed is None; it must be a whole number, the same for both sides."))
        sides = []
        for name, values in (("a", a), ("b", b)):
            try:
                if not isinstance(values, dict) or not values.keys() <= SamplingParams.__dataclass_fields__.keys():
                    raise ValueError(f"settings are {values!r:.60}; they must be fields of SamplingParams.")
                sides.append(SamplingParams(**{**values, "seed": seed}))
            except ValueError as error:
                raise user_error(ValueError(f"{name}: {error}")) from error
        *_, (one, other) = side_by_side(
            model_registry.get_model(checkpoint), model_registry.get_model(checkpoint), prompt, *sides
        )
        texts = {
            name: {"text": g.text[len(prompt) :], "figures": compare.figures(g)}
            for name, g in (("a", one), ("b", other))
        }
        changed = {name: list(values) for name, values in compare.differences(*sides).items()}
        return {**texts, "first_difference": first_difference(one, other), "settings": changed}

    gr.api(compare_texts, api_name="compare", **GENERATION_QUEUE)
    gr.api(generate, api_name="generate", **GENERATION_QUEUE)
    gr.api(trace, api_name="trace", **MODEL_QUEUE)
