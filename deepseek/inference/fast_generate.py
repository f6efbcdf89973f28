"""`load` for Python: a checkpoint whose `.generate` decodes on the CPU kernels, with the tokens that transformers gives."""

import functools

from deepseek.checkpoints import loading
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.model import deepseek_v3
from deepseek.model.hf_compat import CausalLMOutput
from deepseek.model.mla_cache import MLACache

RECORDED = "output_attentions", "output_hidden_states", "output_router_logits", "output_router_indices"


@functools.wraps(loading.load)  # with its docstring for `help`
def load(*args, **kwargs):
    """As deepseek.checkpoints.loading.load; a DeepSeek-V3 model comes with the `generate` of this module."""
    model, tokenizer = loading.load(*args, **kwargs)
    if type(model) is deepseek_v3.DeepseekV3ForCausalLM:
        model.__class__ = DeepseekV3ForCausalLM
    return model, tokenizer


class DeepseekV3ForCausalLM(deepseek_v3.DeepseekV3ForCausalLM):
    """The model, with a `generate` that decodes by DecodeModel where that `supports` it; saved, it is the plain model.

    Whatever DecodeModel does not give takes the model's own forward: prompts, recorded outputs, hooks on modules.
    """

    packed = None  # (versions of the weights, their DecodeModel), from the last call of `generate`
    decode_model = None  # while `generate` runs

    def generate(self, *args, **kwargs):
        has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())
        if supports(self) and not self.training and not has_hooks:
            versions = [(parameter.data_ptr(), parameter._version) for parameter in self.state_dict().values()]
            if not self.packed or self.packed[0] != versions:  # else weights that were changed would go unnoticed
                self.packed = versions, DecodeModel(self)
            self.decode_model = self.packed[1]
        try:
            return super().generate(*args, **kwargs)
        finally:
            self.decode_model = None

    @functools.wraps(
        deepseek_v3.DeepseekV3ForCausalLM.forward
    )  # with its signature, by which `generate` chooses what to pass
    def forward(self, input_ids=None, **options):
        if not self.decode_model or not _is_decode_step(input_ids, **options):
            return super().forward(input_ids, **options)
        cache, mask, positions = (options.get(name) for name in ("past_key_values", "attention_mask", "position_ids"))
        padding = [0] * len(input_ids) if mask is None else (mask == 0).sum(1).tolist()
        length = cache.get_seq_length()
        positions = (
            [length] * len(input_ids) if positions is None else positions.expand(len(input_ids), 1)[:, 0].tolist()
        )
        logits_RV = self.decode_model.decode_batch(input_ids[:, 0].tolist(), cache, positions, padding)
        return CausalLMOutput(logits=logits_RV[:, None], past_key_values=cache)


def _is_decode_step(input_ids, past_key_values=None, attention_mask=None, **options) -> bool:
    """Whether a forward pass is of one token a row over a filled latent cache, padded at the left only, for logits only."""
    if input_ids is None or input_ids.shape[1] != 1 or any(options.get(name) for name in RECORDED):
        return False
    if not isinstance(past_key_values, MLACache) or not past_key_values.get_seq_length():
        return False
    return attention_mask is None or attention_mask.dim() == 2 and bool((attention_mask.diff(dim=1) >= 0).all())
