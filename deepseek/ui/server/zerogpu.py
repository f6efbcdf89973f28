"""Requests to large models on ZeroGPU, where a Hugging Face Space borrows a GPU for one call at a time.

`spaces.GPU` runs such a call in a forked process and pickles what goes in and out. Each call waits for a GPU and counts
against the user's daily quota, so small models run on the CPU there too. Elsewhere the package `spaces` is missing, or its
decorator changes nothing.
"""

import os
from collections.abc import Iterator

import torch

from deepseek.checkpoints.model_cache import ModelCache
from deepseek.inference import engine
from deepseek.inference.token_trace import TokenTrace
from deepseek.interpret.moe_layers import parameter_counts
from deepseek.ui.errors import user_errors

try:
    from spaces import GPU
except ImportError:

    def GPU(duration):
        """Replaces the decorator where there is none: changes nothing."""
        return lambda call: call


MIN_PARAMETERS = 200_000_000  # of a model for which waiting for a GPU pays
_models = ModelCache(2)  # used in the forked process alone, so that none of its locks is taken at the fork


def uses_borrowed_gpu(model) -> bool:
    """Whether requests to `model` run on a borrowed GPU."""
    return bool(os.environ.get("SPACES_ZERO_GPU")) and parameter_counts(model)[0] >= MIN_PARAMETERS


def duration_s(checkpoint, prompt, batch, forced_tokens, interventions, probe) -> int:
    """Seconds that the GPU is asked for: 20 to open the model, then 20 tokens a second; 120 at most."""
    return min(120, 20 + sum(params.max_new_tokens for params in batch) // 20)


@GPU(duration=duration_s)
def stream_batch(
    checkpoint: str, prompt, batch: list, forced_tokens: dict, interventions: list, probe: list
) -> Iterator[list[TokenTrace | None]]:
    """`engine.stream_batch` with the model at path `checkpoint`, on a GPU where there is one.

    Raises gr.Error, the one exception that keeps its message.
    """
    torch.set_num_threads(1)  # a forked process with more threads hangs
    with user_errors():
        model, tokenizer = _models.get(checkpoint)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        yield from engine.stream_batch(model, tokenizer, prompt, batch, forced_tokens, interventions, probe=probe)
