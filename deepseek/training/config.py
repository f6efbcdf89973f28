"""The settings of a training run, and its command line."""

import argparse
import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from deepseek.data.readers import BUILTIN
from deepseek.data.text_lines import ENCODINGS, ReadOptions
from deepseek.model.config import PRESETS
from deepseek.settings.aliases import rename
from deepseek.settings.schema import add_arguments, setting, validate

PROBE = "Once upon a time there was a fox. Paris is the capital of France. def add(a, b): return a + b"
PRESET_DEFAULTS = {  # defaults that depend on the preset: `--preset quick` alone trains well in three minutes
    "quick": dict(max_steps=800, batch_size=8, max_seq_len=256, lr=5e-3, optimizer="muon", schedule="wsd", warmup_steps=60,
                  bias_update_rate=0.01, eval_documents=16, sample_every=100),
}  # fmt: skip

DECAY = 0.4  # share of a run in which the schedule "wsd" falls
SAMPLE_TOKENS = 128  # of a sample at most, with its prompt
FIXED = [  # of a run
    "preset", "init_from", "tokenizer", "text_column", "encoding", "mixture_weights", "max_seq_len", "optimizer", "probe", "seed",
]  # fmt: skip
UPLOADS = "data"  # folder in a run that holds its uploaded file


class TrainingError(RuntimeError):
    """A run cannot start or continue; the message is one sentence that says why."""


