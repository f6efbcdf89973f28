"""A gr.Blocks that looks at what comes in for each component before the component does.

gradio checks little of it (NaN passes a slider's bounds), and where it does the reader gets no sentence and the log a
traceback.
"""

import inspect
from math import inf

import gradio as gr
from gradio.components.api_component import Api

from deepseek.ui.errors import user_error


class ValidatedBlocks(gr.Blocks):
    """`gr.Blocks` whose events refuse a wrong number of values, and a value that its component could not hold."""

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        try:
            if block_fn.fn is None:
                raise ValueError("this event runs in the browser alone; it must not be sent.")
            check_number(block_fn, inputs)
            for block, value, name in zip(block_fn.inputs, inputs, names(block_fn)):
                block = state[block._id] if state and block._id in state and not block.stateful else block
                check(block, value, name)
        except ValueError as error:
            raise user_error(error) from error
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:  # what gradio makes of a value: an unsafe path, a file that is not there
            reason = getattr(error, "message", None) or " ".join(str(error).split())
            raise user_error(ValueError(f"the values of this event cannot be read: {reason:.200}")) from error


def check_number(block_fn, inputs: list) -> None:
    """Raises ValueError where there are more or fewer values than the function takes."""
    if len(inputs) != len(block_fn.inputs) and not block_fn.cancels:
        wanted = ", ".join(names(block_fn)) or "none"
        raise ValueError(f"data has {len(inputs)} values; it must have {len(block_fn.inputs)}: {wanted:.400}.")


def names(block_fn) -> list[str]:
    """What the inputs of a function are called: in an endpoint as its arguments, on the page as it is written there."""
    if all(isinstance(block, Api) for block in block_fn.inputs):
        return list(inspect.signature(block_fn.fn).parameters)
    blocks = block_fn.inputs
    return [getattr(b, "label", None) or getattr(b, "elem_id", None) or type(b).__name__ for b in blocks]


def check(block: gr.blocks.Block, value, name: str) -> None:
    """Raises ValueError naming the component, the value and what is allowed."""
    allowed = None
    if isinstance(block, (gr.Slider, gr.Number)):
        low, high = (getattr(block, bound, None) for bound in ("minimum", "maximum"))
        low, high = -inf if low is None else low, inf if high is None else high
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        empty = value is None and not isinstance(
            block, gr.Slider
        )  # a box that was cleared: the function says what is allowed
        if not (empty or number and low <= value <= high and abs(value) < inf):
            allowed = "a number" + (f" from {low} to {high}" if (low, high) != (-inf, inf) else "")
    elif isinstance(block, gr.Checkbox):
        allowed = None if isinstance(value, bool) else "true or false"
    elif isinstance(block, (gr.Dropdown, gr.Radio)):
        choices = [choice for _, choice in block.choices]
        custom = getattr(block, "allow_custom_value", False) and isinstance(value, str)
        if not (value is None and isinstance(block, gr.Dropdown) or custom or value in choices):
            allowed = f"one of {', '.join(map(str, choices))}"
    elif isinstance(block, gr.Dataset):
        if not (type(value) is int and 0 <= value < len(block.samples)):
            allowed = f"a whole number from 0 to {len(block.samples) - 1}"
    elif isinstance(block, (gr.File, gr.UploadButton)):
        empty = value is None and isinstance(block, gr.File)
        if not (empty or isinstance(value, dict) and isinstance(value.get("path"), str)):
            allowed = "an uploaded file"
    elif isinstance(block, (gr.Textbox, gr.HTML)):
        allowed = None if value is None or isinstance(value, str) else "text"
    elif isinstance(block, Api):  # whose function looks at it, but for what gradio would take for a file
        allowed = "a value that names no file" if "gradio.FileData" in str(value) else None
    if allowed:
        raise ValueError(f"{name} is {value!r:.60}; it must be {allowed:.200}.")
