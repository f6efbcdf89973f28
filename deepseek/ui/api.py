"""The named endpoints, for gradio_client and plain HTTP; the page itself does not use them."""

import random
from collections.abc import Iterator
from dataclasses import fields
from inspect import Parameter, Signature
from statistics import fmean

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.interpret import routing_stats
from deepseek.interpret.interventions import Intervention
from deepseek.interpret.trace import Routing, Trace
from deepseek.model import load_balancing
from deepseek.settings.aliases import rename
from deepseek.training import runs
from deepseek.training.config import TrainConfig
from deepseek.ui.components.comparison import changed_settings, sample_stats
from deepseek.ui.components.run_view import run_choices
from deepseek.ui.components.traces import ablate_layers, trace_long, trace_text
from deepseek.ui.components.train_form import free_name
from deepseek.ui.errors import user_error, user_errors
from deepseek.ui.generation import GENERATION_QUEUE, MODEL_QUEUE, first_difference, side_by_side
from deepseek.ui.generation import generate as generate_text
from deepseek.ui.server import access_control, model_registry
from deepseek.ui.tabs import train

# Settings of /train_start, in the order of its positional arguments, with the defaults that are not TrainConfig's.
TRAIN_SETTINGS = ("name", "preset", "init_from", "data", "max_steps", "batch_size", "max_seq_len", "lr", "balance_weight",
                  "save_every", "seed")  # fmt: skip
TRAIN_DEFAULTS = dict(name="", preset="tiny", max_steps=300)


def argument(name: str, type, default=Parameter.empty) -> Parameter:
    """An argument of an endpoint."""
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=type, default=default)


def setting_arguments(settings_class, names=None, **defaults) -> list[Parameter]:
    """An argument for every field of a dataclass of settings, or for those in `names`."""
    types, neutral = {f.name: f.type for f in fields(settings_class)}, settings_class()
    return [argument(name, types[name], defaults.get(name, getattr(neutral, name))) for name in names or types]


def set_arguments(function, arguments: list[Parameter]) -> list[str]:
    """Has gr.api read these arguments from a `function(*values)`, which is annotated with its result; returns their names."""
    function.__signature__ = Signature(arguments, return_annotation=function.__annotations__["return"])
    function.__annotations__ |= {a.name: a.annotation for a in arguments}
    return [a.name for a in arguments]


def require(name: str, value, type: type, rule: str) -> None:
    """Raises ValueError for a value of another type."""
    if not isinstance(value, type):
        raise ValueError(f"{name} is {value!r:.60}; it must be {rule}.")


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
    try:
        lens = trace.lens()
    except ValueError:  # the model's final norm has an unknown name
        lens = None
    cache = trace.cache()
    return {
        "ids": trace.ids,
        "tokens": trace.tokens,
        "probabilities": trace.probabilities,
        "routing": layers,
        "transitions": routing_stats.transitions(trace.routing),
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
            "raw_norms": None if cache.raw_norms is None else cache.raw_norms.tolist(),
            "kept_norms": None if cache.cached_norms is None else cache.cached_norms.tolist(),
        },
    }


def routing_difference(a: list[Routing], b: list[Routing]) -> dict:
    """Jensen-Shannon divergence of two texts' expert loads per layer, in bits, beside the permutation baseline."""
    divergences = routing_stats.layer_divergences(a, b)
    baseline = routing_stats.permutation_baseline(a, b)
    return {"divergence": divergences, "mean": fmean(divergences), "permutation_baseline": baseline}


def parse_interventions(value) -> list[Intervention]:
    """Interventions from JSON. Raises ValueError. The model that runs them refuses an expert that it lacks."""
    try:
        interventions = [Intervention(**item) for item in value]
        if all(isinstance(i.expert, int) and isinstance(i.layer, int | None) for i in interventions):
            return interventions
    except TypeError:
        pass
    rule = "they must be a list of objects with expert, action and, unless for all layers, layer"
    raise ValueError(f"interventions are {value!r:.60}; {rule}.")


