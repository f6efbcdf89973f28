"""Every mixture of experts among transformers' causal language models, tiny and random, from its own configuration class."""

import inspect
import re

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

EXPERTS, TOP_K, LAYERS, VOCABULARY = 8, 2, 4, 300
# Every field that a configuration class has takes the value below, whatever its family calls it.
TINY = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=LAYERS,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    bos_token_id=0, eos_token_id=0, pad_token_id=0,
    # experts
    num_local_experts=EXPERTS, num_experts=EXPERTS, n_routed_experts=EXPERTS, moe_num_experts=EXPERTS,
    num_experts_per_tok=TOP_K, moe_topk=TOP_K, top_k_experts=TOP_K, moe_k=TOP_K,
    n_group=1, topk_group=1, first_k_dense_replace=1, num_dense_layers=1, n_shared_experts=1, num_shared_experts=1,
    moe_num_shared_experts=1, shared_expert_intermediate_size=24, shared_intermediate_size=24, enable_moe_block=True,
    is_moe=True, num_mtp_layers=0, norm_topk_prob=True, zero_expert_num=4, moe_shared_expert_intermediate_size=24,
    dense_intermediate_size=48, intermediate_size_mlp=48, router_hidden_size=16, expert_ffn_hidden_size=24,
    ffn_hidden_size=48, shared_experts_intermediate_size=24, prefix_dense_intermediate_size=48,
    # latent and sparse attention
    q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, o_lora_rank=8, o_groups=2,
    index_topk=8, index_head_dim=8, index_n_heads=8, index_block_size=4, index_topk_blocks=4, sliding_window=6,
    # linear attention and state spaces
    linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_head_dim=8,
    linear_num_heads=4, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_num_heads=8, mamba_head_dim=8,
    ssm_state_size=8, n_groups=2, chunk_size=8, mamba_chunk_size=8,
    # inputs of a layer
    vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8,
)  # fmt: skip
LATENT = dict(num_key_value_heads=4, head_dim=4)  # as many keys as heads
SLIDING = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, head_dim=12, v_head_dim=8)
HYBRID = dict(layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"])
# What a family needs besides; None leaves a field to its own default.
SPECIAL = {
    "axk1": LATENT, "axk2": LATENT, "deepseek_v2": LATENT, "deepseek_v3": LATENT, "deepseek_v32": LATENT,
    "glm4_moe_lite": LATENT, "glm_moe_dsa": LATENT, "longcat_flash": LATENT | dict(num_layers=2),
    "dots3_note_text": LATENT | {f"swa_{field}": value for field, value in SLIDING.items()}, "hy_v4": LATENT,
    "kimi_linear": LATENT | HYBRID | dict(q_lora_rank=None), "bailing_hybrid": LATENT | HYBRID,
    "minimax": dict(layer_types=["linear_attention", "full_attention"] * 2, sliding_window=None),
    "qwen3_next": HYBRID, "qwen3_5_moe_text": HYBRID, 
    "qwen4_exp_text": HYBRID | dict(
        hc_lowrank=8, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=4,
    ),
    "gemma4_text": dict(global_head_dim=8), "glm5_next_text": LATENT | dict(index_kpool=4, qk_rope_head_dim=0),
    "deepseek_ocr2_text": dict(mlp_layer_types=["dense", *["sparse"] * (LAYERS - 1)]),
    "mistral_large4_text": LATENT, "qwen3_omni_moe_text": dict(sliding_window=None),
    "inkling2_text": dict(swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, d_rel=4, rel_extent=32),
    "zaya": dict(num_experts_per_tok=1),
    "dbrx": dict(
        d_model=32, n_heads=4, n_layers=LAYERS, max_seq_len=256, attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4),
        ffn_config=dict(ffn_hidden_size=24, moe_num_experts=EXPERTS, moe_top_k=TOP_K, hidden_size=32),
    ),
    "granitemoehybrid": dict(layer_types=["mamba", "attention"] * 2, mamba_expand=2),
    "granitemoe": dict(logits_scaling=4.0), "granitemoeshared": dict(logits_scaling=4.0),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8),
    "jetmoe": dict(kv_channels=8),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "inkling_text": dict(swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, d_rel=4, rel_extent=32),
    "nemotron_h": dict(layers_block_type=["mamba", "moe", "attention", "moe"], num_hidden_layers=None),
}  # fmt: skip


def mixtures() -> list[str]:
    """The model types of the text models whose code speaks of experts; one that holds such a text model is left out."""
    found = []
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        config_class = CONFIG_MAPPING[name]
        source = inspect.getsource(inspect.getmodule(MODEL_FOR_CAUSAL_LM_MAPPING[config_class]))
        if re.search(r"\bexperts\b", source) and "text_config" not in config_class.sub_configs:
            found.append(name)
    return found


def tiny_config(name: str, **changes):
    """A configuration of the family with four layers and eight experts, of which two run."""
    own = SPECIAL.get(name, {})
    return CONFIG_MAPPING[name](**own | _known(CONFIG_MAPPING[name], {**TINY, **own, **changes}))


