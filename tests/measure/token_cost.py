"""What a token costs with every sampler off, beside another version: `python tests/measure/token_cost.py FOLDER`.

FOLDER is a checkout of the other version, such as `git worktree add FOLDER d6b902c` makes. Two processes take turns. Processor
time of one thread, medians over rounds: microseconds of `Request.sample` alone at two sizes of vocabulary, with and without a
record, and of a decoded token of the demo with the model's step. A line of JSON each, with the median ratio of a round.
"""

import json
import os
import subprocess
import sys
import time
from statistics import median

ROUNDS, TOKENS, VOCABULARIES = 9, 60, (8_192, 49_152)


def measure(rows, small_models, demo, tokenizer) -> dict[str, float]:
    """One round: microseconds a token, by name. `rows` are logits (8, largest vocabulary)."""
    from deepseek.inference.engine import Request

    params, figures = SamplingParams(seed=0, max_new_tokens=2 * TOKENS), {}
    for record in (False, True):
        ending = ", recorded" if record else ""
        for size, model in small_models.items():
            request, seconds = Request(model, tokenizer, "Once upon a time", params, record=record), []
            for index in range(TOKENS):
                request.logits_V = rows[index % 8, :size]
                start = time.thread_time()
                request.sample()
                seconds.append(time.thread_time() - start)
            figures[f"sample at {size:,}{ending}"] = 1e6 * median(seconds)
        tokens = stream(demo, tokenizer, "Once upon a time", params, record=record)
        next(tokens)  # after the prompt
        start = time.thread_time()
        num_tokens = sum(1 for _ in tokens)
        figures[f"token of the demo{ending}"] = 1e6 * (time.thread_time() - start) / num_tokens
    return figures


def serve():
    """Measures a round for each line of the input."""
    torch.set_num_threads(1)
    demo, tokenizer = load("assets/demo")
    small_models = {}
    for size in VOCABULARIES:
        small_models[size] = DeepseekV3ForCausalLM(preset("tiny", vocab_size=size)).eval()
        small_models[size].generation_config.eos_token_id = None
    rows = np.random.default_rng(0).normal(0, 3, (8, max(VOCABULARIES))).astype(np.float32)
    rows[:, : VOCABULARIES[0]] += 12  # the tokens that are sampled have a text
    for _ in sys.stdin:
        print(json.dumps(measure(rows, small_models, demo, tokenizer)), flush=True)


def main():
    here = os.getcwd()
    folders = {"this": here, "other": os.path.abspath(sys.argv[1])}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    processes = {
        name: subprocess.Popen([sys.executable, __file__, "--serve"], cwd=folder, env=environment, **pipes)
        for name, folder in folders.items()
    }
    rounds = []
    for _ in range(1 + ROUNDS):  # the first one compiles
        figures = {}
        for name, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            figures[name] = json.loads(process.stdout.readline())
        rounds.append(figures)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    for name in rounds[0]["this"]:
        pairs = [(each["this"][name], each["other"][name]) for each in rounds[1:]]
        this, other = (round(median(column)) for column in zip(*pairs))
        print(
            json.dumps(
                {"what": name, "us": this, "us_other": other, "ratio": round(median(a / b for a, b in pairs), 2)}
            )
        )


if __name__ == "__main__":
    if sys.argv[1:] != ["--serve"]:
        main()
    else:
        sys.path.insert(0, os.getcwd())  # the version of the working directory
        import numpy as np
        import torch

        from deepseek import SamplingParams, load, preset, stream
        from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

        serve()
