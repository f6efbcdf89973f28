"""Presets as transformers' own DeepseekV3Config, and the cache elements of a configuration."""

COMMON = dict(
    hidden_size=576,
    num_attention_heads=9,
    num_key_value_heads=9,
    n_routed_experts=8,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    q_lora_rank=192,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    # DeepseekV3Config's defaults describe the 671B model; these mean no groups, no extra scaling, no MTP.
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    num_nextn_predict_layers=0,
    tie_word_embeddings=True,
    eos_token_id=0,
    pad_token_id=0,
    # Stock transformers ignores these; llama.cpp reads the first two, this package the last two.
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    router_aux_loss_coef=0.01,
    hidden_dropout=0.0,
)

PRESETS = {
    "seed": dict(
        num_hidden_layers=12,
        intermediate_size=1536,
        moe_intermediate_size=512,
        vocab_size=49_152,
        max_position_embeddings=2048,
    ),
    "demo": dict(
        num_hidden_layers=6,
        intermediate_size=1152,
        moe_intermediate_size=192,
        vocab_size=8192,
        max_position_embeddings=512,
    ),
    "quick": dict(  # learns to write sentences within minutes on two cores
        num_hidden_layers=3,
        hidden_size=192,
        num_attention_heads=6,
        num_key_value_heads=6,
        q_lora_rank=96,
        kv_lora_rank=48,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        intermediate_size=512,
        moe_intermediate_size=128,
        vocab_size=2048,
        max_position_embeddings=256,
    ),
    "tiny": dict(
        num_hidden_layers=2,
        hidden_size=72,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        intermediate_size=144,
        moe_intermediate_size=48,
        vocab_size=257,
        max_position_embeddings=256,
    ),
}


def preset(name: str, **changes):
    """The DeepseekV3Config called `name` ("seed", "demo", "quick" or "tiny"), with some fields changed.

    Raises ValueError for an unknown name.
    """
    from transformers import DeepseekV3Config  # takes seconds, and whoever needs the names only does not wait for it

    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; it must be one of {', '.join(PRESETS)}.")
    return DeepseekV3Config(**{**COMMON, **PRESETS[name], **changes})


def kv_cache_elements_per_token(config) -> tuple[int, int]:
    """Cached elements per token and layer of DeepSeek-V3: (as latents, of the same heads as uncompressed keys and values).

    DeepSeek-V2, section 2.1.
    """
    uncompressed = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
    return config.kv_lora_rank + config.qk_rope_head_dim, uncompressed
