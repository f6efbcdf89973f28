"""One generation as JSON, with everything needed to repeat it, and its replay."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version

from deepseek.checkpoints.loading import fingerprint
from deepseek.data.chat import check_messages
from deepseek.data.tokenizer import encode_prompt
from deepseek.inference.engine import stream
from deepseek.inference.sampling import SamplingParams
from deepseek.inference.token_trace import TokenTrace
from deepseek.interpret.interventions import Intervention, parse_interventions
from deepseek.settings.aliases import rename

FORMAT = 1
DTYPES = ("float32", "bfloat16", "float16")


def make_record(
    model,
    prompt: str,
    params: SamplingParams,
    tokens: list[TokenTrace],
    forced_tokens: Mapping[int, int],
    branches: Iterable[tuple[Mapping[int, int], list[TokenTrace]]] = (),
    interventions: Iterable[Intervention] = (),
    messages: Iterable[dict] = (),
) -> dict:
    """The record of a generation, in JSON's types; `forced_tokens` and `interventions` are those of `stream`, `prompt` is text,
    of a chat its `messages` as they were rendered.

    `branches` are other texts of the same prompt, settings and seed, (forced tokens, tokens); of them it holds text and ids.
    """
    return {
        "format": FORMAT,
        "prompt": prompt,
        "messages": list(messages),
        "text": "".join(token.text for token in tokens),
        "params": asdict(params),
        "forced": {str(index): token for index, token in forced_tokens.items()},
        "interventions": [asdict(each) for each in interventions],
        "checkpoint": {
            "name": model.name_or_path,
            "sha256": fingerprint(model.name_or_path),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "tokens": [token.as_dict() for token in tokens],
        "branches": [
            {
                "forced": {str(index): token for index, token in forced.items()},
                "text": "".join(token.text for token in others),
                "ids": [token.id for token in others],
            }
            for forced, others in branches
        ],
    }


def parse_record(text: str) -> dict:
    """The record in a JSON text, with its Interventions; settings may have old names. Raises ValueError for anything else."""
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"the record has format {record['format']!r:.40}; this version reads {FORMAT}.")
        record["params"] = rename(record["params"])
        SamplingParams(**record["params"])
        if messages := record.setdefault("messages", []):  # older records have none
            check_messages(messages)
        record["interventions"] = parse_interventions(record.get("interventions", []))  # older records have none
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
    # A chat as it was rendered: its template may have written the date.
    prompt_ids = encode_prompt(tokenizer, record["prompt"], None, add_special_tokens=not record.get("messages"))
    options = forced_tokens, parse_interventions(record.get("interventions", []))
    tokens = stream(model, tokenizer, prompt_ids, SamplingParams(**record["params"]), *options)
    for token, recorded in zip(tokens, record["tokens"]):
        yield token, token.id == recorded["id"]
