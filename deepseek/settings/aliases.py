"""Other names of settings, which command lines, links, presets, API calls and run folders take too.

ALIASES maps each name of version 0.1, and each that llama.cpp, vLLM, transformers or OpenAI have for a sampling setting, to the
present one. Files, links and answers are written with present names only.
"""

ALIASES = {
    # sampling
    "no_repeat_ngram": "no_repeat_ngram_size",
    "temp": "temperature",
    "dynatemp_low": "temperature_min",
    "dynatemp_high": "temperature_max",
    "dynatemp_exponent": "temperature_exponent",
    "typ_p": "typical_p",
    "typical": "typical_p",
    "top_nsigma": "top_n_sigma",
    "nsigma": "top_n_sigma",
    "repeat_penalty": "repetition_penalty",
    "freq_penalty": "frequency_penalty",
    "dry_sequence_breaker": "dry_sequence_breakers",
    "bad_words": "banned_tokens",
    "samplers": "order",
    "stop_strings": "stop",
    "min_tokens": "min_new_tokens",
    "max_tokens": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_json": "json_schema",
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


DYNATEMP_RANGE = (
    "dynatemp_range"  # llama.cpp's: the dynamic temperature goes from temperature - range to temperature + range
)


def rename(values: dict) -> dict:
    """`values` under present names. A setting given under both names keeps the value of the present one.

    Raises ValueError for a dynatemp_range that is no number from 0 to 10.
    """
    renamed = {ALIASES[name]: value for name, value in values.items() if name in ALIASES}
    renamed |= {name: value for name, value in values.items() if name not in ALIASES}
    return renamed if renamed.get(DYNATEMP_RANGE) is None else _with_dynatemp_range(renamed)


def _with_dynatemp_range(values: dict) -> dict:
    values = dict(values)
    half, middle = values.pop(DYNATEMP_RANGE), values.get("temperature", 1.0)
    if half == 0 and not isinstance(half, bool):  # off, in llama.cpp
        return values
    if not isinstance(half, (int, float)) or isinstance(half, bool) or not 0 <= half <= 10:
        raise ValueError(f"{DYNATEMP_RANGE} is {half!r:.60}; it must be a number from 0 to 10.")
    if not isinstance(middle, (int, float)):
        return values  # the check of temperature says what is wrong
    ends = {"temperature_min": max(0.01, middle - half), "temperature_max": min(10.0, middle + half)}
    return ends | values | {"dynamic_temperature": True}
