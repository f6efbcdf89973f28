"""The training loop: `train(config)` yields one Step a step; `python -m deepseek.train` prints them.

- AdamW with warm-up, gradient accumulation and clipping, mixed precision where the hardware has it
- loss = language modelling + weight x KL load balancing; after each step the router bias moves by counted load
- everything needed to go on (weights, optimizer, data cursor, metrics length) is committed every N steps; a run that
  was interrupted goes on with --resume as if it had not been
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from deepseek import balance, checkpoint, data
from deepseek.config import PRESETS, preset
from deepseek.evaluate import evaluate
from deepseek.model import DeepseekV3ForCausalLM, DeepseekV3TopkRouter

SAMPLE_PROMPTS = ["Once upon a time", "In the depths of space", "The most interesting scientific discovery"]
SEED_TOKENIZER = "HuggingFaceTB/cosmo2-tokenizer"


def setting(default, help: str, low=None, high=None, choices=None, flag: str | None = None):
    """A field of TrainConfig with what the command line and the validation need to know of it."""
    metadata = dict(help=help, low=low, high=high, choices=choices, flag=flag)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainConfig:
    """All settings of a run. Raises ValueError naming the field, its value and what is allowed."""

    root: str = setting("deepseek_checkpoints", "folder that holds the runs")
    name: str = setting("run", "the run's name, a folder under --root")
    preset: str = setting("demo", "size of a new model", choices=list(PRESETS))
    start_from: str = setting("", "checkpoint to continue from instead of a new model", flag="--from")
    tokenizer: str = setting("", "folder or Hub id of the tokenizer of a new model (default: learned from the data)")
    data: list[str] = setting([data.BUILT_IN], 'text to train on: "builtin", files, Hub ids')
    shares: list[float] = setting([], "share of each source in the tokens read (default: even)", low=0)
    valid: list[str] = setting([], "held-out text (default: every 50th document of the data)")
    steps: int = setting(1000, "optimizer steps in all", low=1, high=10_000_000)
    batch_size: int = setting(8, "sequences in one forward pass", low=1, high=4096)
    accumulate: int = setting(1, "forward passes in one step", low=1, high=4096)
    context: int = setting(256, "tokens in a sequence", low=8, high=131_072)
    lr: float = setting(1e-4, "peak learning rate", low=0, high=1)
    schedule: str = setting("cosine", "learning rate after the warm-up", choices=["cosine", "constant"])
    warmup: int = setting(100, "steps of linear warm-up", low=0, high=1_000_000)
    weight_decay: float = setting(0.01, "AdamW weight decay, not on norms and biases", low=0, high=10)
    beta2: float = setting(0.95, "AdamW beta2", low=0, high=0.99999)
    clip: float = setting(1.0, "largest gradient norm", low=1e-6, high=1e6)
    balance_weight: float = setting(0.01, "weight of the KL load-balancing loss", low=0, high=100)
    bias_rate: float = setting(0.001, "step of the router bias", low=0, high=1)
    dropout: float = setting(0.0, "dropout on every branch", low=0, high=0.9)
    precision: str = setting("auto", "auto: bf16, or fp16 on older GPUs, where there is hardware for it",
                             choices=["auto", "fp32", "bf16", "fp16"])  # fmt: skip
    checkpoint_every: int = setting(100, "steps between commits", low=1, high=1_000_000)
    keep: int = setting(2, "commits to keep", low=1, high=10_000)
    valid_every: int = setting(100, "steps between validations, 0 for none", low=0, high=1_000_000)
    valid_documents: int = setting(64, "held-out documents of each source to validate on", low=1, high=100_000)
    sample_every: int = setting(500, "steps between samples, 0 for none", low=0, high=1_000_000)
    seed: int = setting(0, "seed of weights, data order and samples", low=0, high=2**63 - 1)

    def __post_init__(self):
        for f in fields(self):
            value, known = getattr(self, f.name), f.metadata
            label = (known["flag"] or "--" + f.name.replace("_", "-")).lstrip("-")
            for item in value if isinstance(value, list) else [value]:
                if known["choices"] and item not in known["choices"]:
                    raise ValueError(f"{label} is {item!r}; it must be one of {', '.join(known['choices'])}.")
                low, high = known["low"], known["high"]
                if low is not None and not (isinstance(item, (int, float)) and low <= item <= (high or math.inf)):
                    raise ValueError(f"{label} is {item!r}; it must be a number from {low} to {high or 'infinity'}.")
        if not self.data:
            raise ValueError("data is empty; it must name at least one source.")
        if self.shares and (len(self.shares) != len(self.data) or min(self.shares) <= 0):
            raise ValueError(f"shares is {self.shares}; it must be {len(self.data)} numbers above 0, one a source.")
        if not self.name or set(self.name) & set("/\\\0") or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; it must be a folder's name without slashes or a leading dot.")

    @property
    def run(self) -> Path:
        return Path(self.root) / self.name


@dataclass
class Step:
    """What one optimizer step did; the fields up to `max_violation` are a line of metrics.jsonl."""

    step: int
    loss: float  # language modelling, nats a token
    load_balancing_loss: float  # KL, nats, mean over the MoE layers
    lr: float
    grad_norm: float  # before clipping
    tokens: int  # since the start of the run
    tokens_per_second: float
    load: list[list[float]]  # layer x expert, shares of this step's assignments
    max_violation: list[float]  # a layer
    validation: dict | None = None  # val_loss in nats a token, val_bits_per_byte
    samples: list[dict] | None = None  # prompt, text
    checkpoint: str | None = None  # folder committed after this step

    def line(self) -> dict:
        return {k: v for k, v in asdict(self).items() if k not in ("validation", "samples", "checkpoint")}


class TrainingError(RuntimeError):
    """The run cannot go on; the message is one sentence that says why."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step `step` (from 1): linear warm-up, then constant, or half a cosine down to 0 (SGDR, 2017)."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def parameter_groups(model, weight_decay: float) -> list[dict]:
    """AdamW groups: matrices decay; norms and biases, the vectors, do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def new_model(config: TrainConfig):
    """(model, tokenizer) a run starts from: a checkpoint, or a preset with fresh weights."""
    if config.start_from:
        model, tokenizer = checkpoint.load(config.start_from, torch.float32)
        if not isinstance(model, DeepseekV3ForCausalLM) or tokenizer is None:
            raise TrainingError(f"from is {config.start_from!r}; it must be a DeepSeek-V3 checkpoint with a tokenizer.")
    else:
        shape = preset(config.preset)
        if config.tokenizer or config.preset == "seed":
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or SEED_TOKENIZER, trust_remote_code=False)
        else:
            tokenizer = data.learn_tokenizer(config.data, shape.vocab_size, config.shares)
        end = tokenizer.eos_token_id
        start = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        shape = preset(config.preset, bos_token_id=start, eos_token_id=end, pad_token_id=end)
        if len(tokenizer) > shape.vocab_size:
            raise TrainingError(
                f"the tokenizer has {len(tokenizer)} tokens; preset {config.preset} has {shape.vocab_size}."
            )
        torch.manual_seed(config.seed)
        model = DeepseekV3ForCausalLM(shape)
    model.config.router_aux_loss_coef = config.balance_weight
    model.config.max_position_embeddings = max(model.config.max_position_embeddings, config.context)
    for layer in model.model.layers:
        layer.dropout.p = config.dropout
    return model, tokenizer


def autocast_dtype(precision: str, device: str) -> torch.dtype | None:
    """The autocast type of a precision; "auto" takes bf16 where there are instructions for it, fp16 on older GPUs."""
    if precision == "auto":
        if device == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if checkpoint.preferred_dtype() == torch.bfloat16 else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def train(config: TrainConfig, resume: bool = False, stopped: Callable[[], bool] = lambda: False) -> Iterator[Step]:
    """Trains and yields each step; commits on its way, at the end, and when `stopped()` turns true.

    With `resume` the run goes on from its newest whole commit. Raises TrainingError, DataError or CheckpointError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = config.run
    last = checkpoint.latest(run)
    if resume and last is None:
        raise TrainingError(f"run {str(run)!r} has no commit to resume from.")
    if not resume and (run / "metrics.jsonl").exists():
        raise TrainingError(f"run {str(run)!r} exists; resume it or choose another name.")
    run.mkdir(parents=True, exist_ok=True)

    model, tokenizer = checkpoint.load(last, torch.float32) if resume else new_model(config)
    for layer in model.model.layers:
        layer.dropout.p = config.dropout
    model.to(device).train()
    routers = [module for module in model.modules() if isinstance(module, DeepseekV3TopkRouter)]
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.lr, betas=(0.9, config.beta2), fused=True
    )
    cast = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device, enabled=cast == torch.float16)
    blocks = data.Blocks(
        config.data, tokenizer, config.context, config.seed, config.shares, skip_held_out=not config.valid
    )
    texts = validation_texts(config)
    start, tokens = 0, 0
    if resume:
        start, tokens, metrics_bytes = restore(last, model, optimizer, scaler, blocks)
        os.truncate(run / "metrics.jsonl", metrics_bytes)
    else:
        (run / "config.json").write_text(json.dumps(asdict(config), indent=1))

    with contextlib.closing(blocks), (run / "metrics.jsonl").open("a") as metrics:
        for step in range(start + 1, config.steps + 1):
            began = time.perf_counter()
            # Every random draw of a step depends on the seed and the step alone, so a resumed run repeats it.
            torch.manual_seed((config.seed * 1_000_003 + step) % 2**63)
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            lm_loss = aux_loss = 0.0
            counts_LE = torch.zeros(len(routers), model.config.n_routed_experts, dtype=torch.int64, device=device)
            for _ in range(config.accumulate):
                ids_BS = torch.stack(list(itertools.islice(blocks, config.batch_size))).to(device)
                with torch.autocast(device, cast, enabled=cast is not None):
                    output = model(ids_BS, labels=ids_BS)
                scaler.scale(output.loss / config.accumulate).backward()
                lm_loss += output.lm_loss.item() / config.accumulate
                aux_loss += (0.0 if output.aux_loss is None else output.aux_loss.item()) / config.accumulate
                for counts_E, indices in zip(counts_LE, output.router_indices):
                    counts_E += balance.expert_counts(indices, len(counts_E))
            scaler.unscale_(optimizer)
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip).item()
            # An infinite gradient alone is fp16's: the scaler passes the step over and scales less.
            if not math.isfinite(lm_loss if scaler.is_enabled() else lm_loss + grad_norm):
                raise TrainingError(f"step {step}: {not_finite(model)}; the last good commit is kept.")
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            for router, counts_E in zip(routers, counts_LE):
                bias = router.e_score_correction_bias
                bias.copy_(balance.bias_step(bias, counts_E, config.bias_rate))
            tokens += config.accumulate * ids_BS.numel()
            record = Step(
                step=step,
                loss=lm_loss,
                load_balancing_loss=aux_loss,
                lr=rate,
                grad_norm=grad_norm,
                tokens=tokens,
                tokens_per_second=round(config.accumulate * ids_BS.numel() / (time.perf_counter() - began), 1),
                load=[[round(share, 4) for share in row] for row in balance.load_shares(counts_LE).tolist()],
                max_violation=[round(v, 4) for v in balance.max_violation(counts_LE).tolist()],
            )
            print(json.dumps(record.line()), file=metrics)
            if texts and (step % config.valid_every == 0 or step == config.steps):
                result = evaluate(model, tokenizer, texts, config.context)
                record.validation = {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte}
                print(json.dumps({"step": step, **record.validation}), file=metrics)
            if config.sample_every and (step % config.sample_every == 0 or step == config.steps):
                record.samples = sample(model, tokenizer, config.seed)
            metrics.flush()
            stop = stopped()
            if stop or step % config.checkpoint_every == 0 or step == config.steps:
                os.fsync(metrics.fileno())
                state = dict(step=step, tokens=tokens, metrics_bytes=metrics.tell(), scaler=scaler.state_dict())
                write = writer(model, tokenizer, optimizer, blocks, state)
                record.checkpoint = str(checkpoint.commit(run, step, write, config.keep))
            yield record
            if stop:
                return


