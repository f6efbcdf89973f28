"""Correctness, speed and memory on a GPU, beside stock transformers: `python tests/measure/gpu.py [--device cuda] [--small]`.

Prints a line of JSON for each figure, the card's name first. Every engine in bf16 and at its own best: ours eager and compiled,
stock with a dynamic cache and with a static one, which `generate` compiles. `--small --device cpu` tries the script out on a
processor.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import DeepseekV3ForCausalLM as StockForCausalLM

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek.bench import cpu_name, random_prompts, seconds
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

NEW_TOKENS, CONTEXT, PREFILL, TRAIN_SEQ_LEN = 64, 64, 512, 512
WAYS = "eager", "batched_mm", "grouped_mm"  # of stock's experts


def show(figure: str, **values) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


def compare(figure: str, works: dict[str, Callable], amount: int, rounds: int) -> None:
    """Shows the median rate of each, for calls of `amount` in turns after a warm-up, and our best to the best of stock."""
    times = {name: [] for name in works}
    for counted in range(rounds + 1):
        for name, work in works.items():
            try:
                spent = seconds(work)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                times.pop(name, None)
                show(figure, engine=name, error=str(error)[:200])
                continue
            times[name] += [spent] if counted else []
        works = {name: work for name, work in works.items() if name in times}
    rates = {name: round(amount / median(values), 1) for name, values in times.items()}
    ours, stock = ([rate for name, rate in rates.items() if name.startswith(kind)] for kind in ("ours", "stock"))
    show(figure, **rates, ratio=round(max(ours) / max(stock), 2) if ours and stock else None)


def check_parity(device: str, folder: str, model_preset: str) -> None:
    """Largest differences of logits, loss and gradients from stock's, and greedy tokens in fp32."""
    for dtype in (torch.float32, torch.bfloat16):
        ours, stock = (
            kind.from_pretrained(folder, dtype=dtype).to(device) for kind in (DeepseekV3ForCausalLM, StockForCausalLM)
        )
        ids_BS = random_prompts(ours, 256, 2)
        with torch.inference_mode():
            logits, expected = ours.eval()(ids_BS).logits.float(), stock.eval()(ids_BS).logits.float()
        values = dict(logits=(logits - expected).abs().max().item(), of=expected.abs().max().item())
        if dtype == torch.float32:
            losses = [model(ids_BS, labels=ids_BS) for model in (ours, stock)]
            values["loss"] = abs(losses[0].lm_loss.item() - losses[1].loss.item())
            for loss in (losses[0].lm_loss, losses[1].loss):
                loss.backward()
            names = dict(stock.named_parameters())
            values["gradients"] = max(
                (parameter.grad - names[name].grad).abs().max().item()
                for name, parameter in ours.named_parameters()
                if parameter.grad is not None and names[name].grad is not None
            )
            options = dict(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=None)
            prompts = random_prompts(ours, 16, 8)
            tokens = [
                model.generate(prompts, attention_mask=torch.ones_like(prompts), **options) for model in (ours, stock)
            ]
            values["greedy tokens that differ"] = int((tokens[0] != tokens[1]).sum())
        show(f"parity, {model_preset}, {dtype}", **{name: float(f"{value:.3g}") for name, value in values.items()})


