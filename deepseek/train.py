"""The training loop: `train(config)` yields one Step a step; `python -m deepseek.train` prints them.

- AdamW with warm-up, gradient accumulation and clipping, mixed precision where the hardware has it
- loss = language modelling + weight x KL load balancing; after each step the router bias moves by counted load
- everything needed to go on (weights, optimizer, data cursor, metrics length) is committed every N steps; a run that
  was interrupted goes on with --resume as if it had not been
- `torchrun --nproc-per-node N -m deepseek.train ...` is the same run on N processes, `batch_size` being that of all
"""

import collections
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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from deepseek import balance, checkpoint, data, parallel, process, room
from deepseek.config import preset
from deepseek.history import PACE, duration, seconds_left
from deepseek.model import DeepseekV3ForCausalLM, DeepseekV3TopkRouter, fast_in_bf16
from deepseek.observe import observe, probe, validation_texts
from deepseek.settings import TrainConfig, TrainingError, parse

KEPT = "the last good commit is kept."
SEED_TOKENIZER = "HuggingFaceTB/cosmo2-tokenizer"


@dataclass
class Step:
    """What one optimizer step did; the fields up to `max_violation` are a line of metrics.jsonl."""

    step: int
    loss: float  # language modelling, nats a token
    load_balancing_loss: float  # KL, nats, mean over the MoE layers
    lr: float
    grad_norm: float  # before clipping
    tokens: int  # since the start of the run
    tokens_per_second: float  # since the step before, with the validation, samples and commit that followed it
    load: list[list[float]]  # layer x expert, shares of this step's assignments
    max_violation: list[float]  # a layer
    validation: dict | None = None  # val_loss in nats a token, val_bits_per_byte
    samples: list[dict] | None = None  # prompt, text
    checkpoint: str | None = None  # folder committed after this step

    def line(self) -> dict:
        """The fields up to `max_violation`; None for a gradient norm that fp16 could not hold, which JSON cannot either."""
        values = {k: v for k, v in asdict(self).items() if k not in ("validation", "samples", "checkpoint")}
        return {**values, "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None}


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step `step` (from 1): linear warm-up, then constant, or half a cosine (SGDR, 2017).

    The cosine would be 0 one step after the last, so that no step is taken for nothing.
    """
    if step <= config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup) / (config.steps - config.warmup + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(model, weight_decay: float) -> list[dict]:
    """AdamW groups: matrices decay; norms and biases, the vectors, do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def new_model(config: TrainConfig):
    """(model, tokenizer) a run starts from: a checkpoint, or a preset with fresh weights.

    Raises CheckpointError, DataError, or TrainingError for a model or a tokenizer that does not fit.
    """
    if config.start_from:
        model, tokenizer = checkpoint.load(config.start_from, torch.float32)
        if not isinstance(model, DeepseekV3ForCausalLM) or tokenizer is None:
            raise TrainingError(f"from is {config.start_from!r}; it must be a DeepSeek-V3 checkpoint with a tokenizer.")
    else:
        shape = preset(config.preset)
        if config.tokenizer or config.preset == "seed":
            from transformers import AutoTokenizer

            name = config.tokenizer or SEED_TOKENIZER
            try:
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            except Exception as error:  # no network, no such folder, or files of no tokenizer
                raise TrainingError(f"tokenizer {name!r} cannot be opened: {process.explain(error)}") from error
        else:
            tokenizer = data.learn_tokenizer(config.data, shape.vocab_size, config.shares)
        end = tokenizer.eos_token_id
        start = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        ids = dict(bos_token_id=start, eos_token_id=end, pad_token_id=end)
        shape = preset(config.preset, **ids, max_position_embeddings=config.context)  # it knows no place beyond
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
    """The autocast type of a precision; "auto" takes bf16 where it is faster than fp32, fp16 on older GPUs."""
    if precision == "auto":
        if device == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if fast_in_bf16(torch.device(device)) else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def starting_point(config: TrainConfig, resume: bool) -> Path | None:
    """The commit that a run goes on from, None for a new run. Raises TrainingError where it cannot begin so."""
    last = checkpoint.latest(config.run) if resume else None
    if resume and last is None:
        raise TrainingError(f"run {str(config.run)!r} has no commit to resume from.")
    if not resume and (config.run / "metrics.jsonl").exists():
        raise TrainingError(f"run {str(config.run)!r} exists; resume it or choose another name.")
    return last


def train(config: TrainConfig, resume: bool = False, stopped: Callable[[], bool] = lambda: False) -> Iterator[Step]:
    """Trains and yields each step; commits on its way, at the end, and when `stopped()` turns true.

    With `resume` the run goes on from its newest whole commit. Raises TrainingError, DataError or CheckpointError.
    """
    with parallel.processes() as group:
        yield from _train(config, resume, stopped, group)


def _train(config: TrainConfig, resume: bool, stopped, group: parallel.Group) -> Iterator[Step]:
    run, last, device = config.run, starting_point(config, resume), group.device
    if config.batch_size % group.size:
        raise TrainingError(f"batch-size is {config.batch_size}; it must be a multiple of {group.size} processes.")
    cast = autocast_dtype(config.precision, device.type)
    if config.shard and cast == torch.float16:
        raise TrainingError("precision is fp16; with --shard it must be fp32 or bf16.")

    model, tokenizer = checkpoint.load(last, torch.float32) if resume else new_model(config)
    for layer in model.model.layers:
        layer.dropout.p = config.dropout
    model.to(device).train()
    untrained = None if resume or not config.probe else probe(model, tokenizer, config.probe)
    forward = group.wrap(model, config.shard)
    routers = [module for module in model.modules() if isinstance(module, DeepseekV3TopkRouter)]
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.lr, betas=(0.9, config.beta2), fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=cast == torch.float16)
    blocks = data.Blocks(
        config.data, tokenizer, config.context, config.seed, config.shares, skip_held_out=not config.valid
    )
    texts = validation_texts(config)
    step_tokens = config.accumulate * config.batch_size * config.context
    start, tokens = 0, 0
    if resume:
        start, tokens, metrics_bytes = restore(last, model, optimizer, scaler, blocks)
    group.any(False)  # none writes before all have read
    if group.first:
        run.mkdir(parents=True, exist_ok=True)
        if resume:
            os.truncate(run / "metrics.jsonl", metrics_bytes)
        else:
            process.write(run / "config.json", json.dumps(asdict(config), indent=1))

    def due(every: int) -> bool:
        return every > 0 and (step % every == 0 or step == config.steps)

    with contextlib.closing(blocks), open(run / "metrics.jsonl" if group.first else os.devnull, "a") as metrics:
        if untrained:
            print(json.dumps({"step": 0, "probe": untrained}), file=metrics)
        began = time.perf_counter()
        for step in range(start + 1, config.steps + 1):
            # Every random draw of a step depends on the seed and the step alone, so a resumed run repeats it.
            torch.manual_seed((config.seed * 1_000_003 + step + (group.rank << 40)) % 2**63)
            rate = learning_rate(config, step)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            lm_loss = aux_loss = 0.0
            counts_LE = torch.zeros(len(routers), model.config.n_routed_experts, dtype=torch.int64, device=device)
            for _ in range(config.accumulate):
                ids_BS = group.rows(torch.stack(list(itertools.islice(blocks, config.batch_size)))).to(device)
                with torch.autocast(device.type, cast, enabled=cast is not None):
                    output = forward(ids_BS, labels=ids_BS)
                    balancing = output.lm_loss.new_zeros(())
                    if routers:
                        balancing = balance.balancing_loss(output.router_logits, across=group.mean)
                loss = output.lm_loss + config.balance_weight * balancing
                scaler.scale(loss / config.accumulate).backward()
                lm_loss += output.lm_loss.item() / config.accumulate
                aux_loss += balancing.item() / config.accumulate
                for counts_E, indices in zip(counts_LE, output.router_indices):
                    counts_E += balance.expert_counts(indices, len(counts_E))
            group.sum(counts_LE)
            lm_loss = group.mean(torch.tensor(lm_loss, dtype=torch.float64, device=device)).item()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            grad_norm = parallel.gathered(norm).item()
            # An infinite gradient alone is fp16's: the scaler passes the step over and scales less, down to 1.
            overflow = scaler.is_enabled() and scaler.get_scale() > 1
            if not math.isfinite(lm_loss + aux_loss + (0 if overflow else grad_norm)):
                raise TrainingError(f"step {step}: {not_finite(model) or 'the loss is not finite'}; {KEPT}")
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), config.clip, norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            for router, counts_E in zip(routers, counts_LE):
                bias = router.e_score_correction_bias
                bias.copy_(balance.bias_step(bias, counts_E, config.bias_rate))
            tokens += step_tokens
            now = time.perf_counter()
            seconds, began = now - began, now
            record = Step(
                step=step,
                loss=lm_loss,
                load_balancing_loss=aux_loss,
                lr=rate,
                grad_norm=grad_norm,
                tokens=tokens,
                tokens_per_second=round(step_tokens / seconds, 1),
                load=[[round(share, 4) for share in row] for row in balance.load_shares(counts_LE).tolist()],
                max_violation=[round(v, 4) for v in balance.max_violation(counts_LE).tolist()],
            )
            print(json.dumps(record.line(), allow_nan=False), file=metrics)
            stop = group.any(stopped())
            commits = stop or due(config.checkpoint_every)
            if commits and (broken := not_finite(model)):  # the step itself may have overflowed
                raise TrainingError(f"step {step}: {broken}; {KEPT}")
            if commits or due(config.valid_every) or due(config.sample_every):
                whole = group.whole(model)
                tensors = optimizer_tensors(optimizer) if commits else {}
                if group.first:
                    for line in observe(config, record, whole, tokenizer, texts, due):
                        print(json.dumps(line), file=metrics)
                if group.first and commits:
                    metrics.flush()
                    os.fsync(metrics.fileno())
                    state = dict(step=step, tokens=tokens, metrics_bytes=metrics.tell(), scaler=scaler.state_dict())
                    write = writer(whole, tokenizer, tensors, blocks, state)
                    record.checkpoint = str(checkpoint.commit(run, step, write, config.keep))
                    del write
                del whole, tensors  # of a sharded model these are copies
            metrics.flush()
            yield record
            if stop:
                return


