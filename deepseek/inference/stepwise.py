"""A DecodeModel in a model's place, so that a loss is measured of what decodes: one token after the other, in its weights."""

import torch
from torch import nn

from deepseek.inference.decode_model import DecodeModel, new_cache
from deepseek.model.hf_compat import CausalLMOutput


class StepwiseModel(nn.Module):
    """Gives the logits of `model` decoded with `weights`, as its forward gives them. Raises ValueError as DecodeModel does."""

    def __init__(self, model, weights: str):
        super().__init__()
        self.model, self.decode_model, self.device = model, DecodeModel(model, weights), model.device

    @torch.inference_mode()
    def forward(self, input_ids, attention_mask, **_):
        """Logits (B, S, vocabulary) in float32 of rows padded on the right; those of padding are 0."""
        ends = attention_mask.sum(1).tolist()
        caches = [new_cache(self.model, end) for end in ends]
        logits_BSV = torch.zeros(*input_ids.shape, self.model.config.vocab_size)
        for position in range(max(ends)):
            rows = [row for row, end in enumerate(ends) if position < end]
            step = input_ids[rows, position].tolist(), [caches[row] for row in rows]
            logits_BSV[rows, position], _ = self.decode_model(*step)
        return CausalLMOutput(logits=logits_BSV)
