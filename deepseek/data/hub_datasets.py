"""Data sets of the Hugging Face Hub: which files they have, and each of them on this machine.

A file is downloaded when it is first read. From then on it needs no network, and neither does the list of files.
"""

import json
import re
from contextlib import suppress
from pathlib import Path

from deepseek.data.text_lines import DataError

ID = r"[\w.-]+/[\w.-]+(:[\w.-]*){0,2}"  # name/dataset:subset:split
ADDRESS = r"hf://datasets/([^@]+)@([^/]+)/(.+)"
TIMEOUT_S = 10


def list_files(source: str) -> list[str]:
    """Addresses of the files of a data set, each with its revision: of its split train, or its only one.

    Raises DataError.
    """
    import datasets  # slow to import, and needed only here
    from huggingface_hub import HfApi, constants, errors

    name, subset, split = (*source.split(":"), "", "")[:3]
    record = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}", f"files-{subset}.json")
    page = f"{constants.ENDPOINT}/datasets/{name}"
    try:
        HfApi().dataset_info(name, timeout=TIMEOUT_S)  # fails at once; the builder would retry for half a minute
        found = datasets.load_dataset_builder(name, subset or None).config.data_files
        splits = {str(key): list(files) for key, files in (found or {}).items()}
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(splits))
    except (errors.GatedRepoError, datasets.exceptions.DatasetNotFoundError) as error:
        advice = f"ask for access on {page}, log in with `hf auth login` or set HF_TOKEN"
        raise DataError(f"data {source!r} is for users with access alone; {advice}.") from error
    except errors.RepositoryNotFoundError as error:
        advice = "check the name; a private one needs `hf auth login` or HF_TOKEN"
        raise DataError(f"data {source!r} is not on the Hub; {advice}.") from error
    except Exception as error:  # no network, or one of the many of `datasets`
        if not record.is_file():
            if len(subsets := _subsets(name) if isinstance(error, ValueError) else []) > 1:
                allowed = ", ".join(f"{name}:{other}" for other in subsets)
                raise DataError(f"data {source!r:.100} must name a subset: {allowed:.300}.") from error
            reason = " ".join(str(error).split()) or "no answer"
            advice = "" if isinstance(error, (ValueError, RuntimeError)) else "; 'builtin' and files need no network"
            raise DataError(f"data {source!r} cannot be fetched from the Hub ({reason[:300]}){advice}.") from error
        splits = json.loads(record.read_text())
    split = split or ("train" if len(splits) != 1 else next(iter(splits)))
    if split not in splits:
        allowed = ", ".join(f"{name}:{subset}:{other}" for other in splits) or "one with files of text"
        raise DataError(f"data {source!r:.100} has no split {split!r:.100}; it must be {allowed:.300}.")
    return splits[split]


def _subsets(name: str) -> list[str]:
    """The subsets of a data set, [] where the Hub does not say."""
    import datasets

    with suppress(Exception):  # the network may be gone since
        return datasets.get_dataset_config_names(name)
    return []


def download(file: str) -> str:
    """The path on this machine of a file of `list_files`; a path stays as it is. Raises DataError."""
    if not (address := re.fullmatch(ADDRESS, file)):
        return file
    from huggingface_hub import hf_hub_download  # slow to import

    name, revision, path = address.groups()
    try:
        return hf_hub_download(name, path, repo_type="dataset", revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or "no answer"
        raise DataError(f"data {file!r} cannot be downloaded from the Hub: {reason[:300]}.") from error