def build(checkpoint: str) -> None:
    """Adds all endpoints to the page under construction; `checkpoint` is the page's own."""
    build_inference(checkpoint)
    build_training()


def build_inference(checkpoint: str) -> None:
    """Adds /generate, /trace and /compare, which use `checkpoint`, to the page under construction."""

    def generate(*values) -> Iterator[dict]:
        """Continues a prompt. Streams {"text", "tokens", "seconds", "seed", "finish_reason"} as the text grows; finish_reason
        is null until the end, then "stop", "length", "context" or "time". With traces=True the last one has "traces": what
        happened at each token. The settings are those of SamplingParams; seed -1 is a random one. Interventions switch experts
        off or force them, {"expert": 3, "action": "off" or "force", "layer": 2}, without a layer in all layers.
        """
        settings = dict(zip(arguments, values))
        prompt, traces, interventions = (settings.pop(name) for name in ("prompt", "traces", "interventions"))
        if settings["seed"] in (-1, None):
            settings["seed"] = random.randrange(2**31)
        with user_errors():
            require("traces", traces, bool, "true or false")
            params, interventions = SamplingParams(**settings), parse_interventions(interventions)
        model, tokenizer = model_registry.get_model(checkpoint)
        for generation in generate_text(model, tokenizer, prompt, params, interventions=interventions):
            answer = {
                "text": generation.text[len(prompt) :],
                "tokens": len(generation.tokens),
                "seconds": round(generation.seconds, 3),
                "seed": params.seed,
                "finish_reason": generation.finish_reason,
            }
            if traces and generation.finish_reason:
                answer["traces"] = [token.as_dict() for token in generation.tokens]
            yield answer

    more = [argument("traces", bool, False), argument("interventions", list[dict], [])]
    arguments = set_arguments(
        generate, [argument("prompt", str), *setting_arguments(SamplingParams, stop=[], seed=-1), *more]
    )

    def trace(text: str, attention_layer: int = -1, other: str = "", losses: bool = False) -> dict:
        """What the model does with a text: {"ids", "tokens", "probabilities", "routing": [{"layer", "indices", "weights",
        "load", "max_violation", "kl", "vocabulary_specialization" (per expert: [token, times routed to it, times in the
        text]), "co_activation" (experts x experts, 1 is independence)}], "transitions": [[index into routing, expert, expert
        of the next layer, tokens]], "lens": {"choices", "texts", "probabilities", "first_match_layer"} (layers + 1 x tokens)
        or null, "cache": {"bytes", "uncompressed", "raw_norms", "kept_norms"} (layers x tokens)}. With attention_layer from 0
        on also "attention" (heads x tokens x tokens); with another text "compared": {"divergence" (bits, per layer), "mean",
        "permutation_baseline"}; with losses "loss_change" (layers of experts): nats per token by which the loss on the text
        grows with that expert off.
        """
        model, tokenizer = model_registry.get_model(checkpoint)
        layers = model.config.num_hidden_layers
        with user_errors():
            if isinstance(attention_layer, bool) or attention_layer not in range(-1, layers):
                rule = f"it must be a whole number from -1 to {layers - 1}"
                raise ValueError(f"attention_layer is {attention_layer!r:.60}; {rule}.")
            require("other", other, str, "text")
            require("losses", losses, bool, "true or false")
            traced = trace_text(model, tokenizer, text)
            answer = trace_json(traced)
            if attention_layer != -1:
                answer["attention"] = traced.attention(int(attention_layer)).tolist()
        if other:
            other_routing = trace_long(model, tokenizer, other).routing
            answer["compared"] = traced.routing and routing_difference(traced.routing, other_routing)
        if losses:
            rows = {}
            for rows in ablate_layers(model, tokenizer, text, [r.layer for r in traced.routing]):  # noqa: B007
                pass
            answer["loss_change"] = list(rows.values())
        return answer

    def compare_texts(prompt: str, a: dict = {}, b: dict = {}, seed: int = 0) -> dict:  # noqa: B006  (only read)
        """One prompt and seed under two settings, each the fields of SamplingParams that are not neutral: {"a", "b":
        {"text", "figures"}, "first_difference" (position in the output, from 0, or null), "settings": {name: [a, b]}}.
        """
        with user_errors():
            if seed is None:  # a random one for each side
                raise ValueError("seed is None; it must be a whole number, the same for both sides.")
            sides = side_params("a", a, seed), side_params("b", b, seed)
        opened = model_registry.get_model(checkpoint)
        *_, generations = side_by_side(opened, opened, prompt, *sides)
        texts = {
            name: {"text": generation.text[len(prompt) :], "figures": sample_stats(generation)}
            for name, generation in zip("ab", generations)
        }
        changed = {name: list(values) for name, values in changed_settings(*sides).items()}
        return {**texts, "first_difference": first_difference(*generations), "settings": changed}

    gr.api(compare_texts, api_name="compare", **GENERATION_QUEUE)
    gr.api(generate, api_name="generate", **GENERATION_QUEUE)
    gr.api(trace, api_name="trace", **MODEL_QUEUE)


