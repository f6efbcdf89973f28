#!/usr/bin/env python3
"""Opens a checkpoint of transformers' DeepseekV3ForCausalLM or OlmoeForCausalLM in llama.cpp: its logits and its speed.

    pip install gguf && pip install --no-binary llama-cpp-python llama-cpp-python   # builds llama.cpp, ~5 min on 2 cores
    python llama_cpp_peer.py CHECKPOINT --type bf16 [--threads 2] [--logits out.npy]

CHECKPOINT is a folder with config.json and *.safetensors, one tensor per expert. The GGUF has no tokenizer: prompts are
random token ids from --seed, so that another engine can be given the same (see `token_ids`). --logits saves the logits of
each position of a prompt, shape (prompt, vocabulary). Prints JSON: decode tokens/s after prompts of --contexts tokens and
prefill tokens/s, each the best of --repeat.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
F32_CACHE, F16_CACHE = 0, 1  # llama.cpp's numbers of the types; f16 is its default
PREFILL_TOKENS, LOGITS_TOKENS = 512, 32
ATTENTION_TENSORS = {  # llama.cpp's name -> transformers' name
    "q_a": "q_a_proj",
    "q_a_norm": "q_a_layernorm",
    "q_b": "q_b_proj",
    "kv_a_mqa": "kv_a_proj_with_mqa",
    "kv_a_norm": "kv_a_layernorm",
    "output": "o_proj",
}


def token_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    """`count` random ids below `vocab_size`, the same for every engine given the same seed."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def write_gguf(folder: str, path: Path, type_name: str) -> int:
    """Writes a checkpoint as GGUF with weights of a type, one of TYPES; returns the vocabulary's size."""
    config = json.loads((Path(folder) / "config.json").read_text())
    state = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        state.update(load_file(file))
    olmoe = config["model_type"] == "olmoe"
    writer = gguf.GGUFWriter(str(path), "olmoe" if olmoe else "deepseek2")
    (add_olmoe_config if olmoe else add_config)(writer, config)
    (add_olmoe_tensors if olmoe else add_tensors)(writer, config, state, type_name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config["vocab_size"]


def add_common_config(writer: gguf.GGUFWriter, config: dict) -> None:
    """Adds the settings that both families have to a GGUF."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def add_olmoe_config(writer: gguf.GGUFWriter, config: dict) -> None:
    """Adds the settings of OLMoE's config.json to a GGUF."""
    add_common_config(writer, config)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_expert_count(config["num_experts"])


def add_config(writer: gguf.GGUFWriter, config: dict) -> None:
    """Adds the settings of DeepSeek-V3's config.json to a GGUF."""
    nope, rope, latent = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    add_common_config(writer, config)
    writer.add_head_count_kv(1)
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(nope + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rope)


def tensor_adder(writer: gguf.GGUFWriter, type_name: str):
    """`add(name, tensor)` for a GGUF: matrices in a type, one of TYPES, vectors and what keeps float32 in that."""

    def add(name, tensor, keep_f32=False):
        array = tensor.float().contiguous().numpy()
        if array.ndim >= 2 and not keep_f32 and type_name != "f32":
            writer.add_tensor(name, gguf.quants.quantize(array, TYPES[type_name]), raw_dtype=TYPES[type_name])
        else:
            writer.add_tensor(name, array)

    return add


def add_ends(add, config: dict, state: dict) -> None:
    """Adds what lies before and after the layers."""
    add("token_embd.weight", state["model.embed_tokens.weight"])
    add("output_norm.weight", state["model.norm.weight"])
    if not config["tie_word_embeddings"]:
        add("output.weight", state["lm_head.weight"])


def add_norms(add, block: str, layer: str, state: dict) -> None:
    """Adds the two norms of a layer."""
    add(block + "attn_norm.weight", state[layer + "input_layernorm.weight"])
    add(block + "ffn_norm.weight", state[layer + "post_attention_layernorm.weight"])


def add_olmoe_tensors(writer: gguf.GGUFWriter, config: dict, state: dict, type_name: str) -> None:
    """Adds OLMoE's weights to a GGUF."""
    add = tensor_adder(writer, type_name)
    add_ends(add, config, state)
    for i in range(config["num_hidden_layers"]):
        layer, block = f"model.layers.{i}.", f"blk.{i}."
        add_norms(add, block, layer, state)
        for part in ("q", "k", "v"):
            add(f"{block}attn_{part}.weight", state[f"{layer}self_attn.{part}_proj.weight"])
        for part in ("q", "k"):
            add(f"{block}attn_{part}_norm.weight", state[f"{layer}self_attn.{part}_norm.weight"])
        add(block + "attn_output.weight", state[layer + "self_attn.o_proj.weight"])
        add(block + "ffn_gate_inp.weight", state[layer + "mlp.gate.weight"], keep_f32=True)
        for part in ("gate", "up", "down"):
            names = (f"{layer}mlp.experts.{e}.{part}_proj.weight" for e in range(config["num_experts"]))
            add(f"{block}ffn_{part}_exps.weight", torch.stack([state[name] for name in names]))


def add_tensors(writer: gguf.GGUFWriter, config: dict, state: dict, type_name: str) -> None:
    """Adds DeepSeek-V3's weights to a GGUF."""
    heads, nope, value_dim = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    add = tensor_adder(writer, type_name)
    add_ends(add, config, state)
    for i in range(config["num_hidden_layers"]):
        layer, block = f"model.layers.{i}.", f"blk.{i}."
        add_norms(add, block, layer, state)
        for gguf_name, name in ATTENTION_TENSORS.items():
            add(f"{block}attn_{gguf_name}.weight", state[f"{layer}self_attn.{name}.weight"])
        up_HXC = state[layer + "self_attn.kv_b_proj.weight"].view(heads, nope + value_dim, config["kv_lora_rank"])
        key_up_HNC, value_up_HVC = up_HXC.split([nope, value_dim], dim=1)
        add(block + "attn_k_b.weight", key_up_HNC.transpose(1, 2))
        add(block + "attn_v_b.weight", value_up_HVC)
        if i < config["first_k_dense_replace"]:
            for part in ("gate", "up", "down"):
                add(f"{block}ffn_{part}.weight", state[f"{layer}mlp.{part}_proj.weight"])
            continue
        add(block + "ffn_gate_inp.weight", state[layer + "mlp.gate.weight"], keep_f32=True)
        add(block + "exp_probs_b.bias", state[layer + "mlp.gate.e_score_correction_bias"])
        for part in ("gate", "up", "down"):
            names = (f"{layer}mlp.experts.{e}.{part}_proj.weight" for e in range(config["n_routed_experts"]))
            add(f"{block}ffn_{part}_exps.weight", torch.stack([state[name] for name in names]))
            add(f"{block}ffn_{part}_shexp.weight", state[f"{layer}mlp.shared_experts.{part}_proj.weight"])


class LlamaCpp:
    """A llama.cpp context over a GGUF that takes token ids; `cache_type` is F32_CACHE or F16_CACHE."""

    def __init__(self, path: Path, threads: int, context: int = 2048, cache_type: int = F16_CACHE):
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = cache_type
        self.context = llama_cpp.llama_init_from_model(self.model, params)

    def decode(self, ids: list[int]) -> None:
        """Runs the model on ids, after those in the cache. Raises RuntimeError if llama.cpp reports a failure."""
        buffer = (self.api.llama_token * len(ids))(*ids)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(buffer, len(ids))):
            raise RuntimeError("llama_decode failed")
        self.api.llama_synchronize(self.context)

    def last_logits(self, vocab_size: int) -> np.ndarray:
        """The logits of the last id, (vocabulary,)."""
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), (vocab_size,)).copy()

    def clear(self) -> None:
        """Empties the cache."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)


def rate(work, num_tokens: int) -> float:
    """Tokens/s of one call of `work`, which runs `num_tokens`."""
    start = time.perf_counter()
    work()
    return num_tokens / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--type", choices=TYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=64, help="tokens decoded in one timed go (64)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 1024])
    help = f"file (.npy) for the logits of each position of a prompt of {LOGITS_TOKENS} tokens"
    parser.add_argument("--logits", help=help)
    args = parser.parse_args()
    figures = {"engine": "llama.cpp", "type": args.type, "threads": args.threads}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        vocab_size = write_gguf(args.checkpoint, path, args.type)
        capacity = max(2048, max(args.contexts) + args.new * args.repeat)
        engine = LlamaCpp(path, args.threads, capacity, F32_CACHE if args.type == "f32" else F16_CACHE)

        def prefill(num_tokens):
            engine.clear()
            engine.decode(token_ids(num_tokens, vocab_size, args.seed))

        def decode(ids):
            for token in ids:
                engine.decode([token])

        if args.logits:
            rows = []
            for token in token_ids(LOGITS_TOKENS, vocab_size, args.seed):
                engine.decode([token])
                rows.append(engine.last_logits(vocab_size))
            np.save(args.logits, np.stack(rows))
        for context in args.contexts:
            prefill(context)
            ids = np.reshape(token_ids(args.new * args.repeat, vocab_size, args.seed + 1), (args.repeat, args.new))
            rates = [rate(lambda chunk=chunk: decode(chunk), args.new) for chunk in ids.tolist()]
            figures[f"decode_{context}"] = round(max(rates), 1)
        prefill(PREFILL_TOKENS)  # warm-up
        rates = [rate(lambda: prefill(PREFILL_TOKENS), PREFILL_TOKENS) for _ in range(args.repeat)]
        figures[f"prefill_{PREFILL_TOKENS}"] = round(max(rates), 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
