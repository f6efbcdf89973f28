"""The named endpoints, for gradio_client and plain HTTP; the page itself does not use them."""

import random
from collections.abc import Iterator

import gradio as gr

from deepseek.data.chat import check_messages
from deepseek.data.tokenizer import encode_prompt
from deepseek.inference.forced_tokens import parse_forced_tokens
from deepseek.inference.sampling import SamplingParams
from deepseek.inference.sweep import sweep_params, token_tree
from deepseek.inference.text_stats import sample_stats
from deepseek.inference.why_not import first_tokens
from deepseek.interpret import importance
from deepseek.interpret.interventions import intervened, parse_interventions
from deepseek.interpret.model_parts import decoder_layers
from deepseek.interpret.trace import context_length
from deepseek.settings.aliases import ALIASES
from deepseek.training import runs
from deepseek.training.config import TrainConfig
from deepseek.ui.components.comparison import changed_settings
from deepseek.ui.components.expert_sections import SECTIONS
from deepseek.ui.components.json_answers import (
    generation_json,
    importance_json,
    routing_difference,
    steering_json,
    trace_json,
    tree_json,
)
from deepseek.ui.components.kinds import check_kinds, stopped_in_time, trace_kinds
from deepseek.ui.components.router_json import routing_json
from deepseek.ui.components.run_view import run_choices
from deepseek.ui.components.sections import sections_json
from deepseek.ui.components.traces import knocked_out, trace_long, trace_text
from deepseek.ui.components.train_form import free_name
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import GENERATION_QUEUE, MODEL_QUEUE, first_difference, generate_batch, interleave
from deepseek.ui.generation import generate as generate_text
from deepseek.ui.server import access_control, model_registry
from deepseek.ui.server.api_arguments import requested, require, set_arguments, setting_arguments, side_params
from deepseek.ui.tabs import train

# Settings of /train_start, in the order of its positional arguments.
TRAIN_SETTINGS = ("name", "preset", "init_from", "data", "max_steps", "batch_size", "max_seq_len", "lr", "balance_weight",
                  "save_every", "seed")  # fmt: skip


