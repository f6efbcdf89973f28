"""Speed and memory beside stock transformers, in one run: `python -m deepseek.bench`.

The same random weights and the same prompts for every engine, which take turns round by round; a machine that slows down
meanwhile slows all of them. What counts is the ratio within a round; absolute figures belong to the machine they were
taken on. Engines: ours, transformers' own DeepseekV3ForCausalLM, and with --llama-cpp also llama.cpp.
"""

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import DeepseekV3ForCausalLM as Stock
from transformers import DynamicCache

from deepseek.inference.decode_model import DecodeModel, supports
from deepseek.inference.engine import Request, decode_step
from deepseek.inference.sampling import SamplingParams
from deepseek.model.config import preset
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM
from deepseek.model.mla_cache import MLACache
from deepseek.train import keep_freed_memory

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}  # of what is not a weight in int8
CONTEXTS = (64, 1024, 2048)  # or as far as the model reaches
PREFILL, TRAIN = 512, (8, 256)  # tokens; sequences x tokens
NEW = 24  # tokens decoded in one go
TOGETHER = 8  # texts in one batched step
EXPERTS = ("eager", "batched_mm", "grouped_mm")  # stock's ways through its experts
PEER = Path(__file__).parents[1] / "tests" / "llama_cpp_peer.py"
# What a process took at the highest, in KiB. (getrusage counts what its parent had, too.)
PEAK = """
from pathlib import Path
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
ANY_FIRST_TOKEN = """
import sys, torch
from deepseek import bench
torch.set_num_threads(int(sys.argv[2]))
engine = getattr(bench, sys.argv[4])(sys.argv[1], sys.argv[3])
engine.next(5, engine.read(torch.tensor([[5, 6, 7]]), 1))
"""
FIRST_TOKEN = """
import sys, torch
from deepseek import SamplingParams, load, stream
torch.set_num_threads(int(sys.argv[2]))
next(stream(*load(sys.argv[1]), "Once upon a time", SamplingParams(seed=0)))
"""
STOCK_FIRST_TOKEN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[2]))
from deepseek.checkpoint import preferred_dtype
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=preferred_dtype())
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model.generate(**tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False), max_new_tokens=1)
"""


