"""The named endpoints, for gradio_client and plain HTTP; the page itself does not use them."""

import random
from collections.abc import Iterator
from contextlib import suppress
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
from deepseek.ui.components.run_view import run_choices
from deepseek.ui.components.traces import ablate_layers, trace_long, trace_text
from deepseek.ui.components.train_form import free_name
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import GENERATION_QUEUE, MODEL_QUEUE, first_difference, interleave
from deepseek.ui.generation import generate as generate_text
from deepseek.ui.server import access_control, model_registry
from deepseek.ui.tabs import train
from deepseek.ui.tabs.compare import changed_settings, sample_stats

# Settings of /train_start, in the order of its positional arguments.
TRAIN_SETTINGS = ("name", "preset", "init_from", "data", "max_steps", "batch_size", "max_seq_len", "lr", "balance_weight",
                  "save_every", "seed")  # fmt: skip


def setting_arguments(settings_class, names=None, **defaults) -> dict[str, tuple]:
    """{name: (type, default)} of every field of a dataclass of settings, or of those in `names`."""
    types, neutral = {f.name: f.type for f in fields(settings_class)}, settings_class()
    return {name: (types[name], defaults.get(name, getattr(neutral, name))) for name in names or types}


def set_arguments(function, arguments: dict[str, tuple]) -> None:
    """Has gr.api read arguments {name: (type, default)} from a `function(*values)`, which is annotated with its result."""
    parameters = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=type, default=default)
        for name, (type, default) in arguments.items()
    ]
    function.__signature__ = Signature(parameters, return_annotation=function.__annotations__["return"])
    function.__annotations__ |= {name: type for name, (type, _) in arguments.items()}


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
    with suppress(TypeError):
        interventions = [Intervention(**item) for item in value]
        if all(isinstance(i.expert, int) and isinstance(i.layer, int | None) for i in interventions):
            return interventions
    rule = "they must be a list of objects with expert, action and, unless for all layers, layer"
    raise ValueError(f"interventions are {value!r:.60}; {rule}.")


def build(checkpoint: str) -> None:
    """Adds all endpoints to the page under construction; `checkpoint` is the page's own."""

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

    arguments = {
        "prompt": (str, Parameter.empty),
        **setting_arguments(SamplingParams, stop=[], seed=-1),
        "traces": (bool, False),
        "interventions": (list[dict], []),
    }
    set_arguments(generate, arguments)

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
            *_, rows = {}, *ablate_layers(model, tokenizer, text, [r.layer for r in traced.routing])
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
        *_, generations = interleave([generate_text(*opened, prompt, params) for params in sides])
        texts = {
            name: {"text": generation.text[len(prompt) :], "figures": sample_stats(generation)}
            for name, generation in zip("ab", generations)
        }
        changed = {name: list(values) for name, values in changed_settings(*sides).items()}
        return {**texts, "first_difference": first_difference(*generations), "settings": changed}

    gr.api(compare_texts, api_name="compare", **GENERATION_QUEUE)
    gr.api(generate, **GENERATION_QUEUE)
    gr.api(trace, **MODEL_QUEUE)
    for endpoint in (train_start, train_status, train_stop):
        gr.api(endpoint)


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
    with user_errors():
        name = next((name for _, name in run_choices()), "") if name == "" else name
        run = runs.find(runs.ROOT, name)
        lines, _ = runs.metrics(run.folder)
    return {
        **{field: getattr(run, field) for field in ("name", "state", "reason", "step", "steps")},
        "checkpoint": run.checkpoint and str(run.checkpoint),
        "metrics": next((line for line in reversed(lines) if "loss" in line), None),
        "validation": next((line for line in reversed(lines) if "val_loss" in line), None),
    }


def train_start(*values) -> dict:
    """Starts a run in the background and answers with its /train_status. The settings are those of TrainConfig; without
    a name the run gets a free one. On a public Space all but a small run needs the owner's `secret`.
    """
    *values, secret = values
    settings = dict(zip(TRAIN_SETTINGS, values), root=runs.ROOT)
    if settings["name"] == "":
        settings["name"] = free_name()
    with user_errors():
        config = TrainConfig(**settings)
        access_control.check_access(config, secret)
    return train_status(train.start_run(config).name)


train_arguments = setting_arguments(TrainConfig, TRAIN_SETTINGS, name="", preset="tiny", max_steps=300)
set_arguments(train_start, train_arguments | {"secret": (str, "")})


def train_stop(name: str = "", secret: str = "") -> dict:
    """Asks a run, or the one in progress, to save a checkpoint and end; answers with its /train_status."""
    name = train_status(name)["name"]
    train.control_run("stop", name, secret)
    return train_status(name)
