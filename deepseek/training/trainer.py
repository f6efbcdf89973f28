"""The train loop: `train(config)` yields a TrainStep per optimizer step; `python -m deepseek.train` prints them.

- AdamW or Muon with warm-up, gradient accumulation and clipping, in mixed precision where the hardware is faster in it
- loss = language modelling + balance_weight x KL load balancing (+ sequence_balance_weight x balance within sequences);
  after each step the router bias moves against the load
- a checkpoint holds all that the run needs to continue (weights, optimizer, data position, length of the metrics file),
  so a resumed run takes the same steps as one that was never interrupted
- `torchrun --nproc-per-node N -m deepseek.train ...` trains the same run on N processes, which divide `batch_size`
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from deepseek.checkpoints import loading, saving
from deepseek.data.chat import document_renderer
from deepseek.data.dataloader import PackedDataLoader
from deepseek.data.file_formats import END_OF_TEXT
from deepseek.data.tokenizer import start_token, train_tokenizer
from deepseek.model import load_balancing
from deepseek.model.config import preset
from deepseek.model.cpu_features import fast_in_bf16
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.moe import DeepseekV3TopkRouter
from deepseek.training import distributed, job_process
from deepseek.training.config import TrainConfig, TrainingError
from deepseek.training.metrics import TrainStep, cut
from deepseek.training.muon import MuonAdamW, parameter_groups
from deepseek.training.resource_check import resume_point
from deepseek.training.validation import evaluate, load_statistics, routing_records, sample, texts_id, validation_texts

SEED_TOKENIZER = "HuggingFaceTB/cosmo2-tokenizer"  # of the preset "seed"
NOT_FINITE = "step {}: {} is not finite; the last good checkpoint is kept."


def new_model(config: TrainConfig):
    """(model, tokenizer) at the start of a run: a checkpoint, or a preset with random weights.

    Raises CheckpointError, DataError, or TrainingError for a model or a tokenizer that cannot be trained.
    """
    if config.init_from:
        model, tokenizer = loading.load(config.init_from, torch.float32)
        if not isinstance(model, DeepseekV3ForCausalLM) or tokenizer is None:
            raise TrainingError(f"init_from is {config.init_from!r}; it must be a DeepSeek-V3 model with a tokenizer.")
    else:
        tokenizer = new_tokenizer(config)
        start = start_token(tokenizer)  # in training it also ends the document before it
        ids = dict(bos_token_id=start, eos_token_id=start, pad_token_id=start)
        # No position beyond max_seq_len is trained.
        shape = preset(config.preset, **ids, max_position_embeddings=config.max_seq_len)
        if (num_tokens := len(tokenizer)) > shape.vocab_size:
            raise TrainingError(f"tokenizer has {num_tokens} tokens; preset {config.preset} has {shape.vocab_size}.")
        torch.manual_seed(config.seed)
        model = DeepseekV3ForCausalLM(shape)
    model.config.router_aux_loss_coef = config.balance_weight
    model.config.max_position_embeddings = max(model.config.max_position_embeddings, config.max_seq_len)
    return model, tokenizer


def new_tokenizer(config: TrainConfig):
    """The tokenizer of a new model. Raises TrainingError where it cannot be opened, DataError where data cannot be read."""
    if not config.tokenizer and config.preset != "seed":
        vocab_size = preset(config.preset).vocab_size
        return train_tokenizer(config.data, vocab_size, config.mixture_weights, options=config.read_options)
    name = config.tokenizer or SEED_TOKENIZER
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # no network, no such folder, or no tokenizer in it
        raise TrainingError(f"tokenizer {name!r} cannot be opened: {job_process.explain_error(error)}") from error
    if start_token(tokenizer) is None:
        tokenizer.add_special_tokens({"eos_token": END_OF_TEXT})
    return tokenizer


def autocast_dtype(precision: str, device_type: str) -> torch.dtype | None:
    """The dtype to autocast to, None for fp32; "auto" takes bf16 where it is faster than fp32, fp16 on older GPUs."""
    if precision == "auto":
        if device_type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if fast_in_bf16(torch.device(device_type)) else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def train(config: TrainConfig, resume: bool = False, stopped=lambda: False) -> Iterator[TrainStep]:
    """Trains and yields each step; saves a checkpoint every `save_every` steps, at the end, and once `stopped()` is true.

    With `resume` the run continues from its newest complete checkpoint.
    Raises TrainingError, DataError or CheckpointError.
    """
    with distributed.process_group() as group:
        yield from Trainer(config, resume_point(config, resume), group).run(stopped)


class Trainer:
    """The state of a run on this process: model, optimizer, data and counters."""

    def __init__(self, config: TrainConfig, checkpoint: Path | None, group: distributed.ProcessGroup):
        if config.batch_size % group.size:
            raise TrainingError(f"batch_size is {config.batch_size}; it must be a multiple of {group.size} processes.")
        self.autocast_dtype = autocast_dtype(config.precision, group.device.type)
        if config.shard and self.autocast_dtype == torch.float16:
            raise TrainingError("precision is fp16; with --shard it must be fp32 or bf16.")
        self.config, self.group, self.checkpoint = config, group, checkpoint
        self.model, self.tokenizer = loading.load(checkpoint, torch.float32) if checkpoint else new_model(config)
        for layer in self.model.model.layers:
            layer.dropout.p = config.dropout
        self.model.to(group.device).train()
        options = replace(config.read_options, render_chat=document_renderer(self.tokenizer))
        self.texts = validation_texts(config, options)
        probed = config.probe, self.texts
        self.initial_routing = {} if checkpoint else routing_records(self.model, self.tokenizer, *probed)
        self.forward = group.wrap(self.model, config.shard)
        self.routers = [module for module in self.model.modules() if isinstance(module, DeepseekV3TopkRouter)]
        groups = parameter_groups(self.model, config.weight_decay, config.optimizer == "muon")
        self.optimizer = MuonAdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.autocast_dtype == torch.float16)
        sampling = config.max_seq_len, config.seed, config.mixture_weights
        self.data = PackedDataLoader(config.data, self.tokenizer, *sampling, config.holds_out, options)
        self.step = self.tokens = self.metrics_bytes = 0
        if checkpoint:
            self.load(checkpoint)

    def run(self, stopped: Callable[[], bool]) -> Iterator[TrainStep]:
        """Yields the steps that remain. Raises TrainingError where a value is not finite, DataError."""
        folder = self.config.run
        self.group.any(False)  # no process writes before all have read
        if self.group.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            if job_process.read_text(folder / "config.json") != (text := json.dumps(asdict(self.config), indent=1)):
                job_process.write_json(folder / "config.json", text)
            cut(folder / "metrics.jsonl", self.metrics_bytes)
        metrics_file = folder / "metrics.jsonl" if self.group.is_main else os.devnull
        with contextlib.closing(self.data), open(metrics_file, "a") as metrics:
            for name, values in self.initial_routing.items():
                print(json.dumps({"step": 0, name: values}), file=metrics)
            self.timestamp = time.perf_counter()
            while self.step < self.config.max_steps:
                record = self.train_step()
                print(json.dumps(record.line(), allow_nan=False), file=metrics)
                stop = self.group.any(stopped())
                self.observe_and_save(record, metrics, stop)
                metrics.flush()
                yield record
                if stop:
                    return

    def train_step(self) -> TrainStep:
        """Takes one optimizer step. Raises TrainingError where the loss or a gradient is not finite."""
        config = self.config
        self.step += 1
        # All randomness of a step depends on the seed and the step alone, so that a resumed run repeats it.
        torch.manual_seed((config.seed * 1_000_003 + self.step + (self.group.rank << 40)) % 2**63)
        lm_loss, balancing_loss, counts_LE = self.forward_backward()
        lr, grad_norm = self.optimizer_step(lm_loss + balancing_loss)
        for router, counts_E in zip(self.routers, counts_LE):
            bias_E = router.e_score_correction_bias
            bias_E.copy_(load_balancing.update_expert_bias(bias_E, counts_E, config.bias_update_rate))
        step_tokens = config.gradient_accumulation_steps * config.batch_size * config.max_seq_len
        self.tokens += step_tokens
        now = time.perf_counter()
        tokens_per_second, self.timestamp = float(f"{step_tokens / (now - self.timestamp):.5g}"), now
        load = load_statistics(counts_LE)
        return TrainStep(self.step, lm_loss, balancing_loss, lr, grad_norm, self.tokens, tokens_per_second, **load)

    def forward_backward(self) -> tuple[float, float, torch.Tensor]:
        """Accumulates the gradients of a step; returns (lm loss, balancing loss, tokens per expert (L, E)), of all processes."""
        config, group, dtype = self.config, self.group, self.autocast_dtype
        num_passes = config.gradient_accumulation_steps
        lm_loss = balancing_loss = 0.0
        shape_LE = len(self.routers), self.model.config.n_routed_experts
        counts_LE = torch.zeros(shape_LE, dtype=torch.int64, device=group.device)
        batches = [torch.stack([next(self.data) for _ in range(config.batch_size)]) for _ in range(num_passes)]
        batches = [batch_BS.chunk(group.size)[group.rank].to(group.device) for batch_BS in batches]
        probs_LE = self.router_probs(batches) if self.routers and num_passes > 1 and config.balance_weight else None
        for ids_BS in batches:
            all_reduce_mean = group.mean if probs_LE is None else with_values(probs_LE)
            with torch.autocast(group.device.type, dtype, enabled=dtype is not None):
                output = self.forward(ids_BS, labels=ids_BS)
                balancing = output.lm_loss.new_zeros(())
                if self.routers:
                    balancing = load_balancing.load_balancing_loss(
                        output.router_logits, all_reduce_mean=all_reduce_mean
                    )
                loss = output.lm_loss + config.balance_weight * balancing
                if self.routers and config.sequence_balance_weight:
                    within_sequences = load_balancing.sequence_balance_loss(
                        output.router_logits, self.model.config.num_experts_per_tok, len(ids_BS)
                    )
                    loss = loss + config.sequence_balance_weight * within_sequences
            self.scaler.scale(loss / num_passes).backward()
            lm_loss += output.lm_loss.item() / num_passes
            balancing_loss += balancing.item() / num_passes
            for counts_E, indices in zip(counts_LE, output.router_indices):
                counts_E += load_balancing.tokens_per_expert(indices, len(counts_E))
        lm_loss = group.mean(torch.tensor(lm_loss, dtype=torch.float64, device=group.device)).item()
        return lm_loss, balancing_loss, group.sum(counts_LE)

    @torch.no_grad()
    def router_probs(self, batches: list[torch.Tensor]) -> torch.Tensor:
        """P of each router, (layers, experts), over all forward passes of a step and all processes.

        The gradient of the balancing loss of the first pass depends on it, so that it takes a forward pass of its own.
        """
        dtype, probs_LE = self.autocast_dtype, 0
        with torch.random.fork_rng():  # the same dropout again in the passes with gradients
            for ids_BS in batches:
                with torch.autocast(self.group.device.type, dtype, enabled=dtype is not None):
                    logits = self.forward(ids_BS, output_router_logits=True, logits_to_keep=1).router_logits
                probs_LE = probs_LE + torch.stack([load_balancing.mean_router_probs(logits_TE) for logits_TE in logits])
        return self.group.mean(probs_LE / len(batches))

    def optimizer_step(self, loss: float) -> tuple[float, float]:
        """Clips the gradients and moves the weights; returns (learning rate, gradient norm before clipping).

        Raises TrainingError where `loss` or the gradient norm is not finite.
        """
        lr = self.config.learning_rate(self.step)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        grad_norm = distributed.full_tensor(norm).item()
        # In fp16 an infinite gradient alone is an overflow: the scaler skips the step and lowers its scale, down to 1.
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if not math.isfinite(loss + (0 if overflow else grad_norm)):
            raise TrainingError(NOT_FINITE.format(self.step, find_non_finite(self.model) or "the loss"))
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return lr, grad_norm

    def due(self, every: int) -> bool:
        """Whether something done every `every` steps (0: never) and at the end is due after this step."""
        return every > 0 and (self.step % every == 0 or self.step == self.config.max_steps)

    def observe_and_save(self, record: TrainStep, metrics, stop: bool) -> None:
        """Validates, samples and saves where due; adds the results to `record` and to the open file `metrics`.

        Raises TrainingError in place of saving weights that are not finite.
        """
        config = self.config
        save = stop or self.due(config.save_every)
        if save and (name := find_non_finite(self.model)):  # the step itself may have overflowed
            raise TrainingError(NOT_FINITE.format(self.step, name))
        validate, draw_samples = self.texts and self.due(config.eval_every), self.due(config.sample_every)
        if not (save or validate or draw_samples):
            return
        model = self.group.full_model(self.model)
        tensors = state_tensors(self.optimizer) if save else {}
        if not self.group.is_main:
            return
        if validate:
            result = evaluate(model, self.tokenizer, self.texts, config.max_seq_len)
            record.validation = {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte}
            print(json.dumps({"step": self.step, **record.validation}), file=metrics)
        if draw_samples:
            record.samples = sample(model, self.tokenizer, config.seed)
            print(json.dumps({"step": self.step, "samples": record.samples}), file=metrics)
        if self.due(config.save_every):  # not after a stop: a resumed run must record what one without a stop does
            for name, values in routing_records(model, self.tokenizer, config.probe, self.texts).items():
                print(json.dumps({"step": self.step, name: values}), file=metrics)
        if save:
            metrics.flush()
            os.fsync(metrics.fileno())
            record.checkpoint = str(self.save(model, tensors, metrics.tell(), record.validation))

    def save(self, model, tensors: dict[str, torch.Tensor], metrics_bytes: int, validation: dict | None) -> Path:
        """Saves a checkpoint: model and tokenizer, and in training.json and training_state.bin what `load` needs.

        `validation` is what this step's gave, None without one: such a checkpoint is never the best.
        """

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            data = self.data.state_dict()
            save_file({"data.buffer": data.pop("buffer"), **tensors}, folder / "training_state.bin")
            state = dict(step=self.step, tokens=self.tokens, metrics_bytes=metrics_bytes)
            state |= dict(scaler=self.scaler.state_dict(), data=data)
            (folder / "training.json").write_text(json.dumps(state))

        result = {**validation, "texts": texts_id(self.texts)} if validation else None
        return saving.save_checkpoint(self.config.run, self.step, write, self.config.keep_last, result)

    def load(self, folder: Path) -> None:
        """Restores what `save` stored beside the model. Raises DataError where the training data has changed."""
        state = json.loads((folder / "training.json").read_text())
        tensors = load_file(folder / "training_state.bin")
        self.data.load_state_dict({**state["data"], "buffer": tensors.pop("data.buffer")})
        load_state_tensors(self.optimizer, tensors)
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.tokens, self.metrics_bytes = state["step"], state["tokens"], state["metrics_bytes"]


def with_values(values_LE: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that returns each layer's row in turn, with the gradient of the tensor that it gets in its place."""
    rows = iter(values_LE)
    return lambda tensor_E: next(rows) + (tensor_E - tensor_E.detach())


def find_non_finite(model) -> str | None:
    """Names the tensor, weight or gradient, in which NaN or infinity began; None where all are finite.

    A bad weight makes every gradient bad, and a bad gradient those of all the layers below it.
    """
    weights = [(f"weight {name}", parameter) for name, parameter in model.named_parameters()]
    gradients = [(f"gradient of {name}", p.grad) for name, p in model.named_parameters() if p.grad is not None]
    tensors = weights + gradients[::-1]
    return next((name for name, tensor in tensors if not distributed.full_tensor(tensor).isfinite().all()), None)


def state_tensors(optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, gathered where they are sharded."""
    state = optimizer.state_dict()["state"]
    named = ((f"optimizer.{i}.{key}", tensor) for i, values in state.items() for key, tensor in values.items())
    return {name: distributed.full_tensor(tensor) for name, tensor in named}


def load_state_tensors(optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Restores the optimizer's state from `state_tensors`, sharded as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict] = {}
    for name, tensor in tensors.items():
        _, index, key = name.split(".")
        values.setdefault(int(index), {})[key] = distributed.shard_like(tensor, parameters[int(index)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