def writer(model, tokenizer, optimizer, blocks, state: dict) -> Callable[[Path], None]:
    """What a commit holds: the model and tokenizer, and in training.* all that the loop needs to go on."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        cursor = blocks.state()
        tensors = {"data.buffer": cursor.pop("buffer")}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        save_file(tensors, folder / "training_state.bin")
        (folder / "training.json").write_text(json.dumps({**state, "data": cursor}))

    return write


def restore(folder: Path, model, optimizer, scaler, blocks) -> tuple[int, int, int]:
    """Undoes `writer`; returns (step, tokens, bytes of metrics.jsonl)."""
    state = json.loads((folder / "training.json").read_text())
    tensors = load_file(folder / "training_state.bin")
    blocks.restore({**state["data"], "buffer": tensors.pop("data.buffer")})
    values: dict[int, dict] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split(".")
        values.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
    scaler.load_state_dict(state["scaler"])
    return state["step"], state["tokens"], state["metrics_bytes"]


def validation_texts(config: TrainConfig) -> list[str]:
    """The first `valid_documents` held-out documents of every source."""
    if not config.valid_every:
        return []
    readers = [data.documents(s) for s in config.valid] or [data.held_out(s) for s in config.data]
    return [text for reader in readers for text in itertools.islice(reader, config.valid_documents)]


def sample(model, tokenizer, seed: int, temperature: float = 0.8, new_tokens: int = 100) -> list[dict]:
    """Real continuations of SAMPLE_PROMPTS by the model as it is now."""
    model.eval()
    samples = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for prompt in SAMPLE_PROMPTS:
            ids = torch.tensor([data.encode(tokenizer, prompt)], device=model.device)
            options = dict(do_sample=True, temperature=temperature, top_k=50, max_new_tokens=new_tokens)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            samples.append({"prompt": prompt, "text": tokenizer.decode(output[0, 1:], skip_special_tokens=True)})
    model.train()
    return samples


def not_finite(model) -> str:
    """Names the first tensor with a NaN or infinite value."""
    weights = [("weight", name, parameter) for name, parameter in model.named_parameters()]
    gradients = [("gradient of", name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    for what, name, tensor in weights + gradients:  # one bad weight makes every gradient bad
        if not tensor.isfinite().all():
            return f"{what} {name} is not finite"
    return "the loss is not finite"


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks for the next step; giving them back costs a CPU run about a third of its speed."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def parse(arguments: list[str] | None = None) -> tuple[TrainConfig, bool]:
    """(settings, whether to resume) of a command line; exits with one sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m deepseek.train", description="Train a DeepSeek-style model.")
    for f in fields(TrainConfig):
        many = f.default is MISSING
        kind = (float if f.name == "shares" else str) if many else type(f.default)
        default = f.default_factory() if many else f.default
        parser.add_argument(
            f.metadata["flag"] or "--" + f.name.replace("_", "-"),
            dest=f.name,
            type=kind,
            default=default,
            nargs="+" if many else None,
            metavar=f.name.upper() if f.metadata["choices"] is None else "|".join(f.metadata["choices"]),
            help=f"{f.metadata['help']} ({default})" if default not in ("", []) else f.metadata["help"],
        )
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest commit, with its settings")
    values = vars(parser.parse_args(arguments))
    resume = values.pop("resume")
    try:
        config = TrainConfig(**values)
        if resume:
            file = config.run / "config.json"
            if not file.is_file():
                raise ValueError(f"run {str(config.run)!r} is not there; nothing to resume.")
            config = TrainConfig(**{**json.loads(file.read_text()), "root": config.root, "name": config.name})
    except ValueError as error:
        parser.error(str(error))
    return config, resume


def main():
    config, resume = parse()
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: signals.append(received))
    try:
        for step in train(config, resume, stopped=lambda: bool(signals)):
            left = (config.steps - step.step) * (step.tokens / step.step) / step.tokens_per_second
            print(
                f"Step {step.step} - Loss: {step.loss:.4f}, Load Balancing Loss: {step.load_balancing_loss:.6f}"
                f" | lr {step.lr:.2e}, {step.tokens_per_second:.0f} tokens/s, {left / 60:.0f} min left",
                flush=True,
            )
            if step.validation:
                print(f"  held out: {step.validation['val_loss']:.4f} nats a token, "
                      f"{step.validation['val_bits_per_byte']:.4f} bits a byte", flush=True)  # fmt: skip
            for number, text in enumerate(step.samples or [], 1):
                print(f"  Sample {number}: {text['text']!r}", flush=True)
            if step.checkpoint:
                print(f"  committed {step.checkpoint}", flush=True)
    except (TrainingError, data.DataError, checkpoint.CheckpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
