"""Speed and memory beside stock transformers and llama.cpp, in one run: `python -m deepseek.bench`.

The same random weights and the same prompts for every engine. Engines take turns round by round, so a machine that slows
down slows all of them; what counts is the ratio within a round. Every engine runs in every precision of equal quality, and
is reported in the one in which it is fastest on this machine. 8-bit weights are rows of their own.
"""

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from transformers import DeepseekV3ForCausalLM as StockForCausalLM
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from deepseek.inference import int8_prefill
from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.engine import Request, decode_step
from deepseek.inference.fast_generate import DeepseekV3ForCausalLM as FastForCausalLM
from deepseek.inference.sampling import SamplingParams
from deepseek.model.config import PRESETS, preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache
from deepseek.train import keep_freed_memory

ROOT = Path(__file__).parents[1]
MODELS = {"ours": FastForCausalLM, "stock": StockForCausalLM}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # equal quality: tests/measure/precision.py
LLAMA_CPP_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0"}
CONTEXTS = (64, 1024, 2048)  # tokens before the decoded ones, or as many as the model reads
PREFILL = 512  # tokens
NEW_TOKENS = 24  # decoded in one timed go
BATCH_SIZES = 8, 32  # of batched decoding
PROMPTS = 64, 512  # tokens before a first token
TRAIN_BATCH, TRAIN_SEQ_LEN = 8, 256
PROCESS = "process to first token, s", "memory, MiB"
LOWER_IS_BETTER = *PROCESS, *(f"first token after {length}, ms" for length in PROMPTS)
TOKENIZER = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)), bos_token_id=None)  # the models have none

Work = dict[tuple[str, str], Callable[[], float]]  # (engine, precision) -> measures a figure once
Rates = dict[tuple[str, str], list[float]]  # (engine, precision) -> a figure a round


class Engine:
    """One of MODELS in a precision; ours with the decode model that the app uses, where it supports the checkpoint."""

    def __init__(self, name: str, precision: str, folder):
        self.name, self.decode_model = name, None
        self.model = MODELS[name].from_pretrained(folder, dtype=DTYPES.get(precision, torch.bfloat16)).eval()
        if name == "ours" and supports(self.model):
            self.decode_model = DecodeModel(self.model, "int8" if precision == "int8" else "model")
        if precision == "int8" and int8_prefill.supports(self.model):
            int8_prefill.quantize(self.model)

    @torch.inference_mode()
    def prefill(self, ids_RS, new_tokens: int = 0):
        """(most likely next tokens, cache) of R prompts; the cache has capacity for `new_tokens` more.

        The decode model takes a cache for each prompt, a list of them.
        """
        if self.decode_model and len(ids_RS) > 1:
            tokens, caches = zip(*(self.prefill(ids_1S, new_tokens) for ids_1S in ids_RS.split(1)))
            return sum(tokens, []), sum(caches, [])
        capacity = ids_RS.shape[1] + new_tokens
        cache = MLACache(self.model.config, capacity) if self.name == "ours" else DynamicCache()
        logits = self.model(ids_RS, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1).tolist(), [cache] if self.decode_model else cache

    @torch.inference_mode()
    def decode(self, tokens: list[int], cache) -> list[int]:
        """The most likely next token after each of `tokens`."""
        if self.decode_model:
            return self.decode_model(tokens, cache)[0].argmax(-1).tolist()
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        return self.model(ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1).tolist()


def seconds(work: Callable) -> float:
    """How long one call of `work` takes."""
    gc.collect()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(work: Work, rounds: int) -> Rates:
    """Calls every function once a round; the first round warms up and does not count."""
    values = [{label: measure() for label, measure in work.items()} for _ in range(rounds + 1)]
    return {label: [values_of_round[label] for values_of_round in values[1:]] for label in work}