@dataclass
class TrainConfig:
    """All settings of a run. Raises ValueError naming the field, its value and what is allowed."""

    root: str = setting("deepseek_checkpoints", "folder of all runs")
    name: str = setting("run", "name of the run, a folder under --root")
    preset: str = setting("demo", "size of a new model", choices=list(PRESETS))
    init_from: str = setting("", "checkpoint to start from instead of a new model")
    tokenizer: str = setting("", "folder or Hub id of the tokenizer of a new model (default: trained on the data)")
    data: list[str] = setting([BUILTIN], 'training data: "builtin", files, folders, Hub ids')
    text_column: str = setting("", "text column of tables, or several as title+body (default: chosen by name)")
    encoding: str = setting("auto", "encoding of text files; auto is UTF-8, or UTF-16 with its mark", choices=ENCODINGS)
    mixture_weights: list[float] = setting([], "weight of each source in the training tokens (default: equal)", low=0)
    eval_data: list[str] = setting([], "held-out data (default: 1 % of the training data)")
    max_steps: int = setting(1000, "total optimizer steps", low=1, high=10_000_000)
    batch_size: int = setting(8, "sequences per forward pass, over all processes", low=1, high=4096)
    gradient_accumulation_steps: int = setting(
        1, "forward passes per optimizer step, as of one large batch", low=1, high=4096
    )
    max_seq_len: int = setting(256, "tokens per sequence", low=8, high=131_072)
    lr: float = setting(1e-4, "peak learning rate, after the warm-up", 0, 1, label="learning rate (lr)")
    optimizer: str = setting(
        "adamw", "muon moves the layers' matrices by Muon, the rest by AdamW", choices=["adamw", "muon"]
    )
    schedule: str = setting("cosine", "learning rate after the warm-up; wsd falls to 0 over the last 40 %",
                            choices=["cosine", "constant", "wsd"])  # fmt: skip
    warmup_steps: int = setting(100, "steps of linear warm-up", low=0, high=1_000_000)
    weight_decay: float = setting(0.01, "AdamW weight decay; norms and biases do not decay", low=0, high=10)
    beta2: float = setting(0.95, "AdamW beta2", low=0, high=0.99999)
    max_grad_norm: float = setting(1.0, "gradient norm to clip to", low=1e-6, high=1e6)
    balance_weight: float = setting(0.01, "weight of the KL load-balancing loss", low=0, high=100)
    sequence_balance_weight: float = setting(
        0.0, "weight of DeepSeek-V3's balance loss within each sequence, for an even load on every kind of text", 0, 100
    )
    bias_update_rate: float = setting(0.001, "update rate of the router bias", low=0, high=1)
    dropout: float = setting(0.0, "dropout on every branch", low=0, high=0.9)
    precision: str = setting("auto", "auto: bf16 (fp16 on older GPUs) where it is faster than fp32",
                             choices=["auto", "fp32", "bf16", "fp16"])  # fmt: skip
    shard: bool = setting(False, "under torchrun, shard the weights over the processes (FSDP2) instead of copying them")
    save_every: int = setting(100, "steps between checkpoints", low=1, high=1_000_000)
    keep_last: int = setting(2, "newest checkpoints to keep, besides the best by validation loss", low=1, high=10_000)
    eval_every: int = setting(100, "steps between validations, 0 for none", low=0, high=1_000_000)
    eval_documents: int = setting(64, "held-out documents per source to validate on", low=1, high=100_000)
    sample_every: int = setting(500, "steps between samples, 0 for none", low=0, high=1_000_000)
    probe: str = setting(PROBE, "text whose expert choices are recorded at every checkpoint; empty for none")
    seed: int = setting(0, "seed of weights, data order and samples", low=0, high=2**63 - 1)

    def __post_init__(self):
        validate(self)
        if not self.data:
            raise ValueError("data is empty; it must name at least one source.")
        if self.mixture_weights and (len(self.mixture_weights) != len(self.data) or min(self.mixture_weights) <= 0):
            allowed = f"one number above 0 per source, {len(self.data)} in all"
            raise ValueError(f"mixture_weights is {self.mixture_weights}; it must be {allowed}.")
        length = len(self.name.encode("utf-8", "replace"))
        if not 0 < length <= 100 or set(self.name) & set("/\\\0") or self.name[0] == ".":
            allowed = "a folder name of 1 to 100 bytes without slashes or a leading dot"
            raise ValueError(f"name is {self.name!r:.80}; it must be {allowed}.")

    @property
    def read_options(self) -> ReadOptions:
        return ReadOptions(self.text_column, self.encoding)

    @property
    def holds_out(self) -> bool:
        """Whether a part of the training data is left for validation."""
        return self.eval_every > 0 and not self.eval_data

    @property
    def run(self) -> Path:
        return Path(self.root) / self.name

    def learning_rate(self, step: int) -> float:
        """Rate of step `step` (from 1): linear warm-up, then half a cosine (SGDR, arXiv 1608.03983), constant, or wsd.

        wsd (warm-up, stable, decay; arXiv 2405.18392) is constant and falls linearly over the last 40 % of all steps. Both that
        fall reach 0 one step after the last, so that the last step still trains. A warm-up that would not end takes a tenth of
        the run.
        """
        warmup_steps = self.warmup_steps if self.warmup_steps < self.max_steps else self.max_steps // 10
        if step <= warmup_steps:
            return self.lr * step / warmup_steps
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "wsd":
            return self.lr * min(1, (self.max_steps + 1 - step) / (DECAY * self.max_steps))
        progress = (step - warmup_steps) / (self.max_steps - warmup_steps + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def notes(self) -> list[str]:
        """Sentences on settings that do not go together, and what is done instead."""
        notes = []
        if self.warmup_steps >= self.max_steps:
            notes += [f"warmup_steps is {self.warmup_steps}, no less than max_steps; {self.max_steps // 10} are taken."]
        if self.sample_every and self.max_seq_len < SAMPLE_TOKENS and not self.init_from:
            notes += [f"max_seq_len is {self.max_seq_len}; samples end there, and begin with half of it at most."]
        if self.eval_every and self.save_every % self.eval_every:
            both = f"every {math.lcm(self.save_every, self.eval_every):,} steps and at the end"
            steps = f"eval_every is {self.eval_every}, save_every {self.save_every}"
            notes += [f"{steps}; checkpoints are validated {both}, and the best is one of those."]
        return notes


def parse(arguments: list[str] | None = None) -> tuple[TrainConfig, bool]:
    """(settings, whether to resume) of a command line; exits with one sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m deepseek.train", description="Train a DeepSeek-style model.")
    add_arguments(parser, TrainConfig)
    kept = ", ".join(name.replace("_", "-") for name in FIXED)
    help = f"continue from the newest checkpoint, with the run's settings; flags change them, all but {kept}"
    parser.add_argument("--resume", action="store_true", help=help)
    parser.set_defaults(**dict.fromkeys(f.name for f in fields(TrainConfig)))  # None: not given
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    resume = given.pop("resume")
    try:
        config = (
            resumed(**given) if resume else TrainConfig(**{**PRESET_DEFAULTS.get(given.get("preset"), {}), **given})
        )
    except ValueError as error:
        parser.error(str(error))
    return config, resume


def read_config(folder: Path) -> TrainConfig:
    """The settings in a run's config.json, with its root, name and uploaded file where the folder lies now.

    Raises ValueError naming the file, and the setting that is wrong in it.
    """
    file = folder / "config.json"
    try:
        values = rename(json.loads(file.read_text("utf-8")))
        if unknown := sorted(values.keys() - {f.name for f in fields(TrainConfig)}):
            raise ValueError(f"{unknown[0]!r} is no setting.")
        config = TrainConfig(**{**values, "root": str(folder.parent), "name": folder.name})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} cannot be used: {error}") from error
    for index, source in enumerate(config.data):
        moved = folder / UPLOADS / Path(source).name
        if Path(source).parent.name == UPLOADS and moved.is_file():
            config.data[index] = str(moved)
    return config


def resumed(root: str = TrainConfig.root, name: str = TrainConfig.name, **changes) -> TrainConfig:
    """The settings of a run that is resumed with `changes`. Raises ValueError for a change that it cannot take."""
    folder = Path(root) / name
    if not (folder / "config.json").is_file():
        raise ValueError(f"run {str(folder)!r} does not exist; there is nothing to resume.")
    config = read_config(folder)
    changed = replace(config, **{"shard": False, **changes})
    for setting_name in FIXED:
        before, after = getattr(config, setting_name), getattr(changed, setting_name)
        if before != after:
            raise ValueError(f"{setting_name} is {after!r:.60}; a resumed run keeps what it has, {before!r:.60}.")
    if changed.holds_out and not config.holds_out:
        reason = "the run holds no text out, and has trained on all; give eval_data"
        raise ValueError(f"eval_every is {changed.eval_every}; {reason}.")
    if len(changed.data) != len(config.data):
        raise ValueError(f"data names {len(changed.data)} sources; a resumed run keeps its {len(config.data)}.")
    return changed
