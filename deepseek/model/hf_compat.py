"""Everything the model needs from transformers' private hooks, as of transformers 5.23.

tests/model/test_deepseek_v3.py fails when a hook changes: it compares `generate`, recorded outputs and saved folders with
those of transformers' own DeepseekV3ForCausalLM.
"""

from dataclasses import dataclass

import torch
from transformers import GenerationMixin
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from deepseek.model.mla_cache import MLACache


@dataclass
class ModelOutput(MoeModelOutputWithPast):
    """transformers' output with the selected experts: one (B*S, K) int64 tensor per MoE layer."""

    router_indices: tuple[torch.Tensor, ...] | None = None


@dataclass
class CausalLMOutput(MoeCausalLMOutputWithPast):
    """transformers' output with the selected experts and both terms of `loss`: lm_loss + coefficient * aux_loss."""

    lm_loss: torch.Tensor | None = None
    router_indices: tuple[torch.Tensor, ...] | None = None


class MLAGenerationMixin(GenerationMixin):
    """`.generate` over an MLACache; transformers would pass a DynamicCache, which keeps no latents."""

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, mode, batch_size, max_cache_length):
        is_default = generation_config.use_cache and generation_config.cache_implementation is None
        if is_default and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = MLACache(self.config, max_cache_length)
        else:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, mode, batch_size, max_cache_length)


# transformers stacks a checkpoint's experts, one tensor each, for its own classes alone; it knows a class by its name.
_conversion = get_checkpoint_conversion_mapping("deepseek_v3")
register_checkpoint_conversion_mapping("DeepseekV3ForCausalLM", _conversion, overwrite=True)
