"""A gr.Blocks that validates the values of an event before its components see them.

gradio checks little (NaN passes a slider's limits), and where it does the user gets no sentence and the log a traceback.
"""

import inspect
import time
from math import inf

import gradio as gr
from gradio.components.api_component import Api

from deepseek.ui.errors import user_error, user_errors

GONE_TITLE = "Loading again"
GONE = "The app was restarted, or served many others since. This page is loaded again with its text and settings."


class ValidatedBlocks(gr.Blocks):
    """`gr.Blocks` whose events refuse a wrong number of values, and a value that its component could not hold.

    An event of a page whose session is gone, with the app that was restarted or among too many, is refused too: gradio would
    give the first values of its states, so that the page shows one text and answers for another. The page then loads itself
    again (frontend_patch.py), which brings back its text and settings. A page's session is named after the app's start.
    """

    started = f"page-{time.time_ns()}"

    def __init__(self, **options):
        super().__init__(**options)
        self.sessions: set[str] = set()  # of pages, also those that are gone

    def get_config_file(self):
        # A window with a heartbeat holds one of the six connections that a browser opens to a host. It would only tell that the
        # window is closed; what is kept for it expires anyway.
        return super().get_config_file() | {"connect_heartbeat": False, "started": self.started}

    async def process_api(self, block_fn, inputs, state=None, *, session_hash=None, **options):
        if state and session_hash and session_hash.startswith("page-"):  # not a client's
            if not session_hash.startswith(self.started) or state.is_new and session_hash in self.sessions:
                raise gr.Error(GONE, title=GONE_TITLE, print_exception=False)
            state.is_new = False
            self.sessions.add(session_hash)
        return await super().process_api(block_fn, inputs, state, session_hash=session_hash, **options)

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        with user_errors():
            if block_fn.fn is None:
                raise ValueError("this event runs in the browser alone; it must not be sent.")
            names = input_names(block_fn)
            if len(inputs) != len(names) and not block_fn.cancels:
                expected = ", ".join(names) or "none"
                raise ValueError(f"data has {len(inputs)} values; it must have {len(names)}: {expected:.400}.")
            for block, value, name in zip(block_fn.inputs, inputs, names):
                current = state[block._id] if state and block._id in state and not block.stateful else block
                if allowed := refusal(current, value):
                    raise ValueError(f"{name} is {value!r:.60}; it must be {allowed:.200}.")
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:  # gradio's own refusal: an unsafe path, a missing file
            reason = getattr(error, "message", None) or " ".join(str(error).split())
            raise user_error(ValueError(f"the values of this event cannot be read: {reason:.200}")) from error


def input_names(block_fn) -> list[str]:
    """The names of a function's inputs: an endpoint's arguments, the labels of the page's components."""
    if block_fn.inputs and all(isinstance(block, Api) for block in block_fn.inputs):
        return list(inspect.signature(block_fn.fn).parameters)
    blocks = block_fn.inputs
    return [getattr(b, "label", None) or getattr(b, "elem_id", None) or type(b).__name__ for b in blocks]


def refusal(block: gr.blocks.Block, value) -> str | None:
    """None if the component can hold `value`, else what it can hold, in words."""
    right, allowed = True, ""
    if value is None and isinstance(block, (gr.Number, gr.Dropdown, gr.File, gr.Textbox, gr.HTML)):
        return None  # their functions say what an empty one means
    if isinstance(block, (gr.Slider, gr.Number)):
        low, high = block.minimum, block.maximum
        low, high = -inf if low is None else low, inf if high is None else high
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        right = number and low <= value <= high and abs(value) < inf
        allowed = "a number" + (f" from {low} to {high}" if (low, high) != (-inf, inf) else "")
    elif isinstance(block, gr.Checkbox):
        right, allowed = isinstance(value, bool), "true or false"
    elif isinstance(block, (gr.Dropdown, gr.Radio)):
        values = [value for _, value in block.choices]
        custom = getattr(block, "allow_custom_value", False) and isinstance(value, str)
        right = custom or value in values
        allowed = f"one of {', '.join(map(str, values))}"
    elif isinstance(block, gr.Dataset):
        right = type(value) is int and 0 <= value < len(block.samples)
        allowed = f"a whole number from 0 to {len(block.samples) - 1}"
    elif isinstance(block, (gr.File, gr.UploadButton)):
        right, allowed = isinstance(value, dict) and isinstance(value.get("path"), str), "an uploaded file"
    elif isinstance(block, (gr.Textbox, gr.HTML)):
        right, allowed = isinstance(value, str), "text"
    elif isinstance(block, Api):  # its function checks the rest; gradio would open what looks like a file
        right, allowed = "gradio.FileData" not in str(value), "a value that names no file"
    return None if right else allowed