def side_params(name: str, settings, seed: int) -> SamplingParams:
    """The settings of one side of /compare. Raises ValueError naming the side."""
    try:
        if not isinstance(settings, dict) or not rename(settings).keys() <= SamplingParams.__dataclass_fields__.keys():
            raise ValueError(f"settings are {settings!r:.60}; they must be fields of SamplingParams.")
        return SamplingParams(**{**rename(settings), "seed": seed})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def train_status(name: str = "") -> dict:
    """The state of a run: {"name", "state" (running, paused, stopped, finished, failed or killed), "reason", "step", "steps",
    "checkpoint" (path of the newest, or null), "metrics" (its last line), "validation" (its last one)}. Without a name: the
    run in progress, or else the newest. Refuses an unknown name.
    """
    try:
        name = next((name for _, name in run_choices()), "") if name == "" else name
        run = runs.find(runs.ROOT, name)
        lines, _ = runs.metrics(run.folder)
    except (ValueError, TypeError) as error:
        raise user_error(error) from error
    return {
        **{field: getattr(run, field) for field in ("name", "state", "reason", "step", "steps")},
        "checkpoint": run.checkpoint and str(run.checkpoint),
        "metrics": next((line for line in reversed(lines) if "loss" in line), None),
        "validation": next((line for line in reversed(lines) if "val_loss" in line), None),
    }


def build_training() -> None:
    """Adds /train_start, /train_status and /train_stop to the page under construction."""

    def train_start(*values) -> dict:
        """Starts a run in the background and answers with its /train_status. The settings are those of TrainConfig; without
        a name the run gets a free one. On a public Space all but a small run needs the owner's `secret`.
        """
        *values, secret = values
        settings = dict(zip(TRAIN_SETTINGS, values), root=runs.ROOT)
        if settings["name"] == "":
            settings["name"] = free_name()
        try:
            config = TrainConfig(**settings)
            access_control.check_access(config, secret)
        except (ValueError, TypeError) as error:
            raise user_error(error) from error
        return train_status(train.start_run(config).name)

    def train_stop(name: str = "", secret: str = "") -> dict:
        """Asks a run, or the one in progress, to save a checkpoint and end; answers with its /train_status."""
        name = train_status(name)["name"]
        train.control_run("stop", name, secret)
        return train_status(name)

    settings = setting_arguments(TrainConfig, TRAIN_SETTINGS, **TRAIN_DEFAULTS)
    set_arguments(train_start, [*settings, argument("secret", str, "")])
    gr.api(train_start, api_name="train_start")
    gr.api(train_status, api_name="train_status")
    gr.api(train_stop, api_name="train_stop")
