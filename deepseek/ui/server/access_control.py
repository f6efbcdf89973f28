"""Who may start which run: everything on one's own machine; on a public Space a bounded one, and everything by its owner."""

import hmac
import os
from pathlib import Path

from deepseek.data.readers import BUILTIN
from deepseek.training import runs
from deepseek.training.config import TrainConfig

VISITOR_LIMITS = dict(
    max_steps=1200, batch_size=16, gradient_accumulation_steps=1, max_seq_len=256, eval_documents=64, keep_last=2
)  # a visitor's run
VISITOR_PRESETS = ["quick", "tiny"]  # a visitor's presets
OWNER_ONLY = ["init_from", "tokenizer", "eval_data"]  # settings that name files or data sets, not for visitors
MAX_RUNS = 20  # on a public Space
UPLOADS = "data"  # folder in a run that keeps the file its reader gave it
NOTE = (
    f"This is a public Space. Anybody may start a small run: {VISITOR_LIMITS['max_steps']} steps at most, preset "
    f"{' or '.join(VISITOR_PRESETS)}, on the built-in text or a file of their own. The owner's secret unlocks the rest."
)


def is_public() -> bool:
    """Whether the app runs as a Hugging Face Space, open to anybody."""
    return bool(os.environ.get("SPACE_ID"))


def check_access(config: TrainConfig, secret: str) -> None:
    """Raises ValueError where this reader may not start, or steer, a run of these settings."""
    owner = os.environ.get("OWNER_SECRET", "")
    if not is_public() or (owner and hmac.compare_digest(str(secret).encode(), owner.encode())):
        return
    default, only = TrainConfig(), "without the owner's secret a run on this Space must have"
    for name, most in VISITOR_LIMITS.items():
        if getattr(config, name) > most:
            raise ValueError(f"{name} is {getattr(config, name)}; {only} {most} at most.")
    if config.preset not in VISITOR_PRESETS:
        raise ValueError(f"preset is {config.preset!r}; {only} {' or '.join(VISITOR_PRESETS)}.")
    for name in OWNER_ONLY:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"{name} is {getattr(config, name)!r:.60}; {only} the default.")
    for source in config.data:
        if source != BUILTIN and Path(source).parent != config.run / UPLOADS:
            raise ValueError(f"data is {source!r:.60}; {only} {BUILTIN!r} or an uploaded file.")
    known = {run.name for run in runs.list_runs(config.root)}
    if config.name not in known and len(known) >= MAX_RUNS:
        raise ValueError(f"there are {len(known)} runs on this Space, and {MAX_RUNS} at most; delete one first.")