def random_prompts(model, length: int, num_prompts: int = 1) -> torch.Tensor:
    """The same ids for every engine, (num_prompts, length)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, model.config.vocab_size, (num_prompts, length), generator=generator).to(model.device)


def decode_rate(engine: Engine, context: int, batch_size: int = 1) -> float:
    """Tokens a second after `context` tokens, of all requests of a batch."""
    tokens, cache = engine.prefill(random_prompts(engine.model, context, batch_size), NEW_TOKENS + 1)
    tokens = engine.decode(tokens, cache)

    def work():
        nonlocal tokens
        for _ in range(NEW_TOKENS):
            tokens = engine.decode(tokens, cache)

    return batch_size * NEW_TOKENS / seconds(work)


def generate_rate(engine: Engine, context: int) -> float:
    """Tokens a second of transformers' `generate`, greedy, with the prompt's prefill."""
    ids_1S = random_prompts(engine.model, context)
    options = dict(attention_mask=torch.ones_like(ids_1S), do_sample=False, pad_token_id=0)
    generate = partial(engine.model.generate, ids_1S, **options, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
    return NEW_TOKENS / seconds(generate)


def prefill_rate(engine: Engine) -> float:
    """Tokens a second of a prompt of PREFILL tokens."""
    return PREFILL / (first_token_time(engine, PREFILL) / 1e3)


def first_token_time(engine: Engine, length: int) -> float:
    """Milliseconds from a prompt of `length` tokens to the token after it."""
    ids = random_prompts(engine.model, length)
    return 1e3 * seconds(lambda: engine.prefill(ids))


def traced_rate(engine: Engine, batch_size: int, record: bool = True) -> float:
    """Sampled tokens a second of `batch_size` requests decoded together, traced where `record` is true."""
    settings = dict(temperature=0.8, top_k=50, top_p=0.95, max_new_tokens=60)
    requests = [
        Request(engine.model, TOKENIZER, [5, 6, 7], SamplingParams(seed=seed, **settings), record=record)
        for seed in range(batch_size)
    ]
    decode_step(requests, engine.decode_model)

    def work():
        for _ in range(NEW_TOKENS):
            decode_step(requests, engine.decode_model)

    return batch_size * NEW_TOKENS / seconds(work)


def decoding(folder, contexts: list[int], precisions: list[str]) -> Iterator[tuple[str, Work]]:
    """Yields (figure, work) of decoding and prefill in every precision of equal quality, and of 8-bit decoding.

    Then, beside plain decoding of one request, of decoding without traces and of a batch.
    """
    equal = [precision for precision in precisions if precision in DTYPES]
    engines = {(name, precision): Engine(name, precision, folder) for precision in equal for name in MODELS}
    for context in contexts:
        yield f"decode, {context} context", {key: partial(decode_rate, e, context) for key, e in engines.items()}
    for batch_size in BATCH_SIZES:
        label = f"decode, batch {batch_size}, {contexts[0]} context"
        yield label, {key: partial(decode_rate, e, contexts[0], batch_size) for key, e in engines.items()}
    yield (
        f".generate, {contexts[0]} context",
        {key: partial(generate_rate, e, contexts[0]) for key, e in engines.items()},
    )
    yield f"prefill, {PREFILL} tokens", {key: partial(prefill_rate, e) for key, e in engines.items()}
    for length, figure in zip(PROMPTS, LOWER_IS_BETTER[2:]):
        yield figure, {key: partial(first_token_time, e, length) for key, e in engines.items()}
    if "int8" in precisions:
        key = ("ours", "int8")
        engines[key] = Engine(*key, folder)
        for context in contexts:
            yield f"decode, {context} context, 8-bit weights", {key: partial(decode_rate, engines[key], context)}
        others = {label: e for label, e in engines.items() if label[0] != "ours" or label == key}
        yield (
            f"prefill, {PREFILL} tokens, 8-bit weights",
            {label: partial(prefill_rate, e) for label, e in others.items()},
        )
    for precision in precisions:
        rate = partial(traced_rate, engines["ours", precision])
        untraced, batch = partial(rate, 1, record=False), partial(rate, BATCH_SIZES[0])
        yield f"traced decode, {precision}", {("ours", precision): partial(rate, 1), ("untraced", precision): untraced}
        label = f"traced decode, batch {BATCH_SIZES[0]}, {precision}"
        yield label, {("ours", precision): batch, ("batch 1", precision): partial(rate, 1)}


def train_step_rate(model, autocast_dtype: torch.dtype | None) -> float:
    """Tokens a second of forward, backward and AdamW."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    shape = TRAIN_BATCH, TRAIN_SEQ_LEN
    ids_BS = torch.randint(1, model.config.vocab_size, shape, generator=generator).to(device)

    def work():
        with torch.autocast(device, autocast_dtype, enabled=autocast_dtype is not None):
            loss = model(ids_BS, labels=ids_BS).loss
        loss.backward()
        optimizer.step()

    rate = ids_BS.numel() / seconds(work)
    model.zero_grad(set_to_none=True)
    return rate


def training(name: str) -> Work:
    """Training steps in fp32 and under bf16 autocast, of ours, and of stock with every implementation of its experts."""
    config = preset(name)
    models = {("ours", ""): DeepseekV3ForCausalLM(config)}
    for way in ("eager", "batched_mm", "grouped_mm"):
        models["stock", f" {way}"] = StockForCausalLM._from_config(config, experts_implementation=way)
    return {
        (engine, precision + way): partial(train_step_rate, model, dtype)
        for (engine, way), model in models.items()
        for precision, dtype in (("fp32", None), ("bf16 autocast", torch.bfloat16))
    }


