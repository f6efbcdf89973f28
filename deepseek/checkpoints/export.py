"""Checkpoints as a folder to share: in bf16, and several of a run as the mean of their weights."""

from itertools import chain

import torch

from deepseek.checkpoints.loading import load


@torch.no_grad()
def export(source, target, dtype: torch.dtype = torch.bfloat16) -> None:
    """Saves the model and tokenizer of checkpoint `source` into folder `target`, weights as `dtype`.

    Of a list of checkpoints of one run it saves the mean of their weights. At a constant learning rate that gains what letting
    the rate fall gains, and the run can go on (LAWA, Kaddour, 2022, arXiv 2209.14981). Raises CheckpointError as `load` does.
    """
    sources = source if isinstance(source, list) else [source]
    model, tokenizer = load(sources[-1], dtype)  # not .to(dtype), which would round the router's float32 bias too
    if len(sources) > 1:
        means = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in _tensors(model)]
        for path in sources:
            for mean, tensor in zip(means, _tensors(load(path, torch.float32)[0]), strict=True):
                mean += tensor / len(sources)
        for tensor, mean in zip(_tensors(model), means):
            tensor.copy_(mean)
    model.save_pretrained(target)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)


def _tensors(model):
    """Its parameters, each once where some are tied, and its buffers."""
    return chain(model.parameters(), model.buffers())
