"""Runs every command and Python block of the README, as written except for what takes long or is not installed here.

Where a test adds flags, combines commands or only checks their parts, its docstring says so. Python commands run in this
process, which has torch imported already.
"""

import json
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from running import ROOT, wait_until
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

from deepseek import load

README = (ROOT / "README.md").read_text("utf-8")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
BLOCKS = re.findall(r"(?:^    .*\n)+", re.sub(r"^(---|```)\n?.*?^\1$", "", README, flags=re.M | re.S), re.M)
COMMANDS = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
PREFIXES = dict(  # how each command starts, by the name that the tests give it
    run="python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python app.py",
    test="python3 -m venv .venv && .venv/bin/pip install -r requirements.txt -r tests/requirements.txt",
    generate="python -m deepseek.generate --prompt",
    repeat="python -m deepseek.generate --repeat",
    sweep="python -m deepseek.generate --sweep",
    post="curl -X POST",
    listen="curl http",
    train="python -m deepseek.train --name first --preset",
    resume="python -m deepseek.train --name first --resume",
    open="python app.py deepseek_checkpoints/",
    evaluate="python -m deepseek.evaluate",
    report="python -m deepseek.report",
    vllm="VLLM_MLA_DISABLE=1 vllm serve",
    gguf="python docs/to_gguf.py",
    llama="../llama.cpp/build/bin/llama-server",
    bench="python -m deepseek.bench",
    processes="torchrun --nproc-per-node 2",
    machines="torchrun --nnodes 2",
    reach="GRADIO_SERVER_NAME=",
    strangers="SPACE_ID=",
    archive="git archive",
    login="hf auth login",
    upload="hf upload",
)
SMALL = " --preset tiny --max-steps 2 --batch-size 2 --max-seq-len 32 --eval-documents 2 --sample-every 0"
CHECKPOINT = "step-000800"  # in the README; the shortened run of the tests has another


def command(name):
    """The README's command of this name."""
    (match,) = [line for line in COMMANDS if line.startswith(PREFIXES[name])]
    return match


