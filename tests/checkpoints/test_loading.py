"""Opening folders and Hub ids that may be damaged, hostile or too large."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import hostile
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small import families, randomized

from deepseek.checkpoints import memory
from deepseek.checkpoints.export import export
from deepseek.checkpoints.loading import CheckpointError, fingerprint, load
from deepseek.data.tokenizer import encode_document
from deepseek.model.cpu_features import preferred_dtype
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def edit(name, **changes):
    """A function that changes values of a JSON file of a folder."""

    def apply(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return apply


def refusal(path, **options):
    """The sentence that opening `path` is refused with."""
    with pytest.raises(CheckpointError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {str(path)!r}") and "\n" not in message
    return message


# Folders


def test_load_returns_the_saved_model_and_tokenizer(checkpoint):
    model, tokenizer = load(checkpoint, torch.float32)
    assert type(model) is DeepseekV3ForCausalLM and not model.training
    for name, tensor in DeepseekV3ForCausalLM.from_pretrained(checkpoint).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    ids = encode_document(tokenizer, "Once upon a time")
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(ids[1:]) == "Once upon a time"
    assert len(ids) < len("Once upon a time")


def test_a_file_manager_s_files_are_no_weights(checkpoint, folder):
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7" * 40)
    assert load(folder)[0].num_parameters() == load(checkpoint)[0].num_parameters()
    assert fingerprint(folder) == fingerprint(checkpoint)


def test_dtype_defaults_to_the_machines(checkpoint):
    assert load(checkpoint)[0].dtype == preferred_dtype()
    assert load(checkpoint, torch.bfloat16)[0].dtype == torch.bfloat16


def test_other_models_open_in_the_class_of_transformers(tmp_path):
    ids = dict(bos_token_id=0, eos_token_id=0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=16, **ids)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert type(load(tmp_path)[0]) is transformers.GPT2LMHeadModel


def test_a_tokenizer_is_optional(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    model, tokenizer = load(folder)
    assert type(model) is DeepseekV3ForCausalLM and tokenizer is None


def pickle_and_decoy(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).rename(folder / "other.safetensors")


def truncate_weights(folder):
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1000)


CANNOT_BE_OPENED, TOO_LARGE = "cannot be opened: ", "parameters where its config.json describes"
GPTQ = "is quantized by 'gptq'; its weights must be fp32, bf16, fp16, fp8 or mxfp4; open the checkpoint that it was made from."
DAMAGE = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "garbage config": (lambda folder: (folder / "config.json").write_text("{nope"), "config.json that is not JSON"),
    "binary config": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0"),
        "config.json that is not JSON",
    ),
    "unknown model": (edit("config.json", model_type="other"), "model of type 'other', which needs code of its own"),
    "unknown rope": (edit("config.json", rope_parameters=dict(rope_type="dynamic", factor=2.0)), CANNOT_BE_OPENED),
    "words for a table": (edit("config.json", rope_parameters="x"), "any type in (RopeParameters, dict, NoneType)."),
    "unknown function": (edit("config.json", hidden_act="nope"), CANNOT_BE_OPENED + "'nope' is unknown."),
    "words for numbers": (edit("config.json", hidden_size="wide"), CANNOT_BE_OPENED),
    "other shapes": (edit("config.json", hidden_size=80), "where its config.json says ["),
    "absurd shapes": (edit("config.json", vocab_size=2**60), CANNOT_BE_OPENED),
    "large vocabulary": (edit("config.json", vocab_size=2**28), TOO_LARGE),
    "large width": (edit("config.json", hidden_size=2**20), TOO_LARGE),
    "many experts": (edit("config.json", n_routed_experts=2**16), TOO_LARGE),
    "many layers": (edit("config.json", num_hidden_layers=500), "tensors for 500 layers"),
    "too many layers": (edit("config.json", num_hidden_layers=10**6), "it must be from 0 to 512"),
    "more experts for a token than there are": (
        edit("config.json", num_experts_per_tok=9),
        "cannot read a token: ",
    ),
    "groups that experts do not fill": (edit("config.json", n_group=3, topk_group=1), "cannot read a token: "),
    "missing tensors": (edit("config.json", num_hidden_layers=4), "lacks the tensor 'model.layers.3."),
    "truncated weights": (truncate_weights, CANNOT_BE_OPENED),
    "empty weights": (lambda folder: os.truncate(folder / WEIGHTS, 0), "with a header of 0"),
    "only a pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        "its weights are in 'pytorch_model.bin', a format that is not opened",
    ),
    "a pickle and a decoy": (pickle_and_decoy, "has no model*.safetensors file"),
    "an adapter": (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.safetensors"), "has no model*"),
    "no language model": (
        edit("config.json", model_type="vit"),
        "is a model of type 'vit'; it must be one that continues",
    ),
    "GPTQ": (edit("config.json", quantization_config=dict(quant_method="gptq", bits=4)), GPTQ),
    "AWQ": (edit("config.json", quantization_config=dict(quant_method="awq", bits=4)), GPTQ.replace("gptq", "awq")),
    "no folder": (shutil.rmtree, "is neither a folder nor a Hub id"),
}


@pytest.mark.parametrize("damage, reason", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_is_refused_at_once_in_one_sentence(folder, damage, reason):
    damage(folder)
    start = time.monotonic()
    assert reason in refusal(folder)
    assert time.monotonic() - start < 5


def test_a_file_is_refused(checkpoint):
    assert "neither a folder nor a Hub id" in refusal(Path(checkpoint) / "config.json")


def test_a_pickle_is_never_opened(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pytorch_model.bin", "training.pt"):
        torch.save({"weights": hostile.Payload()}, folder / name)
    load(folder)
    (folder / WEIGHTS).unlink()
    refusal(folder)
    assert not Path(hostile.FLAG).exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert Path(hostile.FLAG).exists(), "the payload works"


@pytest.mark.parametrize("model_type", ["deepseek_v3", "made_up"])
def test_code_in_a_folder_is_never_run(folder, tmp_path, monkeypatch, model_type):
    monkeypatch.chdir(tmp_path)
    (folder / "evil.py").write_text(f"{hostile.CODE}\nclass Config: pass\nclass Model: pass\nclass Tok: pass")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": [None, "evil.Tok"]}
    edit("config.json", model_type=model_type, auto_map=auto_map)(folder)
    edit("tokenizer_config.json", tokenizer_class="Tok", auto_map=auto_map)(folder)
    if model_type == "made_up":
        refusal(folder)
    else:
        assert type(load(folder)[0]) is DeepseekV3ForCausalLM
    assert not Path(hostile.FLAG).exists()


def test_the_fingerprint_identifies_the_weights(checkpoint, folder, tmp_path):
    assert fingerprint(folder) == fingerprint(checkpoint)
    (folder / WEIGHTS).write_bytes(b"other")
    assert fingerprint(folder) != fingerprint(checkpoint)
    assert fingerprint(tmp_path / "runs" / "mine" / "step-000010") == "", "it is gone"


# Memory


def test_a_model_larger_than_memory_is_refused_with_both_numbers(checkpoint, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    with pytest.raises(CheckpointError, match=r"needs .* GiB of memory; .* GiB are free"):
        load(checkpoint)


# The Hub


def test_a_hub_id_opens_with_its_name_and_the_fingerprint_of_its_weights(checkpoint, local_hub):
    for name in ("org/demo", "org/demo@main", f"org/demo@{local_hub.commit('models/org/demo')}"):
        model, tokenizer = load(name)
        assert type(model) is DeepseekV3ForCausalLM and tokenizer is not None
        assert model.name_or_path == name
        assert fingerprint(name) == fingerprint(checkpoint)
    local_hub.requests.clear()
    assert load("org/demo", local_files_only=True)[0].name_or_path == "org/demo"
    assert not local_hub.requests
    assert "is not on this machine; open it first" in refusal("org/other", local_files_only=True)
    assert fingerprint("org/other") == ""


def test_code_on_the_hub_is_never_downloaded(local_hub):
    folder = local_hub.root / "models" / "org" / "demo"
    edit("config.json", auto_map={"AutoConfig": "evil.Config"}, model_type="made_up")(folder)
    (folder / "evil.py").write_text(hostile.CODE)
    assert "needs code of its own" in refusal("org/demo")
    assert not any(path.endswith(".py") for _, path in local_hub.requests)


# Quantized weights


@pytest.mark.parametrize("family", ["deepseek_v3", "mixtral"])
def test_fp8_weights_open_in_the_dtype_asked_for_and_can_be_exported(family, tmp_path):
    """In blocks with a scale each, as DeepSeek publishes them; some tensors of such a checkpoint are bf16."""
    model = save_fp8(family, tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        opened, _ = load(tmp_path, dtype)
        kept = {"e_score_correction_bias"} if family == "deepseek_v3" else set()
        assert {p.dtype for name, p in opened.named_parameters() if name.split(".")[-1] not in kept} == {dtype}
        assert opened(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    weight, expected = (m.get_submodule("model.layers.0.self_attn.o_proj").weight for m in (opened, model))
    assert (weight.float() - expected).abs().max() < 0.07 * expected.abs().max()
    export(tmp_path, tmp_path / "bf16")
    assert load(tmp_path / "bf16")[0].dtype == preferred_dtype()


def save_fp8(family, folder):
    """Saves a mixture of experts with its large matrices in fp8; returns the model."""
    config = families()[family]
    config.hidden_size = config.intermediate_size = config.moe_intermediate_size = 128
    model = randomized(transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(folder)
    tensors = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        if tensor.dim() == 2 and re.search(r"_proj|\.w\d\.", name):
            blocks = [-(-size // 128) for size in tensor.shape]
            scale = tensor.abs().max() / 448
            tensors[f"{name}_scale_inv"] = scale.expand(blocks).contiguous()
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
        else:
            tensors[name] = tensor.bfloat16()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    fp8 = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])
    edit("config.json", quantization_config=fp8, dtype="bfloat16")(folder)
    return model
