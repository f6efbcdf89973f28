"""`DecodeModel`: one decode step of a mixture of experts for a batch of sequences, on the CPU kernels.

At one token per sequence a layer is a dozen matrix-vector products, and the operations around them cost as much. So
weights that share an input are packed into one matrix and `kernels` does the rest. It gives the logits of the model's own
forward, over the same cache; with `weights` "bf16" or "int8" the matrices are rounded and take half or a quarter of
float32's time to read. A batch reads the weights once, and each sequence gets bit for bit what it gets alone.

It takes our DeepSeek-V3, and those of transformers' models that have the same parts: a norm, attention of one of two kinds,
a norm, and a GLU or a mixture of them.

Shape letters are those of deepseek_v3.py, and R sequences.
"""

import numpy as np
import torch
from torch import nn

from deepseek.inference.decode_gqa import GQA
from deepseek.inference.decode_mla import MLA
from deepseek.inference.decode_moe import MoE, dense_glu
from deepseek.inference.packed_linear import WEIGHT_FORMATS, PackedLinear
from deepseek.interpret.moe_layers import moe_layers
from deepseek.kernels import gemm, ops
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.gqa_cache import GQACache
from deepseek.model.layers import Linear
from deepseek.model.mla_cache import DeepseekV2Cache, MLACache

# transformers' model types that have these parts, with their attention and cache; tests/inference/test_decode_families.py
# holds each to transformers.
FAMILIES = {"deepseek_v2": (MLA, DeepseekV2Cache)} | dict.fromkeys(
    ("dots1", "glm4_moe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"), (GQA, GQACache)
)
ROPE_TYPES = "default", "linear", "llama3", "yarn"  # whose frequencies do not change with the length of a text


def supports(model) -> bool:
    """Whether a DecodeModel can be built from `model`.

    That is our DeepSeek-V3 or one of FAMILIES, in this machine's memory as float32 or bfloat16, with one group of experts,
    and without sliding windows, clipped queries, or rotary frequencies that depend on the length.
    """
    config = model.config
    if not _family(model) or model.device.type != "cpu" or getattr(model, "expert_cache", None):
        return False
    window = getattr(config, "sliding_window", None)
    return (
        model.dtype in (torch.float32, torch.bfloat16)
        and config.hidden_act == "silu"
        and getattr(config, "n_group", None) in (None, 1)
        and not (window and window < config.max_position_embeddings)
        and getattr(config, "clip_qkv", None) is None
        and config.rope_parameters["rope_type"] in ROPE_TYPES
        and all(map(_is_plain, model.modules()))
    )


def _family(model) -> tuple | None:
    """(attention, cache) of a causal language model, None for those of other families."""
    if isinstance(model, DeepseekV3ForCausalLM):
        return MLA, MLACache
    return FAMILIES.get(model.config.model_type) if type(model).__name__.endswith("ForCausalLM") else None


def _is_plain(module) -> bool:
    """Whether a module is no linear layer of another kind, such as a quantised one or one with an adapter."""
    return type(module) in (nn.Linear, Linear) or "Linear" not in type(module).__name__


def new_cache(model, capacity: int) -> MLACache | GQACache | None:
    """An empty cache that a model's own forward and its DecodeModel share; None for a model that is not supported.

    Our DeepSeek-V3 has one even where it is not supported.
    """
    if isinstance(model, DeepseekV3ForCausalLM) or supports(model):
        _, cache_type = _family(model)
        return cache_type(model.config, capacity)
    return None


