"""The experts that two lists of texts use differently, found for the page and for /steer alike."""

import gradio as gr

from deepseek.interpret import steering
from deepseek.interpret.steering import RateDifference
from deepseek.ui.components.traces import within_deadline
from deepseek.ui.errors import user_errors

MAX_TEXTS = 200  # of both lists


class Found:
    """The experts found with a checkpoint and two boxes, and the texts held out. No dataclass: gr.State would make it a dict."""

    def __init__(self, key: tuple, differences: list[RateDifference], held_out: dict[str, list[str]]):
        self.key, self.differences, self.held_out = key, differences, held_out


@user_errors()
def find_experts(model, tokenizer, boxes: dict[str, str], key: tuple = ()) -> Found:
    """The experts that the texts of two boxes, {name: text}, use most differently. Raises gr.Error."""
    texts = {name: steering.split_texts(box) for name, box in boxes.items()}
    if (number := sum(map(len, texts.values()))) > MAX_TEXTS:
        raise ValueError(f"lists A and B have {number} texts; they must have at most {MAX_TEXTS} together.")
    for name, each in texts.items():
        if len(each) < 2 * steering.MIN_TEXTS:
            rule = f"{2 * steering.MIN_TEXTS} or more, in lines or sentences: every second one is held out"
            raise ValueError(f"list {name} has {len(each)} texts; it must have {rule}.")
    used, held = zip(*map(steering.held_out, texts.values()))
    routing = [[], []]
    tracing = (
        (side, steering.trace_texts(model, tokenizer, [text])) for side, part in zip(routing, used) for text in part
    )
    progress = gr.Progress()
    for index, (side, traced) in enumerate(within_deadline(tracing, "", "tracing the texts")):
        progress((index + 1, sum(map(len, used))), unit="texts")
        side += traced
    return Found(key, steering.rate_differences(*routing), dict(zip(texts, held)))
