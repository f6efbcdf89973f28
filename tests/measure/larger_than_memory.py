"""A mixture of experts twice as large as memory, beside the same one in memory: `python tests/measure/larger_than_memory.py`.

Random weights of OLMoE's shape (64 experts, top 8, 2,048 wide), as many layers as asked for. Each case runs in a process of
its own; the limited one in a control group in which the kernel counts and limits all memory, file pages included (root only).
Prints as JSON: seconds to open, peak memory in the group, the trace of 100 tokens beside reading the files once, tokens/s and
the share of expert reads that memory served.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
GROUPS = Path("/sys/fs/cgroup")
PROMPT_TOKENS, NEW_TOKENS = 100, 24


def make(folder: Path, layers: int) -> None:
    """Writes the checkpoint, a file for each layer, with the demo's tokenizer."""
    import transformers
    from safetensors.torch import save_file

    config = transformers.OlmoeConfig(
        num_hidden_layers=layers, intermediate_size=1024, dtype="bfloat16", eos_token_id=None
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    names = {}
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if ".experts." not in name:
            names[name] = shape
            continue
        half = (shape[1] // 2, shape[2])
        parts = {"gate_proj": half, "up_proj": half} if "gate_up" in name else {"down_proj": tuple(shape[1:])}
        stem = name.rpartition(".")[0]
        names |= {f"{stem}.{e}.{part}.weight": size for e in range(shape[0]) for part, size in parts.items()}
    for layer in [*range(layers), None]:
        prefix = f"model.layers.{layer}."
        chosen = {
            n: s for n, s in names.items() if (n.startswith(prefix) if layer is not None else ".layers." not in n)
        }
        tensors = {n: (torch.ones(s) if "norm" in n else torch.randn(s) * 0.02).bfloat16() for n, s in chosen.items()}
        save_file(tensors, folder / f"model-{layer}.safetensors", metadata={"format": "pt"})
    files = {n: f"model-{n.split('.')[2] if '.layers.' in n else None}.safetensors" for n in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    config.architectures = ["OlmoeForCausalLM"]
    config.save_pretrained(folder)
    for file in (ROOT / "assets" / "demo").glob("tokenizer*"):
        shutil.copy(file, folder)


def measure(folder: str, max_memory: str) -> dict:
    """Opens, traces and streams, in this process."""
    import deepseek

    start = time.perf_counter()
    model, tokenizer = deepseek.load(folder, torch.bfloat16, max_memory=max_memory or None)
    figures = {"seconds to open": round(time.perf_counter() - start, 1), "computes in": str(model.dtype)}
    ids = list(range(300, 300 + PROMPT_TOKENS))
    start = time.perf_counter()
    deepseek.trace(model, tokenizer, ids)
    figures["seconds to trace 100 tokens"] = round(time.perf_counter() - start, 2)
    if model.expert_cache:
        model.expert_cache.num_reads = model.expert_cache.num_hits = 0
    params, times = deepseek.SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS), []
    for _ in deepseek.stream(model, tokenizer, ids[:8], params):
        times.append(time.perf_counter())
    figures["tokens/s"] = round((len(times) - 1) / (times[-1] - times[0]), 2)
    if cache := model.expert_cache:
        figures["expert reads served from memory"] = round(cache.num_hits / cache.num_reads, 3)
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {
        key: int(value.split()[0]) / 2**20 for key, _, value in (line.partition(":") for line in lines) if "kB" in value
    }
    figures["peak resident GiB"], figures["anonymous GiB"] = round(status["VmHWM"], 2), round(status["RssAnon"], 2)
    return figures


@contextmanager
def control_group(limit: int):
    """A group whose processes the kernel holds to `limit` bytes; yields (its folder, the name of its peak's file)."""
    unified = not (GROUPS / "memory").is_dir()
    group = (GROUPS if unified else GROUPS / "memory") / f"larger-than-memory-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(limit))
        yield group, "memory.peak" if unified else "memory.max_usage_in_bytes"
    finally:
        time.sleep(1)
        group.rmdir()


def run(folder: Path, max_memory: str = "", group: Path | None = None) -> dict:
    command = [sys.executable, __file__, "--measure", str(folder), "--max-memory", max_memory]
    if group:  # the shell joins the group, then becomes the process
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command]
    return json.loads(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).splitlines()[-1])


def drop_pages(folder: Path) -> None:
    """Lets the system forget what it has read of the files."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_seconds(folder: Path) -> float:
    """Seconds to read all files once from the disk."""
    drop_pages(folder)
    start = time.perf_counter()
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as reader:
            buffer = bytearray(2**23)
            while reader.readinto(buffer):
                pass
    seconds = time.perf_counter() - start
    drop_pages(folder)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--layers", type=int, default=3, help="of the model; 0.8 GiB each (3)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="a disk with room for the model"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--max-memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(args.measure, args.max_memory)))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        make(folder, args.layers)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        limit = size // 2
        figures = {"files GiB": round(size / 2**30, 2), "limit GiB": round(limit / 2**30, 2)}
        figures["seconds to read the files"] = round(read_seconds(folder), 2)
        with control_group(limit) as (group, peak):
            # The interpreter and its libraries take part of the limit.
            figures["limited"] = run(folder, f"{(limit - 2**29) / 2**20:.0f}MiB", group)
            figures["limited"]["peak of the group GiB"] = round(int((group / peak).read_text()) / 2**30, 2)
        drop_pages(folder)
        figures["in memory"] = run(folder)
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
