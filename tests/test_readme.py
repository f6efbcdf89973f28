"""Every command and Python block of the README, run as it is written; where the README says that one takes long, or needs
what is not here, the test adds flags or checks as far as it can, and says so.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from running import ROOT
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

README = (ROOT / "README.md").read_text("utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
BLOCKS = re.findall(r"(?:^    .*\n)+", re.sub(r"^(---|```)\n?.*?^\1$", "", README, flags=re.M | re.S), re.M)
COMMANDS = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
# What stands at the beginning of each, by the name that it has here.
STARTS = dict(
    run="python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python app.py",
    test="python3 -m venv .venv && .venv/bin/pip install -r requirements.txt -r tests/requirements.txt",
    generate="python -m deepseek.generate --prompt",
    repeat="python -m deepseek.generate --repeat",
    post="curl -X POST",
    listen="curl http",
    train="python -m deepseek.train --name first --preset",
    resume="python -m deepseek.train --name first --resume",
    look="python app.py deepseek_checkpoints/",
    evaluate="python -m deepseek.evaluate",
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
SMALL = " --preset tiny --steps 2 --batch-size 2 --context 32 --valid-documents 2 --sample-every 0"
WRITTEN = "step-001200"  # the commit that the README names, which a run that is cut short does not reach


def the(name):
    """The README's command of this name."""
    (found,) = [command for command in COMMANDS if command.startswith(STARTS[name])]
    return found