def build(checkpoint: str) -> None:
    """Adds all endpoints to the page under construction; `checkpoint` is the page's own."""

    def generate(*values) -> Iterator[dict]:
        """Continues a prompt, or answers it as a user's message where the checkpoint has a chat template; with chat=False it
        is continued there too. In its place `messages` may hold a conversation: [{"role": "system", "user" or "assistant",
        "content": text}]. Streams {"text", "tokens", "seconds", "seed", "finish_reason"} as the text grows; finish_reason is
        null until the end, then "stop", "length", "context" or "time". The last one has "prompt", the text that the model got,
        and "ids", of prompt and output; with traces=True also "traces": what happened at each token; with a word in why_not
        also "why_not": for each token of the output, what became of the word's first token in its place, [{"id", "text",
        "removed_by" (a sampler, or null), "steps": [{"after" ("model" or a sampler), "rank", "probability"}], "sentence"}] for
        the word after a space, as written, or both. Forced tokens, texts such as "4-123", put the token of id 123 at position
        4 of the output, from 0, and so branch off there. The settings are those of SamplingParams; seed -1 is a random one.
        Interventions switch experts off, force, promote or suppress them, {"expert":
        3, "action": "off", "force", "promote" or "suppress", "layer": 2, "strength": 0.5}, without a layer in all layers; also
        as texts, "promote 3@2 0.5".
        """
        settings = dict(zip(arguments, values))
        names = "prompt", "traces", "interventions", "messages", "chat", "why_not", "forced_tokens"
        prompt, traces, interventions, messages, chat, word, forced_tokens = (settings.pop(name) for name in names)
        if settings["seed"] in (-1, None):
            settings["seed"] = random.randrange(2**31)
        model, tokenizer = model_registry.get_model(checkpoint)
        with user_errors():
            require("traces", traces, bool, "true or false")
            request = requested(tokenizer, prompt, messages, chat)
            params, interventions = SamplingParams(**settings), parse_interventions(interventions)
            forced_tokens = parse_forced_tokens(forced_tokens)
            ids = [] if word == "" else first_tokens(word, tokenizer)
        options = dict(interventions=interventions, probe=ids)
        for generation in generate_text(model, tokenizer, request, params, forced_tokens, **options):
            yield generation_json(generation, traces, ids)

    arguments = {
        "prompt": (str, ""),
        **setting_arguments(SamplingParams, stop=[], seed=-1),
        "traces": (bool, False),
        "interventions": (list, []),
        "messages": (list, []),
        "chat": (bool, True),
        "why_not": (str, ""),
        "forced_tokens": (list, []),
    }
    set_arguments(generate, arguments)

    def trace(
        text: str = "",
        attention_layer: int = -1,
        other: str = "",
        losses: bool = False,
        ids: list[int] = [],  # noqa: B006
        walk: int = -1,
        interventions: list = [],  # noqa: B006
        importances: bool = False,
        messages: list = [],  # noqa: B006
    ) -> dict:
        """What the model does with a text, with token ids such as /generate's, or with the messages of a chat up to where the
        answer begins: {"ids", "tokens", "probabilities", "routing": [{"layer", "indices", "weights", "load", "max_violation",
        "kl", "vocabulary_specialization" (per expert: [token, times routed to it, times in the text]), "co_activation" (experts x
        experts, 1 is independence)}], "transitions": [[index into routing, expert, expert of the next layer, tokens]], "lens":
        {"choices", "texts", "probabilities", "first_match_layer"} (layers + 1 x tokens), "cache": {"bytes", "uncompressed",
        "raw_norms", "kept_norms"} (layers with latents x tokens, or null)}. With attention_layer from 0 on also "attention"
        (heads x tokens x tokens); with another text "compared": {"divergence" (bits, per layer), "mean", "permutation_baseline"};
        with losses "loss_change" (layers of experts): nats per token by which the loss on the text grows with that expert off;
        with walk, a token's position from 0, also "walk": that token's way through the whole model, as `Trace.walk` of the
        package documents it. Interventions are those of /generate. With importances also "importance": {"knock_outs": [{"layer",
        "expert", "num_tokens", "loss_change", "kl", "kl_T" (after each token)}], "top_disabled" and "cumulative": [{"curve",
        "num_disabled", "loss"}], "runner_ups": [{"layer", "experts" (of each token: its own, the next), "kl_T", "own", "rerouted"
        (ids of the most likely next tokens), "reach"}]}, as `deepseek.interpret.importance` documents them.
        """
        model, tokenizer = model_registry.get_model(checkpoint)
        layers = len(decoder_layers(model))
        with user_errors():
            if isinstance(attention_layer, bool) or attention_layer not in range(-1, layers):
                rule = f"it must be a whole number from -1 to {layers - 1}"
                raise ValueError(f"attention_layer is {attention_layer!r:.60}; {rule}.")
            require("other", other, str, "text")
            require("losses", losses, bool, "true or false")
            if not (isinstance(ids, list) and all(type(token) is int for token in ids)):
                raise ValueError(f"ids are {ids!r:.60}; they must be a list of token ids.")
            given = [name for name, value in (("text", text), ("ids", ids), ("messages", messages)) if value]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are given; it must be one of them.")
            if messages:
                chat = check_messages(messages)
                ids = encode_prompt(tokenizer, chat, context_length(model), min_new_tokens=0, name="messages")
            text = tuple(ids) or text
            require("importances", importances, bool, "true or false")
            changes = parse_interventions(interventions)
            if changes and (losses or importances):
                raise ValueError("interventions and losses or importances are both given; it must be one of them.")
            with intervened(model, changes):  # whatever is computed below, too
                traced = trace_text(model, tokenizer, text, changes)
                answer = trace_json(traced)
                if attention_layer != -1:
                    answer["attention"] = traced.attention(int(attention_layer)).tolist()
                if isinstance(walk, bool) or walk not in range(-1, len(traced.ids)):
                    rule = f"it must be a whole number from -1 to {len(traced.ids) - 1}"
                    raise ValueError(f"walk is {walk!r:.60}; {rule}.")
                if walk != -1:
                    answer["walk"] = traced.walk(int(walk))
                if other:
                    other_routing = trace_long(model, tokenizer, other).routing
                    answer["compared"] = traced.routing and routing_difference(traced.routing, other_routing)
        if losses:
            rows = {}
            for each in knocked_out(model, tokenizer, text, importance.ranked_layers(model)):
                rows.setdefault(each.layer, []).append(each.loss_change)
            answer["loss_change"] = list(rows.values())
        if importances:
            answer["importance"] = importance_json(model, tokenizer, text)
        return answer

    def steer(
        texts_a: list = [],  # noqa: B006  (only read)
        texts_b: list = [],  # noqa: B006
        count: int = 6,
        strength: float = 1.0,
    ) -> dict:
        """The experts that two lists of texts use most differently, and what steering by them does: {"differences": [{"layer",
        "expert", "rate_a", "rate_b", "difference", "error", "p_value"}], the largest first, "verdict", "interventions", for
        /generate, on the `count` experts that differ most, toward A by `strength` up to 1 or toward B down to -1, "effect":
        {"a", "b": {"loss", "loss_change", "loss_error", "promoted_rates", "suppressed_rates" (without, with)}}}. Every second
        text is held out; the effect is measured on those. As `deepseek.interpret.steering` documents it.
        """
        return steering_json(*model_registry.get_model(checkpoint), texts_a, texts_b, count, strength)

    def compare_texts(
        prompt: str = "",
        a: dict = {},  # noqa: B006  (only read)
        b: dict = {},  # noqa: B006
        seed: int = 0,
        messages: list = [],  # noqa: B006
        chat: bool = True,
    ) -> dict:
        """One prompt and seed under two settings, each the fields of SamplingParams that are not neutral: {"a", "b":
        {"text", "figures"}, "first_difference" (position in the output, from 0, or null), "settings": {name: [a, b]}}.
        Prompt, messages and chat are those of /generate.
        """
        opened = model_registry.get_model(checkpoint)
        with user_errors():
            if seed is None:  # a random one for each side
                raise ValueError("seed is None; it must be a whole number, the same for both sides.")
            sides = side_params("a", a, seed), side_params("b", b, seed)
            request = requested(opened[1], prompt, messages, chat)
        *_, generations = interleave([generate_text(*opened, request, params) for params in sides])
        texts = {
            name: {"text": generation.output, "figures": sample_stats(generation.tokens)}
            for name, generation in zip("ab", generations)
        }
        changed = {name: list(values) for name, values in changed_settings(*sides).items()}
        return {**texts, "first_difference": first_difference(*generations), "settings": changed}

    def sweep(
        prompt: str = "",
        setting: str = "temperature",
        values: list = [0.2, 1.6],  # noqa: B006  (only read)
        settings: dict = {},  # noqa: B006
        seed: int = 0,
        messages: list = [],  # noqa: B006
        chat: bool = True,
    ) -> dict:
        """One prompt and seed at several values of a setting, decoded as one batch: {"setting", "samples": [{"value", "text",
        "figures"}], "tree"}. Two values are the ends of a range of eight; 3 to 8 are taken as they are. `settings` are the
        other fields of SamplingParams that are not neutral. The tree is {"samples" (their indices), "position" (in the
        output, from 0), "text" (that they share from there on), "children" (by the token that follows)}; with "seed" as the
        setting it shows where samples of the same settings part. Prompt, messages and chat are those of /generate.
        """
        opened = model_registry.get_model(checkpoint)
        with user_errors():
            require("seed", seed, int, "a whole number, the same for all samples")
            request = requested(opened[1], prompt, messages, chat)
            setting = ALIASES.get(setting, setting) if isinstance(setting, str) else setting
            batch = sweep_params(side_params("settings", settings, seed), setting, values)
        *_, generations = generate_batch(*opened, request, batch)
        samples = [
            {
                "value": getattr(generation.params, setting),
                "text": generation.output,
                "figures": sample_stats(generation.tokens),
            }
            for generation in generations
        ]
        tree = token_tree([generation.tokens for generation in generations])
        return {"setting": setting, "samples": samples, "tree": tree_json(tree)}

    def what_experts_do(texts: dict = {}, layer: int = -1) -> dict:  # noqa: B006  (only read)
        """What the experts do on kinds of text {name: text} (default: a story, an encyclopedia entry and Python code), beside
        chance: {"kinds", "tokens" (of each kind), "layers", "sections": {name: {"title", "words", "series": {name: {"observed",
        "chance", "spread" (of chance), "deviations" (of an average, or null), "side" (1 above chance, -1 below, 0 no better)
        }}}}}, each a number per layer, null where there is none. With a layer also "table" {"headers", "rows"} of its experts.
        """
        model, tokenizer = model_registry.get_model(checkpoint)
        step = stopped_in_time(lambda fraction: None)
        corpus = trace_kinds(model, tokenizer, check_kinds(texts), step)
        with user_errors():
            if isinstance(layer, bool) or layer not in (-1, *corpus.layers):
                rule = f"it must be -1 or a layer with experts: {', '.join(map(str, corpus.layers)) or 'there is none'}"
                raise ValueError(f"layer is {layer!r:.60}; {rule}.")
            return sections_json(SECTIONS, corpus, int(layer), step)

    gr.api(compare_texts, api_name="compare", **GENERATION_QUEUE)
    gr.api(sweep, **GENERATION_QUEUE)
    gr.api(generate, **GENERATION_QUEUE)
    gr.api(trace, **MODEL_QUEUE)
    gr.api(what_experts_do, api_name="specialization", **MODEL_QUEUE)
    gr.api(steer, **MODEL_QUEUE)
    for endpoint in (train_start, train_status, train_routing, train_stop):
        gr.api(endpoint)


