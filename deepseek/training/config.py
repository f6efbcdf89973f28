"""The settings of a training run, and its command line."""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

from deepseek.data.readers import BUILTIN
from deepseek.model.config import PRESETS
from deepseek.settings.aliases import rename
from deepseek.settings.schema import add_arguments, setting, validate
from deepseek.training.validation import PROBE

PRESET_DEFAULTS = {  # defaults that depend on the preset: `--preset quick` alone trains well in five minutes
    "quick": dict(max_steps=1200, batch_size=8, max_seq_len=256, lr=5e-3, warmup_steps=60, bias_update_rate=0.01,
                  eval_documents=16, sample_every=100),
}  # fmt: skip


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
    data: list[str] = setting([BUILTIN], 'training data: "builtin", files, Hub ids')
    mixture_weights: list[float] = setting([], "weight of each source in the training tokens (default: equal)", low=0)
    eval_data: list[str] = setting([], "held-out data (default: every 50th document of the training data)")
    max_steps: int = setting(1000, "total optimizer steps", low=1, high=10_000_000)
    batch_size: int = setting(8, "sequences per forward pass, over all processes", low=1, high=4096)
    gradient_accumulation_steps: int = setting(1, "forward passes per optimizer step", low=1, high=4096)
    max_seq_len: int = setting(256, "tokens per sequence", low=8, high=131_072)
    lr: float = setting(1e-4, "peak learning rate, after the warm-up", 0, 1, label="learning rate (lr)")
    schedule: str = setting("cosine", "learning rate after the warm-up", choices=["cosine", "constant"])
    warmup_steps: int = setting(100, "steps of linear warm-up", low=0, high=1_000_000)
    weight_decay: float = setting(0.01, "AdamW weight decay; norms and biases do not decay", low=0, high=10)
    beta2: float = setting(0.95, "AdamW beta2", low=0, high=0.99999)
    max_grad_norm: float = setting(1.0, "gradient norm to clip to", low=1e-6, high=1e6)
    balance_weight: float = setting(0.01, "weight of the KL load-balancing loss", low=0, high=100)
    bias_update_rate: float = setting(0.001, "update rate of the router bias", low=0, high=1)
    dropout: float = setting(0.0, "dropout on every branch", low=0, high=0.9)
    precision: str = setting("auto", "auto: bf16 (fp16 on older GPUs) where it is faster than fp32",
                             choices=["auto", "fp32", "bf16", "fp16"])  # fmt: skip
    shard: bool = setting(False, "under torchrun, shard the weights over the processes (FSDP2) instead of copying them")
    save_every: int = setting(100, "steps between checkpoints", low=1, high=1_000_000)
    keep_last: int = setting(2, "checkpoints to keep", low=1, high=10_000)
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
    def run(self) -> Path:
        return Path(self.root) / self.name

    def learning_rate(self, step: int) -> float:
        """Rate of step `step` (from 1): linear warm-up, then constant, or half a cosine (SGDR, arXiv 1608.03983).

        The cosine reaches 0 one step after the last, so that the last step still trains.
        """
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / (self.max_steps - self.warmup_steps + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


def parse(arguments: list[str] | None = None) -> tuple[TrainConfig, bool]:
    """(settings, whether to resume) of a command line; exits with one sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m deepseek.train", description="Train a DeepSeek-style model.")
    add_arguments(parser, TrainConfig)
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint with its settings")
    preset = parser.parse_args(arguments).preset
    parser.set_defaults(**PRESET_DEFAULTS.get(preset, {}))
    values = vars(parser.parse_args(arguments))
    resume = values.pop("resume")
    try:
        config = TrainConfig(**values)
        if resume:
            file = config.run / "config.json"
            if not file.is_file():
                raise ValueError(f"run {str(config.run)!r} does not exist; there is nothing to resume.")
            overrides = {"root": config.root, "name": config.name, "shard": config.shard}
            config = TrainConfig(**{**rename(json.loads(file.read_text())), **overrides})
    except ValueError as error:
        parser.error(str(error))
    return config, resume