def first_token(folder, precisions: list[str], threads: int, rounds: int) -> dict[str, Rates]:
    """{figure: values}: seconds from the start of a process to its first token, and its peak memory."""
    times, memory = defaultdict(list), defaultdict(list)
    for _, precision, name in product(range(rounds), precisions, MODELS):
        child = ["--child", name, precision, str(folder), "--threads", str(threads)]
        start = time.perf_counter()
        printed = subprocess.check_output([sys.executable, "-m", "deepseek.bench", *child], cwd=ROOT, text=True)
        times[name, precision].append(time.perf_counter() - start)
        memory[name, precision].append(int(printed.split()[-1]) / 1024)
    return dict(zip(PROCESS, (times, memory)))


def run_child(name: str, precision: str, folder: str) -> None:
    """The process that `first_token` measures: opens the model, decodes a token, prints its peak memory in KiB."""
    engine = Engine(name, precision, folder)
    engine.decode(*engine.prefill(torch.tensor([[5, 6, 7]]), 1))
    # getrusage counts what the parent had, too.
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def add_llama_cpp(figures: dict[str, Rates], folder, contexts, precisions, python: str, threads: int, rounds: int):
    """Adds llama.cpp's rates to `figures`: tests/llama_cpp_peer.py, run with `python`, which has llama_cpp and gguf."""
    for _, precision in product(range(rounds), precisions):
        llama_cpp_type = LLAMA_CPP_TYPES[precision]
        command = [python, ROOT / "tests/llama_cpp_peer.py", folder, "--type", llama_cpp_type]
        command += ["--threads", str(threads), "--new", str(NEW_TOKENS), "--contexts", *map(str, contexts)]
        answer = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        rates = {f"decode, {context} context": answer[f"decode_{context}"] for context in contexts}
        rates[f"prefill, {PREFILL} tokens"] = answer["prefill_512"]
        for figure, rate in rates.items():
            figure += ", 8-bit weights" if precision == "int8" else ""
            if figure in figures:
                figures[figure].setdefault(("llama.cpp", llama_cpp_type), []).append(rate)


def row(setting: str, figure: str, rates: Rates) -> dict:
    """A line of the table: every engine in its fastest precision, and the median over the rounds of ours to each other's."""
    best = min if figure in LOWER_IS_BETTER else max
    line, fastest = {"setting": setting, "figure": figure}, {}
    for engine in dict.fromkeys(engine for engine, _ in rates):
        label = best((label for label in rates if label[0] == engine), key=lambda label: median(rates[label]))
        fastest[engine] = values = rates[label]
        line[engine] = {"precision": label[1], "median": round(median(values), 2), "best": round(best(values), 2)}
    ours = fastest.pop("ours")
    for engine, values in fastest.items():
        line[f"ours / {engine}"] = round(median(a / b for a, b in zip(ours, values)), 3)
    return line


def cpu_name() -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show(line: dict, as_json: bool) -> None:
    """Prints a line of JSON, or of the table."""
    if as_json or "figure" not in line:
        print(json.dumps(line), flush=True)
        return
    cells = []
    for name, value in list(line.items())[2:]:
        is_ratio = isinstance(value, float)
        cells.append(f"{name} {value:.2f}" if is_ratio else f"{name} {value['median']:g} ({value['precision']})")
    print(f"{line['setting']:<6} {line['figure']:<40} {', '.join(cells)}", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="python -m deepseek.bench", description=__doc__.split(":")[0])
    parser.add_argument("--presets", nargs="+", default=["seed", "demo"], choices=list(PRESETS))
    parser.add_argument("--precisions", nargs="+", default=list(LLAMA_CPP_TYPES), choices=list(LLAMA_CPP_TYPES))
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that warms up (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="a Python that has llama_cpp and gguf: adds llama.cpp")
    parser.add_argument("--skip", nargs="*", default=[], choices=["decoding", "training", "process"])
    parser.add_argument("--json", action="store_true", help="a line of JSON for each figure in place of the table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    if args.child:
        return run_child(*args.child)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    show({"machine": machine, "threads": args.threads, "torch": torch.__version__}, args.json)
    half = max(1, args.rounds // 2)
    for name in args.presets:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            DeepseekV3ForCausalLM(preset(name)).save_pretrained(folder)
            figures: dict[str, Rates] = {}
            if "decoding" not in args.skip:
                reach = preset(name).max_position_embeddings - NEW_TOKENS - 2
                contexts = sorted({min(context, reach) for context in CONTEXTS})
                for figure, work in decoding(folder, contexts, args.precisions):
                    figures[figure] = in_turns(work, args.rounds)
                if args.llama_cpp:
                    add_llama_cpp(figures, folder, contexts, args.precisions, args.llama_cpp, args.threads, args.rounds)
            if "process" not in args.skip:
                equal = [precision for precision in args.precisions if precision in DTYPES]
                figures |= first_token(folder, equal, args.threads, half)
        if "training" not in args.skip:
            figures[f"training, {TRAIN_BATCH} x {TRAIN_SEQ_LEN}"] = in_turns(training(name), half)
        for figure, rates in figures.items():
            show(row(name, figure, rates), args.json)


if __name__ == "__main__":
    main()
