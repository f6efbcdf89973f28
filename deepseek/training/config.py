"""The settings of a training run, and the command line that is made from them."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from deepseek.data.readers import BUILTIN
from deepseek.model.config import PRESETS
from deepseek.settings.aliases import rename
from deepseek.settings.schema import add_arguments, setting, validate
from deepseek.training.validation import PROBE

PRESET_DEFAULTS = {  # what suits a size where the defaults do not: `--preset quick` alone learns all it can in five minutes
    "quick": dict(max_steps=1200, batch_size=8, max_seq_len=256, lr=5e-3, warmup_steps=60, bias_update_rate=0.01,
                  eval_documents=16, sample_every=100),
}  # fmt: skip


class TrainingError(RuntimeError):
    """The run cannot begin or go on; the message is one sentence that says why."""


@dataclass
class TrainConfig:
    """All settings of a run. Raises ValueError naming the field, its value and what is allowed."""

    root: str = setting("deepseek_checkpoints", "folder that holds the runs")
    name: str = setting("run", "the run's name, a folder under --root")
    preset: str = setting("demo", "size of a new model", choices=list(PRESETS))
    init_from: str = setting("", "checkpoint to continue from instead of a new model")
    tokenizer: str = setting("", "folder or Hub id of the tokenizer of a new model (default: learned from the data)")
    data: list[str] = setting([BUILTIN], 'text to train on: "builtin", files, Hub ids')
    mixture_weights: list[float] = setting([], "share of each source in the tokens read (default: even)", low=0)
    eval_data: list[str] = setting([], "held-out text (default: every 50th document of the data)")
    max_steps: int = setting(1000, "optimizer steps in all", low=1, high=10_000_000)
    batch_size: int = setting(8, "sequences in one forward pass, of all processes together", low=1, high=4096)
    gradient_accumulation_steps: int = setting(1, "forward passes in one step", low=1, high=4096)
    max_seq_len: int = setting(256, "tokens in a sequence", low=8, high=131_072)
    lr: float = setting(1e-4, "learning rate at its peak, after the warm-up", low=0, high=1)
    schedule: str = setting("cosine", "learning rate after the warm-up", choices=["cosine", "constant"])
    warmup_steps: int = setting(100, "steps of linear warm-up", low=0, high=1_000_000)
    weight_decay: float = setting(0.01, "AdamW weight decay, not on norms and biases", low=0, high=10)
    beta2: float = setting(0.95, "AdamW beta2", low=0, high=0.99999)
    max_grad_norm: float = setting(1.0, "largest gradient norm", low=1e-6, high=1e6)
    balance_weight: float = setting(0.01, "weight of the KL load-balancing loss", low=0, high=100)
    bias_update_rate: float = setting(0.001, "step of the router bias", low=0, high=1)
    dropout: float = setting(0.0, "dropout on every branch", low=0, high=0.9)
    precision: str = setting("auto", "auto: bf16, or fp16 on older GPUs, where that is faster than fp32",
                             choices=["auto", "fp32", "bf16", "fp16"])  # fmt: skip
    shard: bool = setting(False, "under torchrun, split the weights over the processes (FSDP2) instead of copying them")
    save_every: int = setting(100, "steps between commits", low=1, high=1_000_000)
    keep_last: int = setting(2, "commits to keep", low=1, high=10_000)
    eval_every: int = setting(100, "steps between validations, 0 for none", low=0, high=1_000_000)
    eval_documents: int = setting(64, "held-out documents of each source to validate on", low=1, high=100_000)
    sample_every: int = setting(500, "steps between samples, 0 for none", low=0, high=1_000_000)
    probe: str = setting(PROBE, "text whose experts are kept at every commit; empty for none")
    seed: int = setting(0, "seed of weights, data order and samples", low=0, high=2**63 - 1)

    def __post_init__(self):
        validate(self)
        if not self.data:
            raise ValueError("data is empty; it must name at least one source.")
        if self.mixture_weights and (len(self.mixture_weights) != len(self.data) or min(self.mixture_weights) <= 0):
            raise ValueError(
                f"mixture_weights is {self.mixture_weights}; it must be {len(self.data)} numbers above 0, one a source."
            )
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
    add_arguments(parser, TrainConfig)
    sizes = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    sizes.add_argument("--preset")
    parser.set_defaults(**PRESET_DEFAULTS.get(sizes.parse_known_args(arguments)[0].preset, {}))
    parser.add_argument(
        "--resume", action="store_true", help="go on from the run's newest checkpoint, with its settings"
    )
    values = vars(parser.parse_args(arguments))
    resume = values.pop("resume")
    try:
        config = TrainConfig(**values)
        if resume:
            file = config.run / "config.json"
            if not file.is_file():
                raise ValueError(f"run {str(config.run)!r} is not there; nothing to resume.")
            here = {"root": config.root, "name": config.name, "shard": config.shard}
            config = TrainConfig(**{**rename(json.loads(file.read_text())), **here})
    except ValueError as error:
        parser.error(str(error))
    return config, resume
