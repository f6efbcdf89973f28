"""One generation as JSON, with everything needed to repeat it, and its replay."""

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version

from deepseek.checkpoints.loading import fingerprint
from deepseek.inference.engine import TokenTrace, stream
from deepseek.inference.sampling import SamplingParams
from deepseek.settings.aliases import rename

FORMAT = 1
DTYPES = ("float32", "bfloat16", "float16")


def make_record(
    model, prompt: str, params: SamplingParams, tokens: list[TokenTrace], forced_tokens: Mapping[int, int]
) -> dict:
    """The record of a generation, in JSON's types; `forced_tokens` are those of `stream`."""
    return {
        "format": FORMAT,
        "prompt": prompt,
        "text": "".join(token.text for token in tokens),
        "params": asdict(params),
        "forced": {str(index): token for index, token in forced_tokens.items()},
        "checkpoint": {
            "name": model.name_or_path,
            "sha256": fingerprint(model.name_or_path),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "tokens": [token.as_dict() for token in tokens],
    }


def parse_record(text: str) -> dict:
    """The record in a JSON text; settings may have old names. Raises ValueError for anything else."""
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"the record has format {record['format']!r:.40}; this version reads {FORMAT}.")
        record["params"] = rename(record["params"])
        SamplingParams(**record["params"])
        [token["id"] for token in record["tokens"]]
        checkpoint = record["checkpoint"]
        record["prompt"] + checkpoint["name"] + checkpoint["sha256"]  # a TypeError unless all are strings
        if checkpoint["dtype"] not in DTYPES:
            raise KeyError("dtype")
        {int(index): int(token) for index, token in record["forced"].items()}
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError("the file is not the record of a generation.") from error
    return record


def replay(record: dict, model, tokenizer) -> Iterator[tuple[TokenTrace, bool]]:
    """Repeats a recorded generation; yields each token and whether its id is the recorded one. It may end earlier.

    Raises ValueError for a record of other weights.
    """
    if record["checkpoint"]["sha256"] != fingerprint(model.name_or_path):
        raise ValueError(f"the record was made with other weights than those of {model.name_or_path!r}.")
    forced_tokens = {int(index): token for index, token in record["forced"].items()}
    tokens = stream(model, tokenizer, record["prompt"], SamplingParams(**record["params"]), forced_tokens)
    for token, recorded in zip(tokens, record["tokens"]):
        yield token, token.id == recorded["id"]