def shell(command, folder, **environment):
    """A command on its way, in `folder`, with this Python's own `python`, `torchrun` and `hf`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}" if "|" not in command and "=" not in command.split()[0] else command],
        cwd=folder, env={**os.environ, "PATH": path, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def output(command, folder, **environment):
    """What a command prints; it must succeed."""
    process = shell(command, folder, **environment)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, f"{command}\n{printed}"
    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks like the repository, and may be written to."""
    place = tmp_path_factory.mktemp("readme")
    for name in ("app.py", "assets", "deepseek", "docs"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.fixture(scope="module")
def first(folder):
    """The commit of the README's first run, which is killed as soon as there is one, and gone on with as the README says.

    `--checkpoint-every 2` is the test's.
    """
    run = folder / "deepseek_checkpoints" / "first"
    process = shell(the("train") + " --checkpoint-every 2", folder)
    until(lambda: list(run.glob("step-*")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    printed = process.communicate()[0]
    assert re.search(r"^Step 2 - Loss: \d+\.\d+, Load Balancing Loss: \d+\.\d+", printed, re.M), printed
    process = shell(the("resume"), folder)
    steps = []
    for line in process.stdout:
        steps += [int(step) for step in re.findall(r"^Step (\d+) - Loss", line)]
        if len(steps) == 3:
            process.terminate()  # it commits, and ends
    assert process.wait(60) == 0 and steps[0] >= 3 and steps == list(range(steps[0], steps[-1] + 1))
    return sorted(run.glob("step-*"))[-1]


def until(true, seconds=200):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_every_command_is_known_here():
    assert sorted(the(name) for name in STARTS) == sorted(COMMANDS) and len(PYTHON) == 2


def test_the_first_screen_has_a_picture_and_two_commands_that_do_all_their_own_set_up():
    picture, run, tests = README.index("](assets/screenshots/"), README.index(the("run")), README.index(the("test"))
    assert picture < run < tests < README.index("\n## ")
    assert all(
        (ROOT / path).is_file() for path in re.findall(r"\]\((\w[\w/.-]*)\)", README.replace("(CONTRIBUTING)", ""))
    )
    requirements = re.findall(r"-r (\S+)", the("test"))
    assert requirements == ["requirements.txt", "tests/requirements.txt"] and the("test").endswith("-m pytest")
    # .ci/run finds the second command in the README and runs it on a fresh machine; conftest starts app.py for the first.
    found = subprocess.check_output(["grep", "-m", "1", "python -m pytest", "README.md"], cwd=ROOT, text=True)
    assert found.strip() == the("test") and "grep -m 1 'python -m pytest' README.md" in (ROOT / ".ci/run").read_text()


def test_the_tree_names_every_file_and_no_other():
    (tree,) = re.findall(r"^```\n(app.py.*?)^```$", README, re.M | re.S)
    inside = set(re.findall(r"^  (\S+) ", tree[tree.index("deepseek/") : tree.index("assets/")], re.M))
    there = {path.name + "/" * path.is_dir() for path in (ROOT / "deepseek").iterdir() if path.name[0] != "_"}
    assert inside == there
    beside = re.findall(r"^(\w\S+)", tree, re.M) + re.findall(r"^  (\S+) ", tree[tree.index("docs/") :], re.M)
    assert all((ROOT / name).exists() or (ROOT / "docs" / name).exists() for name in beside)


def test_the_python_of_the_first_example(folder):
    (folder / "example.py").write_text(PYTHON[0], "utf-8")
    assert output("python example.py", folder)


def test_an_exported_text_is_repeated(folder):
    assert "Sample 1:\nPrompt: Once upon a time\nGenerated text (temp=0.8): " in output(the("generate"), folder)
    assert "all as recorded" in output(the("repeat"), folder)


def test_speed_is_measured(folder):
    """`--presets tiny` and what follows are the test's: the command takes half an hour."""
    flags = " --presets tiny --precisions fp32 --rounds 1 --threads 1 --json"
    lines = [json.loads(line) for line in output(the("bench") + flags, folder).splitlines() if line.startswith("{")]
    figures = {line["figure"]: line for line in lines if "figure" in line}
    beside = {"decode, 64 context", "decode, 230 context", "prefill 512", "to the first token, s", "memory, MiB"}
    assert beside | {"recorded", "8 texts"} <= set(figures)
    assert all(figures[name]["ours / stock"] > 0 for name in beside)
    assert any(name.startswith("training 8 x 256 (stock ") for name in figures)


def test_http(app_url, folder):
    event = json.loads(output(the("post").replace("http://127.0.0.1:7860", app_url), folder).splitlines()[-1])
    listen = the("listen").replace("http://127.0.0.1:7860", app_url).replace("/ID", "/" + event["event_id"])
    assert "event: complete" in output(listen, folder)


def test_a_run_opens_in_the_app(first, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = shell(the("look").replace(WRITTEN, first.name), folder, GRADIO_SERVER_PORT=str(port))
    assert first.name in page(process, port)


def page(process, port) -> str:
    """What the page of an app on its way is made of; the app is then ended."""
    try:
        for _ in range(240):
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5).read().decode()
            except OSError:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.5)
        raise AssertionError("the app does not answer")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_a_run_is_measured(first, folder):
    assert "bits_per_byte" in output(the("evaluate").replace(WRITTEN, first.name), folder)


def test_a_run_goes_on_in_transformers(first, folder):
    (folder / "example.py").write_text(PYTHON[1].replace(WRITTEN, first.name), "utf-8")
    assert "Once upon a time" in output("python example.py", folder)


def test_a_run_has_what_vllm_and_llama_cpp_read(first, folder):
    """Neither is here. Both read config.json's fields and the names of the tensors; the names must be stock's own."""
    for name, needs in (("vllm", "(needs a GPU"), ("llama", "(needs a clone")):
        assert needs in README[: README.index(the(name))].rsplit("**", 1)[-1] and WRITTEN in README
    config = json.loads((first / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"] and "auto_map" not in config
    assert (config["topk_method"], config["scoring_func"], config["n_group"]) == ("noaux_tc", "sigmoid", 1)
    wanted = {"n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "q_lora_rank",
              "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "first_k_dense_replace",
              "routed_scaling_factor", "norm_topk_prob", "rope_parameters", "vocab_size"}  # fmt: skip
    assert wanted <= config.keys()
    stock = AutoModelForCausalLM.from_pretrained(first)
    assert type(stock) is DeepseekV3ForCausalLM
    stock.save_pretrained(folder / "stock")
    assert names(first) == names(folder / "stock") and "model.layers.1.mlp.experts.7.down_proj.weight" in names(first)
    tokenizer = json.loads((first / "tokenizer.json").read_text())
    splitting = tokenizer["pre_tokenizer"]  # what docs/to_gguf.py calls "gpt-2"
    assert (splitting["type"], splitting["use_regex"], splitting["add_prefix_space"]) == ("ByteLevel", True, False)
    assert tokenizer["model"]["type"] == "BPE" and tokenizer["normalizer"] is None


def names(checkpoint) -> set[str]:
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        return set(tensors.keys())


@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP is not set to a clone of llama.cpp")
def test_a_run_goes_on_in_llama_cpp(first, folder):
    command = the("gguf").replace("../llama.cpp", os.environ["LLAMA_CPP"]).replace(WRITTEN, first.name)
    output(command, folder)
    assert (folder / "first.gguf").read_bytes()[:4] == b"GGUF"


def test_several_processes(folder):
    """A size and steps that take seconds are the test's."""
    assert "Step 2 - Loss" in output(the("processes") + SMALL, folder)
    assert (folder / "deepseek_checkpoints/second/step-000002/model.safetensors").is_file()


def test_several_machines(folder):
    """Two of torchrun's agents on one machine, with a process each in place of eight."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{probe.getsockname()[1]}"
    command = the("machines").replace("HOST:29500", here).replace("--nproc-per-node 8", "--nproc-per-node 1") + SMALL
    processes, batch = (re.search(rf"--{flag} (\d+)", the("machines"))[1] for flag in ("nproc-per-node", "batch-size"))
    assert int(batch) % (2 * int(processes)) == 0
    both = [shell(command, folder) for _ in range(2)]
    printed = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert "".join(printed).count("Step 2 - Loss") == 1
    assert (folder / "deepseek_checkpoints/third/step-000002/model.safetensors").is_file()


def test_strangers_meet_the_app_that_a_space_shows(folder):
    """Of the two commands, which differ in who may do what, the one with more to it."""
    reach, strangers = the("reach").split(), the("strangers").split()
    assert set(reach) - set(strangers) == {"GRADIO_SERVER_PORT=7860"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert "This is a public Space" in page(shell(the("strangers"), folder, GRADIO_SERVER_PORT=str(port)), port)


def test_a_space_is_the_repository_and_its_upload_is_understood(tmp_path):
    """Without an account, as far as a refusal for want of the network; options that are not known would end with 2."""
    output(the("archive").replace("-C ..", f"-C {tmp_path}"), ROOT)
    space = tmp_path / "space"
    assert (space / "app.py").is_file() and (space / "assets/demo/model.safetensors").is_file()
    assert not (space / ".venv").exists() and (space / "README.md").read_text("utf-8").startswith("---\ntitle:")
    assert output(the("login") + " --help", tmp_path)
    upload = shell(the("upload").replace("../space", "space"), tmp_path, HF_HUB_OFFLINE="1", HF_TOKEN="hf_none")
    printed, _ = upload.communicate(timeout=60)
    assert upload.returncode == 1 and "offline" in printed.lower(), printed