def generation(device: str, folder: str, batches: list[int], rounds: int) -> None:
    """Decoding by `generate` and prefill, in bf16."""
    ours = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    compiled = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    compiled.forward = torch.compile(compiled.forward, dynamic=True)
    stock = {
        way: StockForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation=way) for way in WAYS
    }
    stock = {way: model.to(device).eval() for way, model in stock.items()}
    for batch_size in batches:
        prompts = random_prompts(ours, CONTEXT, batch_size)
        options = dict(attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0, eos_token_id=None)
        options |= dict(min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
        works = {"ours, eager": partial(ours.generate, prompts, **options)}
        works["ours, compiled"] = partial(compiled.generate, prompts, **options)
        for way, model in stock.items():
            works[f"stock, {way}"] = partial(model.generate, prompts, **options)
            works[f"stock, {way}, static cache"] = partial(
                model.generate, prompts, cache_implementation="static", **options
            )
        compare(f"decode, batch {batch_size}, tokens/s", works, batch_size * NEW_TOKENS, rounds)
        prompts = random_prompts(ours, PREFILL, batch_size)
        models = {"ours, eager": ours, "ours, compiled": compiled} | {
            f"stock, {way}": model for way, model in stock.items()
        }
        with torch.inference_mode():
            works = {name: partial(model, prompts, logits_to_keep=1) for name, model in models.items()}
            compare(f"prefill, batch {batch_size}, tokens/s", works, prompts.numel(), rounds)


def training(device: str, model_preset: str, batch_size: int, rounds: int) -> None:
    """Steps under bf16 autocast with AdamW, and their peak memory."""
    config = preset(model_preset)
    makers = {"ours": partial(DeepseekV3ForCausalLM, config)}
    makers |= {
        f"stock, {way}": partial(StockForCausalLM._from_config, config, experts_implementation=way) for way in WAYS
    }
    works, memory = {}, {}
    for name, make in makers.items():
        model = make().to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        ids_BS = random_prompts(model, TRAIN_SEQ_LEN, batch_size)

        def step(model=model, optimizer=optimizer, ids_BS=ids_BS):
            with torch.autocast(device, torch.bfloat16):
                loss = model(ids_BS, labels=ids_BS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if device == "cuda":
            step()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            memory[name] = round((torch.cuda.max_memory_allocated() - held) / 2**20)
        works[name] = step
    compare(f"training, {batch_size} x {TRAIN_SEQ_LEN}, tokens/s", works, batch_size * TRAIN_SEQ_LEN, rounds)
    show("peak memory of a step beside weights and optimizer, MiB", **memory)


def run(figure: str, command: list[str], **environment) -> None:
    """Runs a command and shows whether it went well, and its last line."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    show(figure, ok=done.returncode == 0, last=lines[-1][:200] if lines else "")


def check_zerogpu(device: str, folder: str) -> None:
    """The path of a ZeroGPU Space, in this process, and where its model lies."""
    from deepseek.inference.sampling import SamplingParams
    from deepseek.ui.server import zerogpu

    tokens = list(
        zerogpu.stream_batch(folder, "Once upon a time", [SamplingParams(max_new_tokens=8, seed=0)], {}, [], [])
    )
    model, _ = zerogpu._models.get(folder)
    show("ZeroGPU path", tokens=len(tokens), device=str(model.device), ok=model.device.type == device)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="a tiny model and one round, to try the script out")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch._dynamo.config.recompile_limit = 64  # for each layer, and each length at which a graph breaks
    size, batches, train_batch, rounds = ("tiny", [1, 2], 1, 1) if args.small else ("seed", [1, 8, 64], 16, 5)
    name = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    show("machine", name=name, torch=torch.__version__, preset=size)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        DeepseekV3ForCausalLM(preset(size, max_position_embeddings=1024)).save_pretrained(folder)
        check_parity(args.device, folder, size)
        check_parity(args.device, str(ROOT / "assets" / "demo"), "demo")
        check_zerogpu(args.device, str(ROOT / "assets" / "demo"))
        tests = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-o",
            "addopts=--import-mode=importlib",
            "-p",
            "on_device",
            "tests/model",
        ]
        run("tests/model", tests, TEST_DEVICE=args.device)
        train = ["--root", folder, "--preset", "tiny", "--max-steps", "3", "--sample-every", "0", "--eval-every", "0"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"]
        run("FSDP on one process", [*torchrun, "deepseek.train", "--shard", "--name", "sharded", *train])
        generation(args.device, folder, batches, rounds)
        training(args.device, size, train_batch, rounds)


if __name__ == "__main__":
    main()
