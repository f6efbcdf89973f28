"""Old names of settings. Command lines, run folders, links, presets and API calls that use them still work.

One table, from the name of version 0.1 to today's. What is new is written with today's names only.
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
    """`values` with today's names. Where a setting is given by both, today's name wins."""
    old = {ALIASES[name]: value for name, value in values.items() if name in ALIASES}
    return {**old, **{name: value for name, value in values.items() if name not in ALIASES}}


def old_names(name: str) -> list[str]:
    """The old names of a setting."""
    return [old for old, new in ALIASES.items() if new == name]