class Ours:
    """Our model with the decoder that the app uses, or with its own forward where that cannot be."""

    name = "ours"

    def __init__(self, folder, precision: str):
        self.model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=PRECISIONS[precision]).eval()
        self.decoder = (
            DecodeModel(self.model, precision if precision == "int8" else "model") if supports(self.model) else None
        )

    @torch.inference_mode()
    def read(self, ids_1S, room: int = 0):
        cache = MLACache(self.model.config, ids_1S.shape[1] + room)
        self.model(ids_1S, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    @torch.inference_mode()
    def next(self, token: int, cache) -> int:
        if self.decoder:
            return int(self.decoder([token], [cache])[0].argmax())
        ids = torch.tensor([[token]], device=self.model.device)
        return int(self.model(ids, past_key_values=cache, use_cache=True).logits[0, -1].argmax())


class Theirs(Ours):
    """Stock transformers; it has no int8 of its own, so there it runs in bf16."""

    name = "stock"

    def __init__(self, folder, precision: str):
        self.model = Stock.from_pretrained(folder, dtype=PRECISIONS[precision]).eval()
        self.decoder = None

    @torch.inference_mode()
    def read(self, ids_1S, room: int = 0):
        cache = DynamicCache()
        self.model(ids_1S, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache


def seconds(work: Callable) -> float:
    """How long `work` takes, once."""
    gc.collect()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def prompt(model, length: int) -> torch.Tensor:
    """The same ids for every engine, (1, length)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, model.config.vocab_size, (1, length), generator=generator).to(model.device)


def decode_rate(engine, context: int) -> float:
    """Tokens a second after `context` tokens."""
    cache = engine.read(prompt(engine.model, context), NEW + 2)
    token = engine.next(5, engine_cache := cache)

    def work():
        nonlocal token
        for _ in range(NEW):
            token = engine.next(token, engine_cache)

    return NEW / seconds(work)


def prefill_rate(engine) -> float:
    """Tokens a second of reading a prompt."""
    ids = prompt(engine.model, PREFILL)
    return PREFILL / seconds(lambda: engine.read(ids))


def decoding(folder, contexts: list[int], precision: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """{figure: {engine: a rate each round}} of decoding and prefill."""
    engines, found = [Ours(folder, precision), Theirs(folder, precision)], {}
    work = {f"decode, {n} context": (lambda e, n=n: decode_rate(e, n)) for n in contexts}
    if precision != "int8":  # a prompt is read by the model's own forward, whatever the decoder's weights
        work["prefill 512"] = prefill_rate
    for figure, rate in work.items():
        for number in range(rounds + 1):
            for engine in engines:
                value = rate(engine)
                if number:  # the first round warms up
                    found.setdefault(figure, {}).setdefault(engine.name, []).append(value)
    return found


def traced(folder, precision: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Decoding with everything recorded beside without, and TOGETHER texts in one step beside one."""
    ours, found = Ours(folder, precision), {}

    def rate(texts: int, record: bool) -> float:
        params = [
            SamplingParams(seed=seed, temperature=0.8, top_k=50, top_p=0.95, max_new_tokens=60) for seed in range(texts)
        ]
        made = [Request(ours.model, Numbers(), [5, 6, 7], one, record=record) for one in params]
        decode_step(made, ours.decoder)

        def work():
            for _ in range(NEW):
                decode_step(made, ours.decoder)

        return texts * NEW / seconds(work)

    for number in range(rounds + 1):
        values = {
            "recorded": {"ours": rate(1, True), "unrecorded": rate(1, False)},
            f"{TOGETHER} texts": {"ours": rate(TOGETHER, True), "one text": rate(1, True)},
        }
        for figure, pair in values.items() if number else ():
            for name, value in pair.items():
                found.setdefault(figure, {}).setdefault(name, []).append(value)
    return found


class Numbers:
    """A tokenizer for models without one: each id is its own text."""

    bos_token_id = eos_token_id = 0

    def decode(self, ids, **_):
        """The ids in words."""
        return " ".join(map(str, ids))


def training(name: str, cast: torch.dtype | None, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Tokens a second of a training step, forward, backward and AdamW; stock by the fastest of its ways."""
    config = preset(name)
    models = {"ours": DeepseekV3ForCausalLM(config)}
    for way in EXPERTS:
        models[f"stock {way}"] = Stock._from_config(config, experts_implementation=way)
    batch, length = TRAIN
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, config.vocab_size, (batch, length), generator=generator)
    rates: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for label, model in models.items():
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model.to(device).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

            def work(model=model, optimizer=optimizer, device=device):
                with torch.autocast(device, cast, enabled=cast is not None):
                    loss = model(ids.to(device), labels=ids.to(device)).loss
                loss.backward()
                optimizer.step()

            value = batch * length / seconds(work)
            model.zero_grad(set_to_none=True)
            if number:
                rates.setdefault(label, []).append(value)
    best = max((label for label in rates if label != "ours"), key=lambda label: median(rates[label]))
    return {f"training 8 x 256 ({best})": {"ours": rates["ours"], "stock": rates[best]}}


def whole_process(programs: dict[str, list], rounds: int) -> dict[str, dict[str, list[float]]]:
    """From the start of a process to its first token, in seconds, and the most memory it took, in MiB.

    `programs` are each engine's Python and its arguments. Raises RuntimeError where a process fails.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, (code, *arguments) in programs.items():
            command = [sys.executable, "-c", code + PEAK, *map(str, arguments)]
            began = time.perf_counter()
            ended = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
            if ended.returncode:
                raise RuntimeError(f"{name} ended with status {ended.returncode}.")
            peak = int(ended.stdout.split()[-1]) / 1024
            values = {"to the first token, s": time.perf_counter() - began, "memory, MiB": peak}
            for figure, value in values.items():
                found.setdefault(figure, {}).setdefault(name, []).append(value)
    return found


def llama_cpp(folder, contexts: list[int], precision: str, python: str, threads: int, rounds: int):
    """{figure: a rate each round} of llama.cpp, by tests/llama_cpp_peer.py run with `python`, which has llama_cpp and gguf."""
    kind = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0"}[precision]
    names = {"prefill_512": "prefill 512", **{f"decode_{n}": f"decode, {n} context" for n in contexts}}
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        command = [python, PEER, folder, "--type", kind, "--threads", str(threads), "--new", str(NEW)]
        command += ["--contexts", *map(str, contexts)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        answer = json.loads(output.splitlines()[-1])
        for key, figure in names.items():
            found.setdefault(figure, []).append(answer[key])
    return found


def row(title: str, figure: str, values: dict[str, list[float]]) -> dict:
    """A line of the table: best and median of every engine, and the ratios of ours to the others, median of the rounds."""
    ours, smaller = values["ours"], figure.startswith(("to the", "memory"))
    line = {"setting": title, "figure": figure}
    for name, rates in values.items():
        line[name] = {"best": round((min if smaller else max)(rates), 2), "median": round(median(rates), 2)}
        if name != "ours":
            line[f"ours / {name}"] = round(median(a / b for a, b in zip(ours, rates)), 3)
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--presets", nargs="+", default=["seed", "demo"], choices=["seed", "demo", "quick", "tiny"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that warms up (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="a Python that has llama_cpp and gguf: adds llama.cpp")
    parser.add_argument("--skip", nargs="*", default=[], choices=["decoding", "training", "process"])
    parser.add_argument("--json", action="store_true", help="a line of JSON for each figure in place of the table")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    say(
        args.json,
        {"machine": kind, "threads": args.threads, "torch": torch.__version__, "python": platform.python_version()},
    )

    def show(title, figures):
        for figure, values in figures.items():
            say(args.json, row(title, figure, values))

    for name in args.presets:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            DeepseekV3ForCausalLM(preset(name)).save_pretrained(folder)
            for precision in args.precisions if "decoding" not in args.skip else ():
                contexts = sorted({min(n, preset(name).max_position_embeddings - NEW - 2) for n in CONTEXTS})
                figures = decoding(folder, contexts, precision, args.rounds)
                if args.llama_cpp:
                    peer = llama_cpp(folder, contexts, precision, args.llama_cpp, args.threads, args.rounds)
                    for figure, rates in peer.items():
                        if figure in figures:
                            figures[figure]["llama.cpp"] = rates
                show(f"{name}, {precision}", figures | traced(folder, precision, args.rounds))
            for precision in args.precisions if "process" not in args.skip else ():
                first = [ANY_FIRST_TOKEN, folder, args.threads, precision]
                programs = {"ours": [*first, "Ours"], "stock": [*first, "Theirs"]}
                show(f"{name}, {precision}", whole_process(programs, max(1, args.rounds // 2)))
        if "training" not in args.skip:
            for cast, label in ((None, "fp32"), (torch.bfloat16, "bf16 autocast")):
                show(f"{name}, {label}", training(name, cast, max(1, args.rounds // 2)))
    if "process" not in args.skip:
        demo = [Path(__file__).parents[1] / "assets" / "demo", args.threads]
        programs = {"ours": [FIRST_TOKEN, *demo], "stock": [STOCK_FIRST_TOKEN, *demo]}
        show("assets/demo", whole_process(programs, args.rounds))


def processor() -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def say(as_json: bool, line: dict) -> None:
    """Prints a line of JSON, or of the table."""
    if as_json or "figure" not in line:
        print(json.dumps(line), flush=True)
        return
    engines = {name: value for name, value in line.items() if isinstance(value, dict)}
    ratios = [f"{name} {value:.2f}" for name, value in line.items() if name.startswith("ours /")]
    cells = [f"{name} {value['median']:g} (best {value['best']:g})" for name, value in engines.items()]
    print(f"{line['setting']:<22} {line['figure']:<34} {', '.join(cells)}; {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
