#!/usr/bin/env python3
"""Open a saved DeepSeek-V3-layout checkpoint in llama.cpp: check its logits and time it.

    pip install gguf && pip install --no-binary llama-cpp-python llama-cpp-python   # builds llama.cpp, ~5 min on 2 cores
    python llama_cpp_peer.py CHECKPOINT_DIR --type bf16 [--threads 2] [--logits out.npy] [--json]

CHECKPOINT_DIR holds config.json and model.safetensors with transformers' DeepseekV3ForCausalLM names
(per-expert tensors). The GGUF carries no tokenizer: prompts are token ids drawn from --seed, so the same
ids can be fed to another engine (see `token_ids`). --logits saves the last-position logits, shape (prompt, vocab).
Figures printed: decode tokens/s after prompts of --contexts tokens, prefill tokens/s; each the best of --repeat.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def token_ids(count, vocab, seed):
    """The prompt's ids: `count` draws below `vocab`, the same for every engine given the same seed."""
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def write_gguf(folder, path, kind):
    config = json.loads((Path(folder) / "config.json").read_text())
    state = {}
    for part in sorted(Path(folder).glob("*.safetensors")):
        state.update(load_file(part))
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    heads, nope, rope = config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    latent, value, experts = config["kv_lora_rank"], config["v_head_dim"], config["n_routed_experts"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]

    out = gguf.GGUFWriter(str(path), "deepseek2")
    out.add_block_count(layers)
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(1)
    out.add_rope_freq_base(theta)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_expert_count(experts)
    out.add_expert_used_count(config["num_experts_per_tok"])
    out.add_expert_shared_count(config["n_shared_experts"])
    out.add_expert_feed_forward_length(config["moe_intermediate_size"])
    out.add_expert_weights_scale(config["routed_scaling_factor"])
    out.add_expert_weights_norm(config["norm_topk_prob"])
    out.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    out.add_leading_dense_block_count(dense)
    out.add_q_lora_rank(config["q_lora_rank"])
    out.add_kv_lora_rank(latent)
    out.add_key_length(latent + rope)
    out.add_value_length(latent)
    out.add_key_length_mla(nope + rope)
    out.add_value_length_mla(value)
    out.add_rope_dimension_count(rope)
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("no_vocab")

    def add(name, tensor, keep_f32=False):
        array = tensor.float().contiguous().numpy()
        if array.ndim >= 2 and not keep_f32 and kind != "f32":
            out.add_tensor(name, gguf.quants.quantize(array, TYPES[kind]), raw_dtype=TYPES[kind])
        else:
            out.add_tensor(name, array)

    def stack(prefix, projection):
        import torch

        return torch.stack([state[f"{prefix}mlp.experts.{e}.{projection}.weight"] for e in range(experts)])

    add("token_embd.weight", state["model.embed_tokens.weight"])
    add("output_norm.weight", state["model.norm.weight"])
    if not config["tie_word_embeddings"]:
        add("output.weight", state["lm_head.weight"])
    for i in range(layers):
        here, there = f"model.layers.{i}.", f"blk.{i}."
        add(there + "attn_norm.weight", state[here + "input_layernorm.weight"])
        add(there + "ffn_norm.weight", state[here + "post_attention_layernorm.weight"])
        for theirs, ours in (
            ("q_a", "q_a_proj"),
            ("q_a_norm", "q_a_layernorm"),
            ("q_b", "q_b_proj"),
            ("kv_a_mqa", "kv_a_proj_with_mqa"),
            ("kv_a_norm", "kv_a_layernorm"),
            ("output", "o_proj"),
        ):
            add(f"{there}attn_{theirs}.weight", state[f"{here}self_attn.{ours}.weight"])
        up = state[here + "self_attn.kv_b_proj.weight"].view(heads, nope + value, latent)
        key_up, value_up = up.split([nope, value], dim=1)
        add(there + "attn_k_b.weight", key_up.transpose(1, 2))
        add(there + "attn_v_b.weight", value_up)
        if i < dense:
            for part in ("gate", "up", "down"):
                add(f"{there}ffn_{part}.weight", state[f"{here}mlp.{part}_proj.weight"])
            continue
        add(there + "ffn_gate_inp.weight", state[here + "mlp.gate.weight"], keep_f32=True)
        add(there + "exp_probs_b.bias", state[here + "mlp.gate.e_score_correction_bias"])
        for part in ("gate", "up", "down"):
            add(f"{there}ffn_{part}_exps.weight", stack(here, f"{part}_proj"))
            add(f"{there}ffn_{part}_shexp.weight", state[f"{here}mlp.shared_experts.{part}_proj.weight"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return config["vocab_size"]


class LlamaCpp:
    """One llama.cpp context over a GGUF, fed token ids; cache_type is a ggml_type: 0 f32, 1 f16 (llama.cpp's default)."""

    def __init__(self, path, threads, context=2048, cache_type=1):
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = cache_type
        self.context = llama_cpp.llama_init_from_model(self.model, params)

    def decode(self, ids):
        buffer = (self.api.llama_token * len(ids))(*ids)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(buffer, len(ids))):
            raise RuntimeError("llama_decode failed")
        self.api.llama_synchronize(self.context)

    def last_logits(self, vocab):
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), (vocab,)).copy()

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)


def best_rate(work, tokens, repeat):
    rates = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        rates.append(tokens / (time.perf_counter() - start))
    return max(rates)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--type", choices=TYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--logits", help="save the logits after each prefix of a 32-token prompt here (.npy)")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        vocab = write_gguf(args.checkpoint, path, args.type)
        context = max(2048, max(args.contexts) + args.new * args.repeat)
        engine = LlamaCpp(path, args.threads, context, cache_type=0 if args.type == "f32" else 1)
        if args.logits:
            rows = []
            for token in token_ids(32, vocab, args.seed):
                engine.decode([token])
                rows.append(engine.last_logits(vocab))
            np.save(args.logits, np.stack(rows))
            engine.clear()
        figures = {"engine": "llama.cpp", "type": args.type, "threads": args.threads}
        for prompt in args.contexts:
            engine.clear()
            engine.decode(token_ids(prompt, vocab, args.seed))
            new = iter(token_ids(args.new * args.repeat, vocab, args.seed + 1))

            def decode(new=new):
                for _ in range(args.new):
                    engine.decode([next(new)])

            figures[f"decode_{prompt}"] = best_rate(decode, args.new, args.repeat)

        def prefill():
            engine.clear()
            engine.decode(token_ids(512, vocab, args.seed))

        prefill()
        figures["prefill_512"] = best_rate(prefill, 512, args.repeat)
        print(json.dumps({k: round(v, 1) if isinstance(v, float) else v for k, v in figures.items()}))


if __name__ == "__main__":
    main()