def optimizer_tensors(optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, whole where they are sharded."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{key}": parallel.gathered(t) for i, values in state.items() for key, t in values.items()}


def writer(model, tokenizer, optimizer: dict[str, torch.Tensor], blocks, state: dict) -> Callable[[Path], None]:
    """What a commit holds: the model and tokenizer, and in training* all that the loop needs to go on."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        cursor = blocks.state()
        save_file({"data.buffer": cursor.pop("buffer"), **optimizer}, folder / "training_state.bin")
        (folder / "training.json").write_text(json.dumps({**state, "data": cursor}))

    return write


def restore(folder: Path, model, optimizer, scaler, blocks) -> tuple[int, int, int]:
    """Undoes `writer`; returns (step, tokens, bytes of metrics.jsonl)."""
    state = json.loads((folder / "training.json").read_text())
    tensors = load_file(folder / "training_state.bin")
    blocks.restore({**state["data"], "buffer": tensors.pop("data.buffer")})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split(".")
        values.setdefault(int(index), {})[key] = parallel.scattered(tensor, parameters[int(index)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
    scaler.load_state_dict(state["scaler"])
    return state["step"], state["tokens"], state["metrics_bytes"]


def not_finite(model) -> str | None:
    """Names a tensor with a NaN or infinite value, None where there is none: the weight, or gradient, it began with.

    A bad weight makes every gradient bad, and a bad gradient those of all the layers below it.
    """
    weights = [("weight", name, parameter) for name, parameter in model.named_parameters()]
    gradients = [("gradient of", name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    for what, name, tensor in weights + gradients[::-1]:
        if not parallel.gathered(tensor).isfinite().all():
            return f"{what} {name} is not finite"
    return None


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks for the next step; giving them back costs a CPU run about a third of its speed."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def report(config: TrainConfig, step: Step, speeds) -> None:
    """Prints what a step did; `speeds` are the tokens a second of the last steps, which tell the time left."""
    left = duration(seconds_left(config.steps - step.step, step.tokens / step.step, speeds))
    print(
        f"Step {step.step} - Loss: {step.loss:.4f}, Load Balancing Loss: {step.load_balancing_loss:.6f}"
        f" | lr {step.lr:.2e}, {step.tokens_per_second:.0f} tokens/s, {left} left",
        flush=True,
    )
    if step.validation:
        print(f"  held out: {step.validation['val_loss']:.4f} nats a token, "
              f"{step.validation['val_bits_per_byte']:.4f} bits a byte", flush=True)  # fmt: skip
    for number, text in enumerate(step.samples or [], 1):
        print(f"  Sample {number}: {text['text']!r}", flush=True)
    if step.checkpoint:
        print(f"  committed {step.checkpoint}", flush=True)


class Stopped(BaseException):
    """A signal to stop came before the first step, when there is nothing to commit."""


def main():
    config, resume = parse()
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    first = os.environ.get("RANK", "0") == "0"  # of several processes one holds the lock and writes down the end
    if first:
        try:
            lock = process.lock(config.root, config.name)
            room.check(config, starting_point(config, resume))
        except (process.Busy, TrainingError) as error:
            sys.exit(f"error: {error}")
        config.run.mkdir(exist_ok=True)
        process.record(config.run)

    signals, step, failure, state, reason = [], None, None, "finished", ""
    speeds = collections.deque(maxlen=PACE)

    def stop(number, _):
        signals.append(number)
        if step is None:
            raise Stopped

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # held back by runs.start until now
        for step in train(config, resume, stopped=lambda: bool(signals)):
            if first:
                speeds.append(step.tokens_per_second)
                report(config, step, speeds)
        if signals and step.step < config.steps:
            state = "stopped"
    except Stopped:
        state = "stopped"
    except Exception as error:
        failure, state, reason = error, "failed", process.explain(error)
    if first:
        os.close(lock)  # before the end can be seen, so that whoever sees it can start the next
        process.end(config.run, state, reason)
    if isinstance(failure, (TrainingError, data.DataError, checkpoint.CheckpointError)):
        sys.exit(f"error: {reason}")
    if failure:
        raise failure


if __name__ == "__main__":
    main()
