"""The checkpoints that the page offers, opened when first asked for."""

from functools import lru_cache
from pathlib import Path

from deepseek.checkpoint import CheckpointError, commits, load

DEMO = "assets/demo"
RUNS = Path("deepseek_checkpoints")


def choices(current: str) -> list[str]:
    """What the page was started with, the demo, then the newest commit of every run."""
    runs = sorted(RUNS.iterdir()) if RUNS.is_dir() else []
    newest = [str(commits(run)[-1]) for run in runs if commits(run)]
    return list(dict.fromkeys([current, DEMO, *newest]))


@lru_cache(maxsize=3)
def opened(path: str):
    """(model, tokenizer) of a checkpoint that has both, kept for the next who asks. Raises CheckpointError."""
    model, tokenizer = load(path)
    if tokenizer is None:
        raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
    return model, tokenizer


def chosen(path: str, current: str):
    """(model, tokenizer) of one of `choices`. Raises CheckpointError."""
    if path not in choices(current):
        raise CheckpointError(f"checkpoint is {path!r:.80}; it must be one of {', '.join(choices(current))}.")
    return opened(path)
