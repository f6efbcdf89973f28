"""The settings of a training run, and the command line that is made from them."""

import argparse
import json
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import get_args, get_origin

from deepseek.config import PRESETS
from deepseek.observe import PROBE
from deepseek.sources import BUILT_IN

SUITED = {  # what suits a size where the defaults do not: `--preset quick` alone learns all it can in five minutes
    "quick": dict(steps=1200, batch_size=8, context=256, lr=5e-3, warmup=60, bias_rate=0.01, valid_documents=16,
                  sample_every=100),
}  # fmt: skip
KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def setting(default, help: str, low=None, high=None, choices=None, flag: str | None = None):
    """A field of TrainConfig with what the command line and the validation need to know of it."""
    metadata = dict(help=help, low=low, high=high, choices=choices, flag=flag)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class TrainingError(RuntimeError):
    """The run cannot begin or go on; the message is one sentence that says why."""


@dataclass
class TrainConfig:
    """All settings of a run. Raises ValueError naming the field, its value and what is allowed."""

    root: str = setting("deepseek_checkpoints", "folder that holds the runs")
    name: str = setting("run", "the run's name, a folder under --root")
    preset: str = setting("demo", "size of a new model", choices=list(PRESETS))
    start_from: str = setting("", "checkpoint to continue from instead of a new model", flag="--from")
    tokenizer: str = setting("", "folder or Hub id of the tokenizer of a new model (default: learned from the data)")
    data: list[str] = setting([BUILT_IN], 'text to train on: "builtin", files, Hub ids')
    shares: list[float] = setting([], "share of each source in the tokens read (default: even)", low=0)
    valid: list[str] = setting([], "held-out text (default: every 50th document of the data)")
    steps: int = setting(1000, "optimizer steps in all", low=1, high=10_000_000)
    batch_size: int = setting(8, "sequences in one forward pass, of all processes together", low=1, high=4096)
    accumulate: int = setting(1, "forward passes in one step", low=1, high=4096)
    context: int = setting(256, "tokens in a sequence", low=8, high=131_072)
    lr: float = setting(1e-4, "learning rate at its peak, after the warm-up", low=0, high=1)
    schedule: str = setting("cosine", "learning rate after the warm-up", choices=["cosine", "constant"])
    warmup: int = setting(100, "steps of linear warm-up", low=0, high=1_000_000)
    weight_decay: float = setting(0.01, "AdamW weight decay, not on norms and biases", low=0, high=10)
    beta2: float = setting(0.95, "AdamW beta2", low=0, high=0.99999)
    clip: float = setting(1.0, "largest gradient norm", low=1e-6, high=1e6)
    balance_weight: float = setting(0.01, "weight of the KL load-balancing loss", low=0, high=100)
    bias_rate: float = setting(0.001, "step of the router bias", low=0, high=1)
    dropout: float = setting(0.0, "dropout on every branch", low=0, high=0.9)
    precision: str = setting("auto", "auto: bf16, or fp16 on older GPUs, where that is faster than fp32",
                             choices=["auto", "fp32", "bf16", "fp16"])  # fmt: skip
    shard: bool = setting(False, "under torchrun, split the weights over the processes (FSDP2) instead of copying them")
    checkpoint_every: int = setting(100, "steps between commits", low=1, high=1_000_000)
    keep: int = setting(2, "commits to keep", low=1, high=10_000)
    valid_every: int = setting(100, "steps between validations, 0 for none", low=0, high=1_000_000)
    valid_documents: int = setting(64, "held-out documents of each source to validate on", low=1, high=100_000)
    sample_every: int = setting(500, "steps between samples, 0 for none", low=0, high=1_000_000)
    probe: str = setting(PROBE, "text whose experts are kept at every commit; empty for none")
    seed: int = setting(0, "seed of weights, data order and samples", low=0, high=2**63 - 1)

    def __post_init__(self):
        for f in fields(self):
            value, known = getattr(self, f.name), f.metadata
            label = (known["flag"] or "--" + f.name.replace("_", "-")).lstrip("-")
            many = get_origin(f.type) is list
            if many and not isinstance(value, list):
                raise ValueError(f"{label} is {value!r:.80}; it must be a list.")
            kind = get_args(f.type)[0] if many else f.type
            allowed = KINDS[kind]
            if known["choices"]:
                allowed = f"one of {', '.join(known['choices'])}"
            elif known["low"] is not None:
                allowed += f" from {known['low']} to {known['high'] or 'infinity'}"
            for item in value if many else [value]:
                right = isinstance(item, (int, float) if kind is float else kind)
                right = right and isinstance(item, bool) == (kind is bool)  # for Python True is an int
                right = right and (not known["choices"] or item in known["choices"])
                right = right and (known["low"] is None or known["low"] <= item <= (known["high"] or math.inf))
                if not right:
                    raise ValueError(f"{label} is {item!r:.80}; it must be {allowed}.")
        if not self.data:
            raise ValueError("data is empty; it must name at least one source.")
        if self.shares and (len(self.shares) != len(self.data) or min(self.shares) <= 0):
            raise ValueError(f"shares is {self.shares}; it must be {len(self.data)} numbers above 0, one a source.")
        if (
            not 0 < len(self.name.encode("utf-8", "replace")) <= 100
            or set(self.name) & set("/\\\0")
            or self.name[0] == "."
        ):
            raise ValueError(
                f"name is {self.name!r:.80}; it must be a folder's name of 1 to 100 bytes without slashes or a leading dot."
            )

    @property
    def run(self) -> Path:
        return Path(self.root) / self.name


def parse(arguments: list[str] | None = None) -> tuple[TrainConfig, bool]:
    """(settings, whether to resume) of a command line; exits with one sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m deepseek.train", description="Train a DeepSeek-style model.")
    for f in fields(TrainConfig):
        many = f.default is MISSING
        kind = (float if f.name == "shares" else str) if many else type(f.default)
        default = f.default_factory() if many else f.default
        flag = f.metadata["flag"] or "--" + f.name.replace("_", "-")
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=f.metadata["help"])
            continue
        parser.add_argument(
            flag,
            dest=f.name,
            type=kind,
            default=default,
            nargs="+" if many else None,
            metavar=f.name.upper() if f.metadata["choices"] is None else "|".join(f.metadata["choices"]),
            help=f"{f.metadata['help']} ({default})" if default not in ("", []) else f.metadata["help"],
        )
    sizes = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    sizes.add_argument("--preset")
    parser.set_defaults(**SUITED.get(sizes.parse_known_args(arguments)[0].preset, {}))
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest commit, with its settings")
    values = vars(parser.parse_args(arguments))
    resume = values.pop("resume")
    try:
        config = TrainConfig(**values)
        if resume:
            file = config.run / "config.json"
            if not file.is_file():
                raise ValueError(f"run {str(config.run)!r} is not there; nothing to resume.")
            here = {"root": config.root, "name": config.name, "shard": config.shard}
            config = TrainConfig(**{**json.loads(file.read_text()), **here})
    except ValueError as error:
        parser.error(str(error))
    return config, resume
