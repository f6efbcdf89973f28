"""Decoding of another mixture of experts beside stock transformers and llama.cpp: OLMoE's shape, random weights, batch 1.

`python tests/measure/other_families.py --layers 4` prints a line for each context and precision: tokens a second of our decode
model, of transformers' own forward in the fastest of its implementations of experts, and with `--llama-cpp PYTHON`, a Python
that has llama_cpp and gguf, of llama.cpp. Ours and transformers' take turns round by round on the same tensors.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, OlmoeConfig

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from deepseek.bench import LLAMA_CPP_TYPES, NEW_TOKENS, cpu_name, in_turns, random_prompts, row, seconds, show
from deepseek.inference.decode_model import DecodeModel, new_cache

EXPERTS_IMPLEMENTATIONS = "grouped_mm", "batched_mm", "eager"


def build(num_layers: int):
    """OLMoE-1B-7B (Muennighoff et al., 2024) with fewer layers, in float32 with random weights."""
    torch.manual_seed(0)
    config = OlmoeConfig(num_hidden_layers=num_layers, pad_token_id=1, eos_token_id=50279)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@torch.inference_mode()
def prefill(model, cache, context: int) -> int:
    """The most likely token after `context` tokens, which fill `cache`."""
    model.set_experts_implementation("grouped_mm")  # batched_mm would copy the experts of each token
    return int(model(random_prompts(model, context), past_key_values=cache, logits_to_keep=1).logits.argmax())


@torch.inference_mode()
def decode_rate(step, token: int) -> float:
    """Greedy tokens a second; `step(token)` gives the logits of the next one."""
    token = int(step(token).argmax())

    def work():
        nonlocal token
        for _ in range(NEW_TOKENS):
            token = int(step(token).argmax())

    return NEW_TOKENS / seconds(work)


def ours(decode_model, model, context: int) -> float:
    """Our rate, in the weights of `decode_model`."""
    cache = new_cache(model, context + NEW_TOKENS + 2)
    token = prefill(model, cache, context)
    return decode_rate(lambda token: decode_model([token], [cache])[0], token)


def stock(model, experts_implementation: str, context: int) -> float:
    """The rate of transformers' own forward."""
    cache = DynamicCache(config=model.config)
    token = prefill(model, cache, context)
    model.set_experts_implementation(experts_implementation)
    return decode_rate(lambda token: model(torch.tensor([[token]]), past_key_values=cache).logits, token)


def llama_cpp(python: str, folder: str, weights_type: str, threads: int, contexts: list[int]) -> dict[int, float]:
    """{context: llama.cpp's rate} of a folder, in one of its types."""
    command = [python, ROOT / "tests/llama_cpp_peer.py", folder, "--type", weights_type, "--threads", str(threads)]
    command += ["--new", str(NEW_TOKENS), "--contexts", *map(str, contexts)]
    answer = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return {context: answer[f"decode_{context}"] for context in contexts}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--layers", type=int, default=4, help="of OLMoE's 16; each takes 1.7 GB in fp32 (4)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 1024], help="tokens before the decoded ones")
    parser.add_argument("--precisions", nargs="+", default=list(LLAMA_CPP_TYPES), choices=list(LLAMA_CPP_TYPES))
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that warms up (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="a Python that has llama_cpp and gguf: adds llama.cpp")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    show({"machine": cpu_name(), "threads": args.threads, "layers": args.layers}, as_json=True)
    model = build(args.layers)
    with tempfile.TemporaryDirectory() as folder:
        if args.llama_cpp:
            model.save_pretrained(folder)
        for precision in sorted(
            args.precisions, key=list(LLAMA_CPP_TYPES).index
        ):  # fp32 first, for it is lost after it
            model = model if precision == "fp32" else model.bfloat16()
            decode_model = DecodeModel(model, "int8" if precision == "int8" else "model")
            figures = {}
            for context in args.contexts:
                work = {("ours", precision): partial(ours, decode_model, model, context)}
                # transformers has no 8-bit weights on a CPU; beside int8 it runs in bf16.
                for way in EXPERTS_IMPLEMENTATIONS:
                    dtype = "bf16" if precision == "int8" else precision
                    work["stock", f"{dtype} {way}"] = partial(stock, model, way, context)
                figures[context] = in_turns(work, args.rounds)
            del decode_model, work  # which hold the tensors of this precision
            if args.llama_cpp:
                weights_type = LLAMA_CPP_TYPES[precision]
                for context, rate in llama_cpp(
                    args.llama_cpp, folder, weights_type, args.threads, args.contexts
                ).items():
                    figures[context]["llama.cpp", weights_type] = [rate] * args.rounds
            for context, rates in figures.items():
                show(row("olmoe", f"decode, {context} context, {precision}", rates), as_json=False)


if __name__ == "__main__":
    main()
