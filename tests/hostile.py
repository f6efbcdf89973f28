"""Hostile checkpoints and uploads: each builder puts one trap into a folder and returns the path to open.

`python tests/hostile.py FOLDER` opens every one in this process and prints a line of JSON for each: the message, the
seconds, and the peak memory above that of the idle process.
"""

import gzip
import json
import lzma
import os
import pickle
import shutil
import struct
import sys
import time
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file, save_file  # noqa: E402

CANARY = "CANARY-7f3a"  # content of a file outside the checkpoints, which no message may quote
FLAG = "EXECUTED"  # the file that CODE creates
CODE = f"open({FLAG!r}, 'w').write('x')"


class Payload:
    """Runs CODE when it is unpickled."""

    def __reduce__(self):
        return exec, (CODE,)


def valid_checkpoint(folder: Path) -> Path:
    """A checkpoint that opens, for the builders to damage."""
    from small import STORIES, randomized

    from deepseek.data.tokenizer import train_tokenizer
    from deepseek.model.config import preset
    from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

    folder.mkdir(parents=True)
    text = folder.parent / "stories.txt"
    text.write_text("\n<|endoftext|>\n".join(STORIES), "utf-8")
    randomized(DeepseekV3ForCausalLM(preset("tiny", vocab_size=300))).save_pretrained(folder)
    train_tokenizer([str(text)], 300).save_pretrained(folder)
    return folder


def edit_json(name: str, **changes):
    """A builder that changes values of a JSON file."""

    def build(folder: Path) -> Path:
        file = folder / name
        value = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(value | changes))
        return folder

    return build


