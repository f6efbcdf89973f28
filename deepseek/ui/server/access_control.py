"""Who may start which run: on one's own machine any; on a public Space a small one, and any with the owner's secret."""

import hmac
import os
from pathlib import Path

from deepseek.data.readers import BUILTIN
from deepseek.training import runs
from deepseek.training.config import UPLOADS, TrainConfig

VISITOR_LIMITS = dict(
    max_steps=1200, batch_size=16, gradient_accumulation_steps=1, max_seq_len=256, eval_documents=64, keep_last=2
)
VISITOR_PRESETS = ["quick", "tiny"]
OWNER_ONLY = ["init_from", "tokenizer", "eval_data"]  # settings that name files or data sets
MAX_RUNS = 20  # on a public Space
NOTE = (
    f"This is a public Space. Anybody may start a small run: at most {VISITOR_LIMITS['max_steps']} steps, preset "
    f"{' or '.join(VISITOR_PRESETS)}, on the built-in text or an uploaded file. The owner's secret lifts these limits."
)


def is_public() -> bool:
    """Whether the app runs as a Hugging Face Space, open to anybody."""
    return bool(os.environ.get("SPACE_ID"))


def check_access(config: TrainConfig, secret: str) -> None:
    """Raises ValueError if a user with this `secret` may not start or control a run with these settings."""
    owner = os.environ.get("OWNER_SECRET", "")
    if not is_public() or (owner and hmac.compare_digest(str(secret).encode(), owner.encode())):
        return
    default, rule = TrainConfig(), "without the owner's secret a run on this Space must have"
    for name, limit in VISITOR_LIMITS.items():
        if getattr(config, name) > limit:
            raise ValueError(f"{name} is {getattr(config, name)}; {rule} {limit} at most.")
    if config.preset not in VISITOR_PRESETS:
        raise ValueError(f"preset is {config.preset!r}; {rule} {' or '.join(VISITOR_PRESETS)}.")
    for name in OWNER_ONLY:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"{name} is {getattr(config, name)!r:.60}; {rule} the default.")
    for source in config.data:
        if source != BUILTIN and Path(source).parent != config.run / UPLOADS:
            raise ValueError(f"data is {source!r:.60}; {rule} {BUILTIN!r} or an uploaded file.")
    names = {run.name for run in runs.list_runs(config.root)}
    if config.name not in names and len(names) >= MAX_RUNS:
        raise ValueError(f"this Space has {len(names)} runs, and {MAX_RUNS} at most; delete one first.")