def _known(config_class, fields: dict) -> dict:
    """Those of the fields that a configuration class has, whatever it calls them itself."""
    known = {*inspect.signature(config_class).parameters, *config_class.attribute_map}
    return {field: value for field, value in fields.items() if field in known and value is not None}


@torch.no_grad()
def tiny_model(name: str, **changes):
    """The family's model with weights that matter: every router's bias and scale decides who is chosen."""
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes)).eval()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        if isinstance(tensor, torch.nn.Parameter) and tensor.dim() > 1:
            tensor.normal_(0, 0.3 if "embed" in key else tensor.shape[-1] ** -0.5, generator=generator)
        elif "bias" in key and ("expert" in key or "correction" in key or "balancing" in key):
            tensor.normal_(0, 0.3, generator=generator)
            if "balancing" in key:
                tensor[-1] = -1.0  # as transformers sets it when it opens a checkpoint
        elif "tid2eid" in key:  # experts by token, other than those that the tests bar
            tensor.copy_(torch.stack([torch.arange(len(tensor)) % 2 + 4, torch.arange(len(tensor)) % 2 + 6], -1))
    return model


IMAGES = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
    global_head_dim=16, depth=1, num_heads=2, out_hidden_size=32, embed_dim=32, image_size=28, patch_size=14,
    vision_output_dim=32, projector_input_dim=32, projector_output_dim=32, deepstack_visual_indexes=[0],
    num_position_embeddings=16, text_hidden_size=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
    output_dim=32, mlp_dim=32, output_channels=32, downsample_channels=[32, 32], d_model=32, downsample_hidden_size=32,
    patch_sizes=[4], hidden_sizes=[32], depths=[1], pos_emb_height=4, pos_emb_width=4, mlp_layer_types=["dense"],
    adapter_input_size=32, adapter_in_dim=32, adapter_out_dim=32,
)  # fmt: skip
SEEING = {  # text mixtures in models that see or hear, with the rotary fields of their text part
    "llama4": {}, "qwen3_vl_moe": dict(mrope_section=[2, 1, 1]), "ernie4_5_vl_moe": dict(mrope_section=[1, 1, 2]),
    "glm4v_moe": dict(mrope_section=[2, 1, 1], partial_rotary_factor=1.0), "qwen3_5_moe": {}, "gemma4": {},
    "aria": {}, "inkling2": {}, "minimax_m3_vl": {}, "qwen3_omni_moe_thinker": dict(mrope_section=[2, 1, 1]), "qwen4_exp": {},
    "step3p7": {}, "glm5_next": {}, "mistral_large4": {}, "muse_spark": {}, "unlimited_ocr": {}, "deepseek_ocr2": {},
    "dots3_note": {},
}  # fmt: skip


def tiny_seeing_model(name: str):
    """A model of text and of images, or of sounds too, random as transformers makes it."""
    config_class, rope = CONFIG_MAPPING[name], SEEING[name]
    changes = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, **rope)) if rope else {}
    if name.startswith("ernie"):
        changes["moe_intermediate_size"] = [24, 24]
    text = config_class.sub_configs["text_config"]
    parts = dict(text_config=_known(text, {**TINY, **SPECIAL.get(text.model_type, {}), **changes}))
    if name != "gemma4":  # which sees nothing unless it is asked to
        parts |= _tiny_senses(config_class)
    config = config_class(**parts)
    torch.manual_seed(0)
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]._from_config(config).eval()


def _tiny_senses(config_class) -> dict:
    """The configurations of all parts but the text's, and of their own parts."""
    senses = {}
    for part, part_class in config_class.sub_configs.items():
        if part_class is AutoConfig:
            part_class = type(getattr(config_class(), part))
        if part != "text_config":
            own = _known(part_class, IMAGES) | dict(model_type=part_class.model_type)
            senses[part] = own | _tiny_senses(part_class)
    return senses


def without_expert(model, name: str, expert: int):
    """The same model built without one expert: what its own rule does with that expert barred."""
    counts = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    changes = {field: EXPERTS - 1 for field in counts}
    if name == "dbrx":
        changes = dict(ffn_config=SPECIAL[name]["ffn_config"] | dict(moe_num_experts=EXPERTS - 1))
    smaller = AutoModelForCausalLM.from_config(tiny_config(name, **changes)).eval()
    tensors = model.state_dict()
    for key, tensor in smaller.state_dict().items():
        source = tensors[key]
        for dim, (size, left) in enumerate(zip(source.shape, tensor.shape)):
            if size != left:
                rows = torch.arange(size).unflatten(0, (-1, size - left))
                kept = torch.cat([rows[:expert], rows[expert + 1 :]]).flatten()
                source = source.index_select(dim, kept)
        if not source.is_floating_point() and "tid2eid" in key:
            source = source - (source > expert).long()
        tensor.copy_(source)
    if name == "jetmoe":  # its attention has experts too, which stay
        for layer, own in zip(smaller.model.layers, model.model.layers):
            layer.self_attention = own.self_attention
    return smaller
