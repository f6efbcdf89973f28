"""The token strip: a text as tokens in the browser, coloured and selectable. Its value is lines of JSON, only appended."""

import html
import json
from pathlib import Path

import gradio as gr

from deepseek.ui.plots.style import EXPERT_COLOURS

SCRIPT = (Path(__file__).parents[3] / "assets" / "strip.js").read_text()


def token_strip(elem_id: str, colour: str, help: str, value: str) -> gr.HTML:
    """A strip of `value`, coloured by `colour` at first ("probability", "layer 3"...); `help` is said to screen readers."""
    colours = html.escape(json.dumps(EXPERT_COLOURS))
    template = f"""
        <div class="strip" data-colours="{colours}" data-first="{colour}">
          <div class="bar"><label>colour by <select aria-label="colour the tokens by"></select></label>
          <span class="legend"></span></div>
          <div class="tokens" id="{elem_id}-tokens" role="listbox" tabindex="0" aria-label="{help}"></div>
          <div class="detail" aria-live="polite"></div>
        </div>"""
    return gr.HTML(html_template=template, js_on_load=SCRIPT, elem_id=elem_id, value=value)


def _line(record: dict) -> str:
    # "<" is written as an escape: gradio warns of a value that holds a script tag, and a token may well spell one.
    return json.dumps(record).replace("<", "\\u003c") + "\n"


def head_line(layers, experts: int, prompt: str = "", colours=("probability", "entropy", "temperature")) -> str:
    """The first line of a text: what it follows, and what it can be coloured by."""
    return _line({"prompt": prompt, "layers": list(layers), "experts": experts, "colours": list(colours)})


def generated_line(token) -> str:
    """The line of one TokenTrace."""
    text = "⏹" if token.finish_reason == "end of text" and not token.text else token.text
    return _line(
        {
            "t": text,
            "p": round(token.probability, 5),
            "r": token.rank,
            "h": round(token.entropy, 3),
            "T": token.temperature,
            "e": {layer: [[e, round(w, 3)] for e, w in chosen] for layer, chosen in token.experts.items()},
        }
    )


def mark_line(place: int) -> str:
    """Marks the token at `place`, from 0, now or once it comes."""
    return _line({"mark": place})


def traced_lines(trace) -> str:
    """All lines of a Trace."""
    experts = trace.routing[0].experts if trace.routing else 0
    lines = [head_line([layer.layer for layer in trace.routing], experts, colours=["probability"])]
    columns = [(layer.layer, layer.indices.tolist(), layer.weights.tolist()) for layer in trace.routing]
    for index, (text, probability) in enumerate(zip(trace.tokens, trace.probabilities)):
        chosen = {layer: [[e, round(w, 3)] for e, w in zip(i[index], w[index])] for layer, i, w in columns}
        lines.append(_line({"t": text, "p": probability and round(probability, 5), "e": chosen}))
    return "".join(lines)


def attended_line(weights_T, token: int) -> str:
    """Colours the text by what `token` looked at, in percent; the newest such line holds."""
    return _line({"from": token, "a": [round(100 * weight) for weight in weights_T.tolist()]})


def attended_lines(tokens: list[str], weights_T, token: int) -> str:
    """All lines of a text coloured by what one of its tokens looked at."""
    lines = [head_line([], 0, colours=["attention"]), *(_line({"t": text}) for text in tokens)]
    return "".join(lines) + attended_line(weights_T, token)


def event_int(event: gr.EventData, name: str) -> int | None:
    """A whole number that a script of the page sent with an event; None where it is not there, or something else."""
    value = getattr(event, name, None)
    return value if type(value) is int else None
