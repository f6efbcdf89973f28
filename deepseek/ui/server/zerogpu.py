"""Texts by large models on ZeroGPU, where a Hugging Face Space borrows a GPU for one call at a time.

`spaces.GPU` runs such a call in a process forked for it; what goes in and what comes out is pickled. Each call waits for
a GPU and counts against its reader's share of the day, so small models are written by the processor there too. Elsewhere
there is no such package, or its decorator changes nothing.
"""

import os
from collections.abc import Iterator

import torch

from deepseek.checkpoints.model_cache import ModelCache
from deepseek.inference.engine import TokenTrace
from deepseek.inference.engine import stream as write
from deepseek.model.config import parameter_counts
from deepseek.ui.errors import user_error

try:
    from spaces import GPU
except ImportError:

    def GPU(duration):
        """Stands for the decorator where there is none: changes nothing."""
        return lambda call: call


MIN_PARAMETERS = 200_000_000  # parameters from which on a GPU is worth waiting for
_held = ModelCache(2)  # opened in the forked process alone, so that no lock of it is held when that is forked


def uses_borrowed_gpu(model) -> bool:
    """Whether a text by `model` is to be written on a borrowed GPU."""
    return bool(os.environ.get("SPACES_ZERO_GPU")) and parameter_counts(model)[0] >= MIN_PARAMETERS


def seconds(checkpoint, prompt, params, force, changes) -> int:
    """For how long the GPU is asked for: opening the model, then 20 tokens a second; 120 at most."""
    return min(120, 20 + params.max_new_tokens // 20)


@GPU(duration=seconds)
def stream(checkpoint: str, prompt, params, force: dict, changes: list) -> Iterator[TokenTrace]:
    """As `Workers.stream`, on a GPU where there is one. Raises gr.Error, which alone keeps its sentence on the way back."""
    torch.set_num_threads(1)  # a forked process that computes with more hangs
    try:
        model, tokenizer = _held.open(checkpoint)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        yield from write(model, tokenizer, prompt, params, force, changes)
    except ValueError as error:
        raise user_error(error) from error