class DecodeModel:
    """The model packed for decoding: `decode_model(tokens, caches)` is the next step of a batch of sequences.

    Built from a model in eval mode. It shares the tensors that need no other layout, of which the experts are most, and uses
    as many threads as torch. Raises ValueError for unknown `weights` and for a model that `supports` refuses.
    """

    @torch.inference_mode()
    def __init__(self, model, weights: str = "model"):
        if weights not in WEIGHT_FORMATS:
            raise ValueError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHT_FORMATS)}.")
        if not supports(model):
            allowed = f"DeepSeek-V3 or one of {', '.join(FAMILIES)}, on the CPU in float32 or bfloat16"
            raise ValueError(
                f"model is of type {model.config.model_type!r}; what packs weights to decode must be {allowed}."
            )
        attention_type, _ = _family(model)
        self.cos_sin, self.rotary = attention_type.cos_sin, model.model.rotary_emb
        self.embedding, self.eps = model.model.embed_tokens.weight, model.config.rms_norm_eps
        experts, self.layers = moe_layers(model), []
        for index, layer in enumerate(model.model.layers):
            mlp = layer.mlp
            mlp = MoE(mlp, experts[index], model.config, weights) if index in experts else dense_glu(mlp, weights)
            norms = (layer.input_layernorm, layer.post_attention_layernorm)
            attention = attention_type(layer.self_attn, weights)
            self.layers.append((attention, mlp, *(norm.weight.float().numpy() for norm in norms)))
        # A cache entry, in torch and in the kernels' dtype.
        self.entry = torch.empty(1, 1, 1, attention.entry_width, dtype=model.dtype)
        self.like_W = (self.entry.view(torch.uint16) if model.dtype == torch.bfloat16 else self.entry).numpy()[0, 0, 0]
        self.norm, self.head = model.model.norm.weight.float().numpy(), PackedLinear(weights, model.lm_head)

    def __call__(self, tokens: list[int], caches: list[MLACache | GQACache], expert_bias: dict | None = None):
        """(logits (R, vocabulary) in float32, {MoE layer: (experts (R, K), weights (R, K))}) after one token per sequence.

        The caches grow by one. `expert_bias` is {layer: (R, E)}: -inf switches an expert off for a sequence, inf forces it,
        a number from -1 to 1 steers its score (`router_watch.steered`).
        """

        def entries_R2(index: int) -> np.ndarray:
            layers = [cache.layers[index] for cache in caches]
            for layer in layers:
                layer.extend(self.entry, 1)
            return np.array([(layer.keys.data_ptr(), layer.length) for layer in layers])

        return self._step(tokens, [cache.get_seq_length() for cache in caches], entries_R2, expert_bias)

    def decode_batch(
        self, tokens: list[int], cache: MLACache | GQACache, positions: list[int], padding: list[int]
    ) -> torch.Tensor:
        """Logits (R, vocabulary) in float32 after one token per row of a batch in one cache, which grows by one.

        `positions` are the tokens'; the first `padding` entries of each row are left out.
        """

        def entries_R2(index: int) -> np.ndarray:
            layer = cache.layers[index]
            layer.extend(layer.keys, 1)
            rows = enumerate(padding)
            return np.array([(layer.keys[row, 0, start:].data_ptr(), layer.length - start) for row, start in rows])

        return self._step(tokens, positions, entries_R2)[0]

    def _step(self, tokens: list[int], positions: list[int], entries_R2, expert_bias: dict | None = None):
        """The step itself; `entries_R2(layer)` makes room in its cache, and gives each sequence's first address and length."""
        num_threads = torch.get_num_threads()
        gemm.set_num_threads(num_threads)
        if torch.get_num_threads() != num_threads:  # Numba and torch may share an OpenMP
            torch.set_num_threads(num_threads)
        with torch.no_grad():
            cos_RJ, sin_RJ = self.cos_sin(self.rotary, torch.tensor(positions))
            x_RD = self.embedding[torch.tensor(tokens)].float().numpy()
        routing = {}
        for index, (attention, mlp, input_norm, post_attention_norm) in enumerate(self.layers):
            h_RD = ops.rms_norm(x_RD, 0, input_norm, self.eps)
            x_RD += attention(h_RD, cos_RJ, sin_RJ, entries_R2(index), self.like_W, num_threads)
            h_RD = ops.rms_norm(x_RD, 0, post_attention_norm, self.eps)
            if isinstance(mlp, MoE):
                y_RD, *routing[index] = mlp(h_RD, (expert_bias or {}).get(index), num_threads)
                x_RD += y_RD
            else:
                x_RD += mlp(h_RD, num_threads)
        logits_RV = self.head(ops.rms_norm(x_RD, 0, self.norm, self.eps), num_threads)
        return torch.from_numpy(logits_RV), routing
