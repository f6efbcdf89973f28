"""Old names of settings: command lines, run folders, links, presets and API calls that use them still work.

ALIASES maps each name of version 0.1 to the present one. Files, links and answers are written with present names only.
"""

ALIASES = {
    # sampling
    "no_repeat_ngram": "no_repeat_ngram_size",
    # a request
    "changes": "interventions",
    "force": "forced_tokens",
    # training
    "from": "init_from",
    "start_from": "init_from",
    "shares": "mixture_weights",
    "valid": "eval_data",
    "steps": "max_steps",
    "accumulate": "gradient_accumulation_steps",
    "context": "max_seq_len",
    "warmup": "warmup_steps",
    "clip": "max_grad_norm",
    "bias_rate": "bias_update_rate",
    "checkpoint_every": "save_every",
    "keep": "keep_last",
    "valid_every": "eval_every",
    "valid_documents": "eval_documents",
}


def rename(values: dict) -> dict:
    """`values` under present names. A setting given under both names keeps the value of the present one."""
    renamed = {ALIASES[name]: value for name, value in values.items() if name in ALIASES}
    return renamed | {name: value for name, value in values.items() if name not in ALIASES}
