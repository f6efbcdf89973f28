"""What each sampler costs a token, in microseconds at two sizes of vocabulary: `python tests/measure/samplers.py`.

Each alone, after nothing else, with 512 tokens of text before it, beside every sampler off: without a record and with it. One
thread, processor time, medians of 50. `off` is a token with every sampler off, from logits to the sampled id and its record.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from deepseek import SamplingParams
from deepseek.inference.adaptive import accept
from deepseek.inference.sampling import SamplingState, apply_samplers
from deepseek.inference.token_rules import TokenRules
from deepseek.inference.token_trace import record_samplers
from deepseek.kernels.sampling import sample_index, softmax_entropy

VOCABULARIES, TEXT, ROUNDS = (8_192, 49_152), 512, 60
SETTINGS = {
    "off": {},
    "logit bias": dict(logit_bias={5: 1.0}),
    "banned tokens": dict(banned_tokens=["5"]),
    "min new tokens": dict(min_new_tokens=5),
    "repetition": dict(repetition_penalty=1.2),
    "n-gram": dict(no_repeat_ngram_size=3),
    "presence and frequency": dict(presence_penalty=0.5, penalty_scope="all"),
    "DRY": dict(dry_multiplier=0.8),
    "temperature": dict(temperature=0.8),
    "dynamic temperature": dict(dynamic_temperature=True),
    "top-n-sigma": dict(top_n_sigma=1.0),
    "top-k": dict(top_k=40),
    "typical": dict(typical_p=0.95),
    "top-p": dict(top_p=0.95),
    "min-p": dict(min_p=0.05),
    "epsilon": dict(epsilon_cutoff=0.0005),
    "eta": dict(eta_cutoff=0.001),
    "XTC": dict(xtc_probability=1.0, xtc_threshold=0.01),
    "mirostat": dict(mirostat_tau=5.0),
    "adaptive-p": dict(adaptive_target=0.4),
}
RULES = TokenRules(bias={5: 1.0}, banned=[(5,)], eos_token_ids=frozenset({0}))


def sample(logits_V, params: SamplingParams, state: SamplingState, record: bool) -> float:
    """Seconds from logits to a sampled id, and to its record."""
    start = time.thread_time()
    steps = list(apply_samplers(logits_V, params, state))
    *_, ids_N, logits_N = steps[-1]
    (model_probs_V, _), (probs_N, _) = softmax_entropy(logits_V), softmax_entropy(logits_N)
    token = int(ids_N[sample_index(probs_N, 0.3)])
    accept(token, params, state)
    if record:
        record_samplers(logits_V, model_probs_V, steps, dict(state.details), token, (), str)
    return time.thread_time() - start


def main():
    torch.set_num_threads(1)
    for vocabulary in VOCABULARIES:
        rng = np.random.default_rng(0)
        rows = rng.normal(0, 3, (8, vocabulary)).astype(np.float32)
        text, off = rng.integers(0, vocabulary, TEXT).tolist(), [0.0, 0.0]
        for name, settings in SETTINGS.items():
            params, figures = SamplingParams(**settings), []
            for record in (False, True):
                state = SamplingState(text, [], RULES)
                seconds = [sample(rows[i % 8], params, state, record) for i in range(ROUNDS)]
                figures.append(1e6 * median(seconds[10:]))
            bare, recorded = (figure - base for figure, base in zip(figures, off))
            off = figures if name == "off" else off
            line = {"vocabulary": vocabulary, "sampler": name, "us": round(bare), "us_with_record": round(recorded)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