def write_file(name: str, content: bytes | str):
    """A builder that puts `content` into a file of that name."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return build


def safetensors(header: bytes, length: int | None = None):
    """A builder of a model.safetensors with this header, which claims to have `length` bytes."""
    length = len(header) if length is None else length
    return write_file("model.safetensors", struct.pack("<Q", length) + header + bytes(64))


def header(**fields) -> bytes:
    """A header of one tensor "a", with these of its fields replaced."""
    return json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | fields}).encode()


def pickled(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    return folder


def pickled_as_safetensors(folder: Path) -> Path:
    torch.save({"a": Payload()}, folder / "model.safetensors")
    return folder


def remote_code(folder: Path) -> Path:
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(CODE)
    auto_map = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    return edit_json("config.json", model_type="evil", architectures=["M"], auto_map=auto_map)(folder)


def remote_tokenizer(folder: Path) -> Path:
    (folder / "tokenization_evil.py").write_text(CODE)
    (folder / "tokenizer.json").unlink()
    auto_map = {"AutoTokenizer": ["tokenization_evil.T", None]}
    return edit_json("tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto_map)(folder)


def index(*names):
    """A builder of a sharded checkpoint whose index names these files."""

    def build(folder: Path) -> Path:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        weight_map = dict(zip(load_file(folder / "model-00001-of-00001.safetensors"), names * 1000))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    return build


def truncated(folder: Path) -> Path:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 99)
    return folder


def link(name: str, target: str):
    """A builder that replaces a file by a symbolic link."""

    def build(folder: Path) -> Path:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        return folder

    return build


def pipe(name: str):
    """A builder that replaces a file by a pipe, from which a read never returns."""

    def build(folder: Path) -> Path:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        return folder

    return build


def not_finite(value: float):
    """A builder that puts `value` into the weights."""

    def build(folder: Path) -> Path:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.embed_tokens.weight"][7, 3] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return build


def pattern(expression: str):
    """A builder of a tokenizer that splits text by a regular expression."""

    def build(folder: Path) -> Path:
        file = folder / "tokenizer.json"
        value = json.loads(file.read_text())
        split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split]}
        file.write_text(json.dumps(value))
        return folder

    return build


def absurd_vocabulary(folder: Path) -> Path:
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    value["model"]["vocab"] |= {f"token{i}": 1000 + i for i in range(50_000)}
    file.write_text(json.dumps(value))
    return folder


def upload(name: str, content):
    """A builder of an uploaded file, of these bytes or as `content(path)` writes it."""

    def build(folder: Path) -> Path:
        file = folder / name
        content(file) if callable(content) else file.write_bytes(content)
        return file

    return build


def compressed(compress, size: int, line: bytes = b"a" * 79 + b"\n"):
    """A writer of `size` bytes of repeated lines: one compressed piece of 4 MiB, repeated."""

    def write(file: Path) -> None:
        file.write_bytes(compress(line * (2**22 // len(line))) * (size // 2**22))

    return write


def zipped(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.txt", b"a" * 2**26)


def parquet(rows: int, size: int):
    """A writer of a table of `rows` equal texts of `size` characters."""

    def write(file: Path) -> None:
        import pyarrow
        from pyarrow.parquet import write_table

        table = pyarrow.table({"text": pyarrow.array(["a" * size]).take(pyarrow.array([0] * rows))})
        write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)

    return write


DEEP = "[" * 100_000 + "]" * 100_000
CHECKPOINTS = {
    "pickled weights": pickled,
    "pickle named safetensors": pickled_as_safetensors,
    "auto_map and code": remote_code,
    "tokenizer code": remote_tokenizer,
    "attention code of the Hub": edit_json("config.json", attn_implementation="evil/kernels"),
    "weights named elsewhere": edit_json("config.json", transformers_weights="../secret.safetensors"),
    "a million layers": edit_json("config.json", num_hidden_layers=10**6),
    "a million layers, hidden": edit_json("config.json", text_config={"num_hidden_layers": 10**6}),
    "a width of a million": edit_json("config.json", hidden_size=2**20),
    "a vocabulary of 2^40": edit_json("config.json", vocab_size=2**40),
    "65,536 experts": edit_json("config.json", n_routed_experts=2**16),
    "minus two layers": edit_json("config.json", num_hidden_layers=-2),
    "layers as text": edit_json("config.json", num_hidden_layers="2; import os"),
    "layers NaN": edit_json("config.json", num_hidden_layers=float("nan")),
    "zero heads": edit_json("config.json", num_attention_heads=0),
    "unknown model type": edit_json("config.json", model_type="../../evil"),
    "config a list": write_file("config.json", "[1, 2]"),
    "config NaN": write_file("config.json", "NaN"),
    "config cut": write_file("config.json", '{"model_type": "deepseek_v3"'),
    "config 100,000 deep": write_file("config.json", DEEP),
    "config of 64 MB": write_file("config.json", b'{"a": "' + b"a" * 2**26 + b'"}'),
    "config binary": write_file("config.json", b"\0\xff" * 1000),
    "config a pipe": pipe("config.json"),
    "weights a pipe": pipe("model.safetensors"),
    "tokenizer a pipe": pipe("tokenizer.json"),
    "generation config a pipe": pipe("generation_config.json"),
    "generation config a device": link("generation_config.json", "/dev/zero"),
    "weights a link out": link("model.safetensors", "/etc/passwd"),
    "card a link out": link("README.md", "../canary.txt"),
    "link to itself": link("generation_config.json", "generation_config.json"),
    "index with ../": index("../secret.safetensors"),
    "index with absolute path": index("/etc/passwd"),
    "index of numbers": index(5),
    "index a list": write_file("model.safetensors.index.json", "[]"),
    "header of 2^63 bytes": safetensors(header(), 2**63 - 1),
    "header longer than file": safetensors(header(), 10**6),
    "header of 32 MB": safetensors(b" " * 2**25),
    "header not JSON": safetensors(b"{" * 50),
    "header 5,000 deep": safetensors(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "overlapping tensors": safetensors(json.dumps({n: json.loads(header())["a"] for n in "ab"}).encode()),
    "tensor past the end": safetensors(header(shape=[10**12], data_offsets=[0, 4 * 10**12])),
    "shape that overflows": safetensors(header(shape=[2**62, 2**62])),
    "negative offsets": safetensors(header(data_offsets=[-16, 0])),
    "unknown dtype": safetensors(header(dtype="PICKLE")),
    "truncated weights": truncated,
    "empty weights": write_file("model.safetensors", b""),
    "NaN in weights": not_finite(float("nan")),
    "infinity in weights": not_finite(float("inf")),
    "tokenizer of 80 MB": write_file("tokenizer.json", b'{"a": "' + b"a" * 80_000_000 + b'"}'),
    "tokenizer 100,000 deep": write_file("tokenizer.json", DEEP),
    "tokenizer with 50,000 tokens too many": absurd_vocabulary,
    "regular expression (a+)+$": pattern("(a+)+$"),
    "regular expression (a|aa)+$": pattern("(a|aa)+$"),
    "regular expression, nested": pattern("^(([a-z])+.)+[A-Z]([a-z])+$"),
}  # fmt: skip
JINJA = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}x{% endfor %}"
HARMLESS = {  # never read: such a checkpoint opens
    "pickle beside the weights": write_file("training_state.pkl", pickle.dumps(Payload())),
    "auto_map of a known type": edit_json("config.json", auto_map={"AutoConfig": "configuration_evil.C"}),
    "hostile chat template": write_file("chat_template.jinja", JINJA),
    "endless generation config": edit_json("generation_config.json", max_new_tokens=10**12, num_beams=10**6),
}
UPLOADS = {
    "xz bomb": upload("bomb.txt.xz", compressed(lzma.compress, 2**33)),
    "gz bomb": upload("bomb.txt.gz", compressed(gzip.compress, 2**33)),
    "xz bomb of NUL": upload("nul.txt.xz", compressed(lzma.compress, 2**34, b"\0" * 64)),
    "gz bomb in one line of JSON": upload("line.jsonl.gz", compressed(gzip.compress, 2**33, b"a" * 64)),
    "gz bomb in one cell": upload("cell.csv.gz", compressed(gzip.compress, 2**33, b'text\n"' + b"a" * 999)),
    "bomb of rows": upload("rows.parquet", parquet(200, 2**20)),
    "zip bomb": upload("bomb.zip", zipped),
    "zip named txt": upload("bomb.txt", zipped),
    "zip named gz": upload("bomb.txt.gz", zipped),
    "binary": upload("program.txt", b"\x7fELF\0\1\2\3" * 1000),
    "pickle": upload("data.jsonl", pickle.dumps(Payload())),
    "pickle named parquet": upload("data.parquet", pickle.dumps(Payload())),
    "deep JSON": upload("deep.jsonl", DEEP.encode()),
    "JSON of 200 MB in a line": upload("giant.jsonl", b'{"text": "' + b"a" * 200_000_000 + b'"}'),
    "number of a million digits": upload("digits.jsonl", b'{"text": ' + b"9" * 10**6 + b"}\n"),
    "parquet that lies": upload("lies.parquet", b"PAR1" + b"\xff" * 1000 + struct.pack("<I", 2**31 - 1) + b"PAR1"),
    "truncated xz": upload("cut.txt.xz", lzma.compress(os.urandom(9999))[:5000]),
    "pipe": upload("pipe.txt", lambda file: os.mkfifo(file)),
    "device": upload("zero.txt", lambda file: file.symlink_to("/dev/zero")),
    "folder": upload("folder.txt", lambda file: file.mkdir()),
}


def memory() -> tuple[int, int]:
    """(bytes in memory now, peak since the last call) of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (1024 * int(status[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return now, peak


def open_all(folder: Path):
    """Yields {category, name, message, seconds, peak_bytes} of every case, opened in `folder`."""
    from deepseek.checkpoints.model_cache import ModelCache  # as in the app, which also requires a tokenizer
    from deepseek.data.readers import documents

    checkpoint = valid_checkpoint(folder / "valid")
    (folder / "canary.txt").write_text(CANARY)
    save_file({"a": torch.zeros(4)}, folder / "secret.safetensors")
    # Opening valid ones first imports what the others must not be measured with.
    ModelCache(1).get(str(checkpoint))
    list(documents(str(folder / "stories.txt")))
    upload("warm.parquet", parquet(1, 1))(folder)
    list(documents(str(folder / "warm.parquet")))
    cases = [("checkpoint", *case) for case in (CHECKPOINTS | HARMLESS).items()]
    cases += [("upload", *case) for case in UPLOADS.items()]
    for index, (category, name, build) in enumerate(cases):
        case_folder = folder / f"case-{index}"
        shutil.copytree(checkpoint, case_folder) if category == "checkpoint" else case_folder.mkdir()
        path = build(case_folder)
        idle, _ = memory()
        start, message = time.monotonic(), ""
        try:
            ModelCache(1).get(str(path)) if category == "checkpoint" else [None for _ in documents(str(path))]
        except ValueError as error:
            message = str(error)
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {error}"
        seconds, (_, peak) = time.monotonic() - start, memory()
        shutil.rmtree(case_folder)
        yield dict(category=category, name=name, message=message, seconds=seconds, peak_bytes=peak - idle)


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    os.chdir(folder)  # where CODE would create FLAG
    for result in open_all(folder):
        print(json.dumps(result), flush=True)
