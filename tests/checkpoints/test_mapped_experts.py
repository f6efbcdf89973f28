"""A model whose experts stay in its files gives what it gives from memory, within a limit."""

import mmap
import re
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints.test_loading import edit, save_fp8
from safetensors.torch import load_file, save_file
from small import families, randomized

import deepseek
from deepseek.checkpoints.loading import CheckpointError, load, stored_dtype
from deepseek.checkpoints.mapped_experts import ExpertCache, MappedFile, MappedStack
from deepseek.inference.engine import stream
from deepseek.inference.sampling import SamplingParams
from deepseek.model.deepseek_v3 import DeepseekV3ForCausalLM

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def stacks(model):
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, MappedStack)]


def open_both(folder, dtype=torch.float32, share=0.6):
    """(in memory, with its experts in its files, of which `share` of what the model takes may be held)."""
    whole, _ = load(folder, dtype)
    whole.config._experts_implementation = "eager"  # experts one by one, so that sums round alike
    size = sum(parameter.nbytes for parameter in whole.parameters())
    mapped, _ = load(folder, dtype, max_memory=int(1.25 * share * size))
    assert len(stacks(mapped)) and not any(name.endswith(".experts.down_proj") for name, _ in mapped.named_parameters())
    return whole, mapped


@pytest.mark.parametrize("family", [*families(), "ours"])
def test_logits_and_generated_tokens_equal_those_from_memory(family, tmp_path):
    torch.manual_seed(0)
    if family == "ours":
        model = randomized(DeepseekV3ForCausalLM(deepseek.preset("tiny")))
    else:
        model = randomized(transformers.AutoModelForCausalLM.from_config(families()[family]))
    model.save_pretrained(tmp_path)
    whole, mapped = open_both(tmp_path, share=0.9 if family == "ours" else 0.6)
    with torch.inference_mode():
        torch.testing.assert_close(mapped(IDS).logits, whole(IDS).logits, atol=1e-6, rtol=1e-5)  # where a matrix begins
        for model in (whole, mapped):  # one token a step
            model.generation_config.eos_token_id = None
        texts = [model.generate(IDS[:1], max_new_tokens=6, do_sample=False) for model in (whole, mapped)]
    assert torch.equal(*texts)
    cache = mapped.expert_cache
    assert cache.num_bytes <= cache.max_bytes and 0 <= cache.num_hits < cache.num_reads


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_fp8_experts_are_dequantized_one_at_a_time(family, tmp_path):
    save_fp8(family, tmp_path)
    whole, mapped = open_both(tmp_path, torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(whole(IDS).logits, mapped(IDS).logits)


def test_mxfp4_experts_are_dequantized_one_at_a_time(tmp_path):
    """As OpenAI publishes them: blocks of 32 four-bit numbers with a scale each, all experts in one tensor."""
    config = families()["gpt_oss"]
    config.hidden_size = config.intermediate_size = 64
    randomized(transformers.AutoModelForCausalLM.from_config(config)).bfloat16().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        num_experts, columns, rows = tensors.pop(name).shape
        blocks = (num_experts, rows, columns // 32)
        tensors[name + "_blocks"] = torch.randint(0, 256, (*blocks, 16), dtype=torch.uint8)
        tensors[name + "_scales"] = torch.randint(120, 126, blocks, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    edit("config.json", quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=["lm_head"]))(tmp_path)
    whole, mapped = open_both(tmp_path, torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(whole(IDS).logits, mapped(IDS).logits)


def test_an_expert_in_one_piece_is_a_view_of_its_file_and_others_are_copied(tmp_path):
    for family, copied in (
        ("olmoe", set()),
        ("mixtral", {"gate_up_proj"}),
    ):  # w1, w2, w3: down lies between gate and up
        folder = tmp_path / family
        randomized(transformers.AutoModelForCausalLM.from_config(families()[family])).save_pretrained(folder)
        _, mapped = open_both(folder)
        for stack in stacks(mapped):
            is_view = stack[1].untyped_storage().nbytes() > stack[1].nbytes
            assert is_view == (stack.name.rpartition(".")[2] not in copied)


def test_the_experts_used_most_are_kept_within_the_limit():
    cache, given_back = ExpertCache(100), []

    class File:
        def advise(self, tensor, advice):
            given_back.append((tensor, advice))

    def use(cache, *experts):
        for expert in experts:
            cache.get(("stack", expert), lambda expert=expert: (torch.zeros(10), [(File(), expert)]))  # 40 bytes
        return [expert for expert in range(4) if ("stack", expert) in cache]

    assert use(cache, 0, 1, 0, 2) == [0, 2]
    assert (cache.num_reads, cache.num_hits, cache.num_bytes) == (4, 1, 80)
    assert given_back == [(1, mmap.MADV_DONTNEED)]
    assert use(cache, 1, 3) == [0, 3], "what was used as often goes, and of that the newest"
    cache.num_passes += 100
    assert use(cache, 2, 1) == [1, 2], "uses of long ago count little"
    assert use(ExpertCache(100), *[0, 1, 2] * 5) == [0, 2], "passes over all experts find some of them"
    assert use(ExpertCache(1), 0, 1) == [1]  # the one in use is kept, whatever its size


def test_a_file_is_read_as_safetensors_reads_it(tmp_path):
    tensors = {
        "a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.randn(2, 2).to(torch.float8_e4m3fn),
        "d": torch.arange(5, dtype=torch.uint8), "e": torch.randn(4).half(),
    }  # fmt: skip
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file = MappedFile(tmp_path / "model.safetensors")
    assert sorted(file.names) == sorted(tensors)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert file.tensor(name).dtype == tensor.dtype
        assert torch.equal(file.tensor(name).view(torch.uint8), tensor.view(torch.uint8))
        file.advise(file.tensor(name), mmap.MADV_WILLNEED)
        file.advise(file.tensor(name), mmap.MADV_DONTNEED)
    assert stored_dtype(tmp_path) == torch.float32


@pytest.mark.parametrize("size", ["8", "0.01MiB"])
def test_what_does_not_fit_beside_its_experts_is_refused(size, tmp_path):
    randomized(transformers.AutoModelForCausalLM.from_config(families()["olmoe"])).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GiB of memory beside its experts; max_memory is 0\.0 GiB"):
        load(tmp_path, max_memory=size)


def test_experts_that_cannot_stay_in_the_files_are_refused_before_they_fill_the_memory(tmp_path):
    model = randomized(transformers.AutoModelForCausalLM.from_config(families()["olmoe"]))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    size = sum(parameter.nbytes for parameter in model.parameters())
    with pytest.raises(
        CheckpointError, match=r"its files have 'model\.layers\.1\.mlp\.experts\.down_proj' in a form that cannot"
    ):
        load(tmp_path, torch.float32, max_memory=int(0.75 * size))


@pytest.mark.parametrize("size", ["", "8 GiB or so", "-1GiB", "0", 0, "GiB"])
def test_a_wrong_size_is_one_sentence(size, tmp_path):
    with pytest.raises(
        ValueError, match=f"^max_memory is {re.escape(repr(size))}; it must be a size above 0 such as '8GiB'"
    ):
        load(tmp_path, max_memory=size)


def test_streaming_and_tracing_read_the_experts_that_tokens_are_routed_to(checkpoint, tmp_path):
    """Of the tests' own checkpoint: the trace of a text and its continuation, whose routing counts the reads."""
    folder = Path(checkpoint)
    whole, tokenizer = load(folder, torch.float32)
    size = sum(parameter.nbytes for parameter in whole.parameters())
    mapped, _ = load(folder, torch.float32, max_memory=int(1.1 * size))
    assert mapped.expert_cache
    params = SamplingParams(temperature=0, max_new_tokens=5)
    expected = [token.id for token in stream(whole, tokenizer, "Once upon", params)]
    assert [token.id for token in stream(mapped, tokenizer, "Once upon", params)] == expected
    traces = [deepseek.trace(model, tokenizer, "Once upon a time") for model in (whole, mapped)]
    for routing, other in zip(*(trace.routing for trace in traces)):
        assert (routing.indices == other.indices).all()
    walks = [[row["router"]["chosen"] for row in trace.walk(2)["layers"] if row["router"]] for trace in traces]
    assert walks[0] and walks[0] == walks[1]
    assert mapped.expert_cache.num_reads > 0
