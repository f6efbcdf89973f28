"""Which published mixtures of experts open on a machine with 16 or 24 GiB: `python tests/measure/fitting.py`.

From their published shapes: what lies in memory beside the experts, and how `load` opens each with 1.5 GiB left to the system.
Prints a table in Markdown. With `--open NAME` such a model is opened in truth,
from files of the published names and shapes in which all numbers are 0, so that they take no room on the disk.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

sys.path.insert(0, str(Path(__file__).parents[2]))

from deepseek.checkpoints.loading import load
from deepseek.checkpoints.mapped_experts import expert_stacks
from deepseek.checkpoints.memory import loading_bytes

MACHINES_GIB, SYSTEM_GIB = (16, 24), 1.5
SHARD_BYTES = 4 * 2**30
LATENT = dict(kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, vocab_size=102400)
MODELS = {  # name: (configuration, published billions of parameters, bytes of a stored expert's parameter)
    "OLMoE-1B-7B": (
        transformers.OlmoeConfig(intermediate_size=1024), 6.9, 2),
    "Qwen1.5-MoE-A2.7B": (
        transformers.Qwen2MoeConfig(
            hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16, num_experts=60,
            moe_intermediate_size=1408, shared_expert_intermediate_size=5632, vocab_size=151936), 14.3, 2),
    "DeepSeek-V2-Lite": (
        transformers.DeepseekV2Config(
            **LATENT, hidden_size=2048, num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16,
            q_lora_rank=None, n_routed_experts=64, n_shared_experts=2, moe_intermediate_size=1408,
            intermediate_size=10944, first_k_dense_replace=1, n_group=1, topk_group=1), 15.7, 2),
    "gpt-oss-20b": (
        transformers.GptOssConfig(num_hidden_layers=24, num_local_experts=32), 20.9, 17 / 32),
    "Qwen3-30B-A3B": (
        transformers.Qwen3MoeConfig(
            hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
            num_experts=128, moe_intermediate_size=768, vocab_size=151936), 30.5, 2),
    "Phi-3.5-MoE": (
        transformers.PhimoeConfig(
            hidden_size=4096, intermediate_size=6400, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, num_local_experts=16, vocab_size=32064), 41.9, 2),
    "Mixtral-8x7B": (
        transformers.MixtralConfig(), 46.7, 2),
    "gpt-oss-120b": (
        transformers.GptOssConfig(num_hidden_layers=36, num_local_experts=128), 116.8, 17 / 32),
    "Mixtral-8x22B": (
        transformers.MixtralConfig(
            hidden_size=6144, intermediate_size=16384, num_hidden_layers=56, num_attention_heads=48), 140.6, 2),
    "Qwen3-235B-A22B": (
        transformers.Qwen3MoeConfig(
            hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4, head_dim=128,
            num_experts=128, moe_intermediate_size=1536, vocab_size=151936), 235.1, 2),
}  # fmt: skip


def on_meta(config):
    """The model of a configuration, built without memory."""
    with torch.device("meta"):
        return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config)


def write_sparse(folder: Path, config) -> None:
    """Writes a checkpoint in bf16 with the names and shapes of the published one; all its numbers are 0."""
    model = on_meta(config)
    tensors, shards, files = sorted(revert_weight_conversion(model, model.state_dict()).items()), [], {}
    for name, tensor in tensors:
        if not shards or shards[-1][1] > SHARD_BYTES:
            shards.append([{}, 0])
        begin, end = shards[-1][1], shards[-1][1] + 2 * tensor.numel()
        shards[-1][0][name] = dict(dtype="BF16", shape=list(tensor.shape), data_offsets=[begin, end])
        shards[-1][1], files[name] = end, f"model-{len(shards)}.safetensors"
    for number, (header, num_bytes) in enumerate(shards, 1):
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        text += b" " * (-len(text) % 8)
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + num_bytes)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    config.save_pretrained(folder)


def open_sparse(name: str, max_memory: str) -> None:
    """Opens a model's sparse files and prints how long that took and what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        write_sparse(Path(folder), MODELS[name][0])
        start = time.perf_counter()
        model, _ = load(folder, max_memory=max_memory)
        seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    cache = model.expert_cache.max_bytes / 2**30 if model.expert_cache else 0
    print(f"{name}: opened in {seconds:.1f} s, peak {peak:.1f} GiB, up to {cache:.1f} GiB of experts, {model.dtype}")


def opens(parameters: int, in_experts: int, gib: float) -> str:
    beside = loading_bytes(2 * (parameters - in_experts), 0) / 2**30
    if loading_bytes(2 * parameters, 0) / 2**30 <= gib:
        return "in memory"
    return f"keeps {gib - beside:.1f} GiB of experts" if beside <= gib else "no"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--open", metavar="NAME", choices=MODELS, help="only open this one")
    parser.add_argument("--max-memory", default="14.5GiB", help="for --open (14.5GiB)")
    args = parser.parse_args()
    if args.open:
        return open_sparse(args.open, args.max_memory)
    print("| model | parameters | files | beside the experts |", *(f"{gib} GiB |" for gib in MACHINES_GIB))
    print("|---" * (4 + len(MACHINES_GIB)) + "|")
    for name, (config, published, itemsize) in MODELS.items():
        model = on_meta(config)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        in_experts = sum(parameter.numel() for parameter in expert_stacks(model).values())
        assert abs(parameters / 1e9 / published - 1) < 0.02, (name, parameters)
        beside = 2 * (parameters - in_experts)
        machines = [opens(parameters, in_experts, gib - SYSTEM_GIB) for gib in MACHINES_GIB]
        files = (beside + in_experts * itemsize) / 2**30
        print(
            f"| {name} | {parameters / 1e9:.1f} B | {files:.1f} GiB | {beside / 2**30:.1f} GiB | {' | '.join(machines)} |"
        )


if __name__ == "__main__":
    main()
