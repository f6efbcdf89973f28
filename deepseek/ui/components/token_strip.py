"""The token strip: a text as coloured, selectable tokens. Its value is append-only lines of JSON, drawn by strip.js."""

import html
import json
from pathlib import Path

import gradio as gr

from deepseek.ui.plots.style import EXPERT_COLOURS

ASSETS = Path(__file__).parents[3] / "assets"
SCRIPT = "".join((ASSETS / name).read_text("utf-8") for name in ("tokens.js", "strip.js"))


def token_strip(elem_id: str, colour: str, help: str, value: str) -> gr.HTML:
    """A strip of `value`, first coloured by `colour` ("probability", "layer 3"...); screen readers announce `help`."""
    colours = html.escape(json.dumps(EXPERT_COLOURS))
    template = f"""
        <div class="strip" data-colours="{colours}" data-first="{colour}">
          <div class="bar"><label>colour by <select aria-label="colour the tokens by"></select></label>
          <span class="legend"></span><button class="copy" title="copy the text">Copy</button></div>
          <div class="tokens" id="{elem_id}-tokens" role="listbox" tabindex="0" aria-label="{help}"></div>
          <div class="detail" aria-live="polite"></div>
        </div>"""
    return gr.HTML(html_template=template, js_on_load=SCRIPT, elem_id=elem_id, value=value)


def script_json(value) -> str:
    """JSON for a gr.HTML. "<" is escaped: a token may spell a script tag, and gradio warns of a value that holds one."""
    return json.dumps(value).replace("<", "\\u003c")


def _line(record: dict) -> str:
    return script_json(record) + "\n"


COLOURS = ("probability", "sampler probability", "decided by", "entropy", "temperature")  # of a generated text


def head_line(layers, experts: int, prompt="", ids=(), depth=0, colours=COLOURS) -> str:
    """The first line of a text: its MoE layers out of `depth`, its prompt with its ids, and what its tokens are coloured by."""
    text = {"prompt": prompt, "ids": list(ids)}
    return _line({**text, "layers": list(layers), "experts": experts, "depth": depth, "colours": list(colours)})


def _rounded(chosen) -> list:
    return [[expert, round(weight, 3)] for expert, weight in chosen]


def generated_line(token) -> str:
    """The line of one TokenTrace."""
    return _line(
        {
            "i": token.id,
            "t": token.text,
            **({"s": "⏹"} if token.finish_reason == "stop" and not token.text else {}),
            "p": round(token.probability, 5),
            "q": round(token.sampler_probability, 5),
            **({"d": decided_by} if (decided_by := token.decided_by) != "model" else {}),
            "r": token.rank,
            "h": round(token.entropy, 3),
            "T": token.temperature,
            "e": {layer: _rounded(chosen) for layer, chosen in token.experts.items()},
        }
    )


def mark_line(position: int) -> str:
    """Marks the token at `position`, from 0, now or once it comes."""
    return _line({"mark": position})


def traced_lines(trace) -> str:
    """All lines of a Trace."""
    experts = trace.routing[0].num_experts if trace.routing else 0
    lines = [head_line([layer.layer for layer in trace.routing], experts, colours=["probability"])]
    layers = [(layer.layer, layer.indices.tolist(), layer.weights.tolist()) for layer in trace.routing]
    for position, (id, text, probability) in enumerate(zip(trace.ids, trace.tokens, trace.probabilities)):
        chosen = {layer: _rounded(zip(indices[position], weights[position])) for layer, indices, weights in layers}
        lines.append(_line({"i": id, "t": text, "p": probability and round(probability, 5), "e": chosen}))
    return "".join(lines)


def attended_line(weights_T, token: int) -> str:
    """Colours the text by the attention of `token`, in percent; a later line replaces it."""
    return _line({"from": token, "a": [round(100 * weight) for weight in weights_T.tolist()]})


def attended_lines(trace, weights_T, token: int) -> str:
    """All lines of a Trace coloured by the attention of one of its tokens."""
    tokens = zip(trace.ids, trace.tokens)
    lines = [head_line([], 0, colours=["attention"]), *(_line({"i": id, "t": text}) for id, text in tokens)]
    return "".join(lines) + attended_line(weights_T, token)


def event_int(event: gr.EventData, name: str) -> int | None:
    """An integer that a script of the page sent with an event, None for anything else."""
    value = getattr(event, name, None)
    return value if type(value) is int else None
