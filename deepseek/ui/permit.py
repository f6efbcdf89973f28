"""Who may start which run: everything on one's own machine; on a public Space a bounded one, and everything by its owner."""

import hmac
import os
from pathlib import Path

from deepseek import runs
from deepseek.sources import BUILT_IN
from deepseek.train import TrainConfig

MOST = dict(steps=1200, batch_size=16, accumulate=1, context=256, valid_documents=64, keep=2)  # a visitor's run
SMALL = ["quick", "tiny"]  # a visitor's presets
AS_IT_IS = ["start_from", "tokenizer", "valid"]  # settings that name files or data sets, not for visitors
MOST_RUNS = 20  # on a public Space
UPLOADS = "data"  # folder in a run that keeps the file its reader gave it
NOTE = (
    f"This is a public Space. Anybody may start a small run: {MOST['steps']} steps at most, preset "
    f"{' or '.join(SMALL)}, on the built-in text or a file of their own. The owner's secret unlocks the rest."
)


def public() -> bool:
    """Whether the app runs as a Hugging Face Space, open to anybody."""
    return bool(os.environ.get("SPACE_ID"))


def check(config: TrainConfig, secret: str) -> None:
    """Raises ValueError where this reader may not start, or steer, a run of these settings."""
    owner = os.environ.get("OWNER_SECRET", "")
    if not public() or (owner and hmac.compare_digest(str(secret).encode(), owner.encode())):
        return
    default, only = TrainConfig(), "without the owner's secret a run on this Space must have"
    for name, most in MOST.items():
        if getattr(config, name) > most:
            raise ValueError(f"{name} is {getattr(config, name)}; {only} {most} at most.")
    if config.preset not in SMALL:
        raise ValueError(f"preset is {config.preset!r}; {only} {' or '.join(SMALL)}.")
    for name in AS_IT_IS:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"{name} is {getattr(config, name)!r:.60}; {only} the default.")
    for source in config.data:
        if source != BUILT_IN and Path(source).parent != config.run / UPLOADS:
            raise ValueError(f"data is {source!r:.60}; {only} {BUILT_IN!r} or an uploaded file.")
    known = {run.name for run in runs.list_runs(config.root)}
    if config.name not in known and len(known) >= MOST_RUNS:
        raise ValueError(f"there are {len(known)} runs on this Space, and {MOST_RUNS} at most; delete one first.")