def train_status(name: str = "") -> dict:
    """The state of a run: {"name", "state" (running, paused, stopped, finished, failed, killed or damaged), "reason", "step",
    "steps", "checkpoint" (path of the newest, or null), "best" (that of the lowest validation loss, or null), "metrics" (its
    last line), "validation" (its last one)}. Without a name: the run in progress, or else the newest. Refuses an unknown name.
    """
    run = requested_run(name)
    lines, _ = runs.metrics(run.folder)
    return {
        **{field: getattr(run, field) for field in ("name", "state", "reason", "step", "steps")},
        "checkpoint": run.checkpoint and str(run.checkpoint),
        "best": run.best and str(run.best),
        "metrics": next((line for line in reversed(lines) if "loss" in line), None),
        "validation": next((line for line in reversed(lines) if "val_loss" in line), None),
    }


def requested_run(name: str) -> runs.Run:
    """The run of a name; without one that in progress, or else the newest. Refuses an unknown name."""
    with user_errors():
        return runs.find(runs.ROOT, next((name for _, name in run_choices()), "") if name == "" else name)


def train_routing(name: str = "", step: int = -1) -> dict:
    """How a run's routers changed, at every checkpoint since its beginning: {"steps", "layers", "curves" and "chance"
    ({figure: one row a step, of one value a layer}: router saturation, vocabulary specialization, co-activation, MaxVio and
    the spread of the balancing bias), "alarms" (dead or collapsed experts now, [{"kind", "layer", "expert", "since",
    "tokens", "sentence"}]), "checkpoint" (the routing at `step`, -1 for the newest: {"step", "tokens", "experts", and one
    entry a layer of "indices", "load", "bias", "vocabulary_specialization" and "co_activation" as in /trace}, or null)}.
    Without a name: the run in progress, or else the newest. Refuses an unknown name, and a step without a record.
    """
    history = runs.history(requested_run(name).folder)
    with user_errors():
        return routing_json(history, step)


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
