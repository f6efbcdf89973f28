"""The training loop: `train(config)` yields one Step a step; `python -m deepseek.train` prints them.

- AdamW with warm-up, gradient accumulation and clipping, mixed precision where the hardware has it
- loss = language modelling + weight x KL load balancing; after each step the router bias moves by counted load
- everything needed to go on (weights, optimizer, data cursor, metrics length) is committed every N steps; a run that
  was interrupted goes on with --resume as if it had not been
- `torchrun --nproc-per-node N -m deepseek.train ...` is the same run on N processes, `batch_size` being that of all
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deepseek.checkpoints import loading, saving
from deepseek.data import dataloader
from deepseek.data.tokenizer import train_tokenizer
from deepseek.model import load_balancing
from deepseek.model.config import preset
from deepseek.model.cpu_features import fast_in_bf16
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM, DeepseekV3TopkRouter
from deepseek.training import distributed, job_process
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.validation import observe, probe, validation_texts

KEPT = "the last good commit is kept."
SEED_TOKENIZER = "HuggingFaceTB/cosmo2-tokenizer"


@dataclass
class TrainStep:
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
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps + 1)
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
    if config.init_from:
        model, tokenizer = loading.load(config.init_from, torch.float32)
        if not isinstance(model, DeepseekV3ForCausalLM) or tokenizer is None:
            raise TrainingError(f"from is {config.init_from!r}; it must be a DeepSeek-V3 checkpoint with a tokenizer.")
    else:
        shape = preset(config.preset)
        if config.tokenizer or config.preset == "seed":
            from transformers import AutoTokenizer

            name = config.tokenizer or SEED_TOKENIZER
            try:
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            except Exception as error:  # no network, no such folder, or files of no tokenizer
                raise TrainingError(
                    f"tokenizer {name!r} cannot be opened: {job_process.explain_error(error)}"
                ) from error
        else:
            tokenizer = train_tokenizer(config.data, shape.vocab_size, config.mixture_weights)
        end = tokenizer.eos_token_id
        start = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        ids = dict(bos_token_id=start, eos_token_id=end, pad_token_id=end)
        shape = preset(config.preset, **ids, max_position_embeddings=config.max_seq_len)  # it knows no place beyond
        if len(tokenizer) > shape.vocab_size:
            raise TrainingError(
                f"the tokenizer has {len(tokenizer)} tokens; preset {config.preset} has {shape.vocab_size}."
            )
        torch.manual_seed(config.seed)
        model = DeepseekV3ForCausalLM(shape)
    model.config.router_aux_loss_coef = config.balance_weight
    model.config.max_position_embeddings = max(model.config.max_position_embeddings, config.max_seq_len)
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


def resume_point(config: TrainConfig, resume: bool) -> Path | None:
    """The commit that a run goes on from, None for a new run. Raises TrainingError where it cannot begin so."""
    last = saving.latest_checkpoint(config.run) if resume else None
    if resume and last is None:
        raise TrainingError(f"run {str(config.run)!r} has no commit to resume from.")
    if not resume and (config.run / "metrics.jsonl").exists():
        raise TrainingError(f"run {str(config.run)!r} exists; resume it or choose another name.")
    return last


def train(
    config: TrainConfig, resume: bool = False, stopped: Callable[[], bool] = lambda: False
) -> Iterator[TrainStep]:
    """Trains and yields each step; commits on its way, at the end, and when `stopped()` turns true.

    With `resume` the run goes on from its newest whole commit. Raises TrainingError, DataError or CheckpointError.
    """
    with distributed.process_group() as group:
        yield from _train(config, resume, stopped, group)


def _train(config: TrainConfig, resume: bool, stopped, group: distributed.ProcessGroup) -> Iterator[TrainStep]:
    run, last, device = config.run, resume_point(config, resume), group.device
    if config.batch_size % group.size:
        raise TrainingError(f"batch-size is {config.batch_size}; it must be a multiple of {group.size} processes.")
    cast = autocast_dtype(config.precision, device.type)
    if config.shard and cast == torch.float16:
        raise TrainingError("precision is fp16; with --shard it must be fp32 or bf16.")

    model, tokenizer = loading.load(last, torch.float32) if resume else new_model(config)
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
    blocks = dataloader.PackedDataLoader(
        config.data,
        tokenizer,
        config.max_seq_len,
        config.seed,
        config.mixture_weights,
        skip_held_out=not config.eval_data,
    )
    texts = validation_texts(config)
    step_tokens = config.gradient_accumulation_steps * config.batch_size * config.max_seq_len
    start, tokens = 0, 0
    if resume:
        start, tokens, metrics_bytes = restore_state(last, model, optimizer, scaler, blocks)
    group.any(False)  # none writes before all have read
    if group.first:
        run.mkdir(parents=True, exist_ok=True)
        if resume:
            os.truncate(run / "metrics.jsonl", metrics_bytes)
        else:
            job_process.write_json(run / "config.json", json.dumps(asdict(config), indent=1))

    def due(every: int) -> bool:
        return every > 0 and (step % every == 0 or step == config.max_steps)

    with contextlib.closing(blocks), open(run / "metrics.jsonl" if group.first else os.devnull, "a") as metrics:
        if untrained:
            print(json.dumps({"step": 0, "probe": untrained}), file=metrics)
        began = time.perf_counter()
        for step in range(start + 1, config.max_steps + 1):
            # Every random draw of a step depends on the seed and the step alone, so a resumed run repeats it.
            torch.manual_seed((config.seed * 1_000_003 + step + (group.rank << 40)) % 2**63)
            rate = learning_rate(config, step)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            lm_loss = aux_loss = 0.0
            counts_LE = torch.zeros(len(routers), model.config.n_routed_experts, dtype=torch.int64, device=device)
            for _ in range(config.gradient_accumulation_steps):
                ids_BS = group.rows(torch.stack(list(itertools.islice(blocks, config.batch_size)))).to(device)
                with torch.autocast(device.type, cast, enabled=cast is not None):
                    output = forward(ids_BS, labels=ids_BS)
                    balancing = output.lm_loss.new_zeros(())
                    if routers:
                        balancing = load_balancing.load_balancing_loss(output.router_logits, across=group.mean)
                loss = output.lm_loss + config.balance_weight * balancing
                scaler.scale(loss / config.gradient_accumulation_steps).backward()
                lm_loss += output.lm_loss.item() / config.gradient_accumulation_steps
                aux_loss += balancing.item() / config.gradient_accumulation_steps
                for counts_E, indices in zip(counts_LE, output.router_indices):
                    counts_E += load_balancing.tokens_per_expert(indices, len(counts_E))
            group.sum(counts_LE)
            lm_loss = group.mean(torch.tensor(lm_loss, dtype=torch.float64, device=device)).item()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            grad_norm = distributed.full_tensor(norm).item()
            # An infinite gradient alone is fp16's: the scaler passes the step over and scales less, down to 1.
            overflow = scaler.is_enabled() and scaler.get_scale() > 1
            if not math.isfinite(lm_loss + aux_loss + (0 if overflow else grad_norm)):
                raise TrainingError(f"step {step}: {not_finite(model) or 'the loss is not finite'}; {KEPT}")
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), config.max_grad_norm, norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            for router, counts_E in zip(routers, counts_LE):
                bias = router.e_score_correction_bias
                bias.copy_(load_balancing.update_expert_bias(bias, counts_E, config.bias_update_rate))
            tokens += step_tokens
            now = time.perf_counter()
            seconds, began = now - began, now
            record = TrainStep(
                step=step,
                loss=lm_loss,
                load_balancing_loss=aux_loss,
                lr=rate,
                grad_norm=grad_norm,
                tokens=tokens,
                tokens_per_second=round(step_tokens / seconds, 1),
                load=[[round(share, 4) for share in row] for row in load_balancing.load_shares(counts_LE).tolist()],
                max_violation=[round(v, 4) for v in load_balancing.max_violation(counts_LE).tolist()],
            )
            print(json.dumps(record.line(), allow_nan=False), file=metrics)
            stop = group.any(stopped())
            commits = stop or due(config.save_every)
            if commits and (broken := not_finite(model)):  # the step itself may have overflowed
                raise TrainingError(f"step {step}: {broken}; {KEPT}")
            if commits or due(config.eval_every) or due(config.sample_every):
                whole = group.whole(model)
                tensors = optimizer_tensors(optimizer) if commits else {}
                if group.first:
                    for line in observe(config, record, whole, tokenizer, texts, due):
                        print(json.dumps(line), file=metrics)
                if group.first and commits:
                    metrics.flush()
                    os.fsync(metrics.fileno())
                    state = dict(step=step, tokens=tokens, metrics_bytes=metrics.tell(), scaler=scaler.state_dict())
                    write = checkpoint_writer(whole, tokenizer, tensors, blocks, state)
                    record.checkpoint = str(saving.save_checkpoint(run, step, write, config.keep_last))
                    del write
                del whole, tensors  # of a sharded model these are copies
            metrics.flush()
            yield record
            if stop:
                return


def optimizer_tensors(optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, whole where they are sharded."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{key}": distributed.full_tensor(t) for i, values in state.items() for key, t in values.items()
    }


def checkpoint_writer(
    model, tokenizer, optimizer: dict[str, torch.Tensor], blocks, state: dict
) -> Callable[[Path], None]:
    """What a commit holds: the model and tokenizer, and in training* all that the loop needs to go on."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        cursor = blocks.state()
        save_file({"data.buffer": cursor.pop("buffer"), **optimizer}, folder / "training_state.bin")
        (folder / "training.json").write_text(json.dumps({**state, "data": cursor}))

    return write


def restore_state(folder: Path, model, optimizer, scaler, blocks) -> tuple[int, int, int]:
    """Undoes `writer`; returns (step, tokens, bytes of metrics.jsonl)."""
    state = json.loads((folder / "training.json").read_text())
    tensors = load_file(folder / "training_state.bin")
    blocks.restore({**state["data"], "buffer": tensors.pop("data.buffer")})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split(".")
        values.setdefault(int(index), {})[key] = distributed.shard_like(tensor, parameters[int(index)])
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
        if not distributed.full_tensor(tensor).isfinite().all():
            return f"{what} {name} is not finite"
    return None