def shell(line, folder, **environment):
    """A started process, in `folder`, that finds this Python's own `python`, `torchrun` and `hf`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", f"exec {line}" if "|" not in line and "=" not in line.split()[0] else line],
        cwd=folder, env={**os.environ, "PATH": path, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def output(process):
    """What a process prints; it must succeed."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, f"{process.args}\n{printed}"
    return printed


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A writable folder that looks like the repository."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("app.py", "assets", "deepseek", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def python(folder, monkeypatch, capsys):
    """Runs a `python ...` command in this process, in `folder`; returns what it prints."""
    monkeypatch.chdir(folder)

    def run(line):
        program, *arguments = shlex.split(line.removeprefix("python ").removeprefix("-m "))
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        (runpy.run_module if line.startswith("python -m ") else runpy.run_path)(program, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def first(folder):
    """A checkpoint of the README's first run, which is killed after its first checkpoint and resumed for three steps.

    `--save-every 2 --batch-size 2` is the test's.
    """
    run = folder / "deepseek_checkpoints" / "first"
    process = shell(command("train") + " --save-every 2 --batch-size 2", folder)
    line = next(line for line in process.stdout if line.startswith("Step 2 "))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert re.match(r"Step 2 - Loss: \d+\.\d+, Load Balancing Loss: \d+\.\d+", line), line
    process, steps = shell(command("resume"), folder), []
    for line in process.stdout:
        steps += [int(step) for step in re.findall(r"^Step (\d+) - Loss", line)]
        if len(steps) == 3:
            process.terminate()  # it saves a checkpoint and ends
    assert process.wait(60) == 0 and steps[0] >= 3 and steps == list(range(steps[0], steps[-1] + 1))
    return sorted(run.glob("step-*"))[-1]


def test_every_command_is_known_here():
    assert sorted(command(name) for name in PREFIXES) == sorted(COMMANDS) and len(PYTHON_BLOCKS) == 4


def test_the_first_screen_has_a_picture_and_two_self_contained_commands():
    picture, run, tests = (README.index(text) for text in ("](assets/screenshots/", command("run"), command("test")))
    assert picture < run < tests < README.index("\n## ")
    assert all((ROOT / path).is_file() for path in re.findall(r"\]\((\w[\w/.-]*)\)", README))
    requirements = re.findall(r"-r (\S+)", command("test"))
    assert requirements == ["requirements.txt", "tests/requirements.txt"] and command("test").endswith("-m pytest")
    # .ci/run finds the second command in the README and runs it on a fresh machine; other tests start app.py.
    line = next(line for line in README.splitlines() if "python -m pytest" in line)
    assert (
        line.strip() == command("test") and "grep -m 1 'python -m pytest' README.md" in (ROOT / ".ci/run").read_text()
    )


def test_the_tree_names_every_package_and_module():
    (tree,) = re.findall(r"^```\n(app.py.*?)^```$", README, re.M | re.S)
    names, package = {}, ""
    for line in tree[tree.index("deepseek/") : tree.index("assets/")].splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if indent > 4:
            names[package] += text.removesuffix(",").split(", ")
        elif (name := text.split()[0]).endswith("/"):
            parent = "" if indent == 0 else "deepseek/" if indent == 2 else "deepseek/ui/"
            names[package := parent + name] = []
        else:
            names["deepseek/"].append(name.removesuffix(".py"))
    packages = [ROOT / "deepseek", *(path.parent for path in (ROOT / "deepseek").glob("**/__init__.py"))]
    modules = {
        f"{folder.relative_to(ROOT)}/": sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
        for folder in packages
    }
    assert names == modules
    beside = re.findall(r"^(\w\S+)", tree, re.M) + re.findall(r"^  (\S+) ", tree[tree.index("docs/") :], re.M)
    assert all((ROOT / name).exists() or (ROOT / "docs" / name).exists() for name in beside)


def test_the_first_python_example(folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(PYTHON_BLOCKS[0] + PYTHON_BLOCKS[1], {})  # the second goes on from the first


def test_an_exported_generation_is_repeated(python):
    assert "Sample 1:\nPrompt: Once upon a time\nGenerated text (temp=0.8): " in python(command("generate"))
    assert "all as recorded" in python(command("repeat"))


def test_a_sweep(python):
    assert "[temperature 1.6] " in python(command("sweep") + " --max-new-tokens 4")


@pytest.mark.long
def test_the_benchmark(python):
    """`--presets tiny` and what follows are the test's: the command takes half an hour."""
    flags = " --presets tiny --precisions fp32 --rounds 1 --threads 1 --json"
    lines = [json.loads(line) for line in python(command("bench") + flags).splitlines() if line.startswith("{")]
    figures = {line["figure"]: line for line in lines if "figure" in line}
    compared = {"decode, 64 context", "decode, 230 context", "decode, batch 8, 64 context", "decode, batch 32, 64 context",
                ".generate, 64 context", "prefill, 512 tokens", "first token after 64, ms", "first token after 512, ms",
                "training, 8 x 256", "process to first token, s", "memory, MiB"}  # fmt: skip
    assert compared | {"traced decode, fp32", "traced decode, batch 8, fp32"} == set(figures)
    assert all(figures[name]["ours / stock"] > 0 for name in compared)


def test_the_app_serves_a_run_a_public_space_and_http(first, folder):
    """The commands that open a checkpoint and that invite strangers in one, with a port of the test; both curl commands.

    The command for a network differs from that for strangers only in its variables.
    """
    strangers, opened = command("strangers"), command("open").replace(CHECKPOINT, first.name)
    assert set(command("reach").split()) - set(strangers.split()) == {"GRADIO_SERVER_PORT=7860"}
    port = str(free_port())
    line = f"{strangers.removesuffix('python app.py')}GRADIO_SERVER_PORT={port} {opened}"
    url, process = f"http://127.0.0.1:{port}", shell(line, folder)

    def config():
        assert process.poll() is None, process.stdout.read()
        try:
            return urllib.request.urlopen(f"{url}/config", timeout=5).read().decode()
        except OSError:
            return None

    try:
        wait_until(config, 120)
        assert "This is a public Space" in config() and first.name in config()
        answer = output(shell(command("post").replace("http://127.0.0.1:7860", url), folder)).splitlines()[-1]
        listen = command("listen").replace("http://127.0.0.1:7860", url)
        assert "event: complete" in output(shell(listen.replace("/ID", "/" + json.loads(answer)["event_id"]), folder))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_a_run_is_evaluated(first, python):
    assert "bits_per_byte" in python(command("evaluate").replace(CHECKPOINT, first.name))


def test_the_mean_of_a_runs_checkpoints_opens(first, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(PYTHON_BLOCKS[2], {})
    assert load("first-mean")[0].config.max_position_embeddings == load(first)[0].config.max_position_embeddings


def test_the_experts_are_reported_on(folder, python):
    assert "report.html: story, code" in python(command("report"))
    assert "What experts do: assets/demo" in (folder / "report.html").read_text("utf-8")


def test_a_run_opens_in_transformers(first, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(PYTHON_BLOCKS[3].replace(CHECKPOINT, first.name), {})
    assert "Once upon a time" in capsys.readouterr().out


def test_a_run_has_what_vllm_and_llama_cpp_read(first, folder):
    """Neither is installed. Both read the fields of config.json and the tensors' names, which must be the stock ones."""
    for name, needs in (("vllm", "(needs a GPU"), ("llama", "(needs a clone")):
        assert needs in README[: README.index(command(name))].rsplit("**", 1)[-1] and CHECKPOINT in README
    config = json.loads((first / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"] and "auto_map" not in config
    assert (config["topk_method"], config["scoring_func"], config["n_group"]) == ("noaux_tc", "sigmoid", 1)
    required = {"n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "q_lora_rank",
                "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "first_k_dense_replace",
                "routed_scaling_factor", "norm_topk_prob", "rope_parameters", "vocab_size"}  # fmt: skip
    assert required <= config.keys()
    stock = AutoModelForCausalLM.from_pretrained(first)
    assert type(stock) is DeepseekV3ForCausalLM
    stock.save_pretrained(folder / "stock")
    names = tensor_names(first)
    assert names == tensor_names(folder / "stock") | {"lm_head.weight"}  # vLLM looks for the head beside the embedding
    assert "model.layers.1.mlp.experts.7.down_proj.weight" in names
    tokenizer = json.loads((first / "tokenizer.json").read_text())
    pre_tokenizer = tokenizer["pre_tokenizer"]  # what docs/to_gguf.py calls "gpt-2"
    assert [pre_tokenizer[name] for name in ("type", "use_regex", "add_prefix_space")] == ["ByteLevel", True, False]
    assert tokenizer["model"]["type"] == "BPE" and tokenizer["normalizer"] is None


def tensor_names(checkpoint) -> set[str]:
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        return set(tensors.keys())


@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP is not set to a clone of llama.cpp")
def test_a_run_is_converted_for_llama_cpp(first, folder):
    line = command("gguf").replace("../llama.cpp", os.environ["LLAMA_CPP"]).replace(CHECKPOINT, first.name)
    output(shell(line, folder))
    assert (folder / "first.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.long
def test_several_processes_and_several_machines(folder):
    """Together, with the test's size, steps and root; the machines are two agents here, one process each in place of eight."""
    processes, batch = (
        re.search(rf"--{flag} (\d+)", command("machines"))[1] for flag in ("nproc-per-node", "batch-size")
    )
    assert int(batch) % (2 * int(processes)) == 0
    machines = command("machines").replace("HOST:29500", f"127.0.0.1:{free_port()}")
    machines = machines.replace("--nproc-per-node 8", "--nproc-per-node 1") + SMALL + " --root machines"
    agents = [shell(line, folder) for line in (command("processes") + SMALL, machines, machines)]
    one_machine, *two_machines = [output(agent) for agent in agents]
    assert "Step 2 - Loss" in one_machine and "".join(two_machines).count("Step 2 - Loss") == 1
    for run in ("deepseek_checkpoints/second", "machines/third"):
        assert (folder / run / "step-000002/model.safetensors").is_file()


def test_a_space_is_the_repository_and_the_upload_command_is_valid(tmp_path):
    """Without an account, until the error that there is no network; an unknown option would end with status 2."""
    login = shell(command("login") + " --help", tmp_path)
    output(shell(command("archive").replace("-C ..", f"-C {tmp_path}"), ROOT))
    space = tmp_path / "space"
    assert (space / "app.py").is_file() and (space / "assets/demo/model.safetensors").is_file()
    assert not (space / ".venv").exists() and (space / "README.md").read_text("utf-8").startswith("---\ntitle:")
    upload = shell(command("upload").replace("../space", "space"), tmp_path, HF_HUB_OFFLINE="1", HF_TOKEN="hf_none")
    printed, _ = upload.communicate(timeout=60)
    assert upload.returncode == 1 and "offline" in printed.lower(), printed
    assert output(login)
