"""Prompts in int8: exact products of rounded operands, and the demo's loss with them."""

import pytest
import torch

from deepseek import SamplingParams, stream
from deepseek.checkpoints.loading import load
from deepseek.data.readers import documents
from deepseek.inference import int8_prefill
from deepseek.inference.decode_model import DecodeModel
from deepseek.inference.int8_prefill import Int8Linear, grouped_int8_linear, int8_linear
from deepseek.inference.packed_linear import quantize_rows
from deepseek.interpret.interventions import Intervention
from deepseek.model import cpu_features
from deepseek.model.attention import causal_attention
from deepseek.model.layers import Linear
from deepseek.training.validation import evaluate


@pytest.mark.parametrize("tokens", [1, 3, 70])
@pytest.mark.parametrize("outputs, inputs", [(1, 1), (5, 7), (33, 130), (64, 192)])
def test_a_product_is_exact_but_for_the_rounding_of_its_operands(tokens, outputs, inputs):
    x, weight = torch.randn(2, tokens, inputs), torch.randn(outputs, inputs)
    (x_int8, x_scale), (int8, scale) = quantize_rows(x.flatten(0, 1)), quantize_rows(weight)
    assert x_int8.abs().amax(-1).eq(127).all() and int8.dtype == torch.int8
    expected = (x_int8.double() * x_scale[:, None]) @ (int8.double() * scale[:, None]).T
    actual = int8_linear(x, int8, scale)
    torch.testing.assert_close(actual, expected.view(2, tokens, outputs).float(), atol=1e-4, rtol=1e-5)
    assert (actual - x @ weight.T).abs().max() < 0.01 * inputs, "half a step of each operand"


@pytest.mark.parametrize("counts", [[3, 0, 4], [0, 7, 0], [7, 0, 0]])
def test_rows_sorted_by_expert_meet_each_its_own_matrix(counts):
    x, weights = torch.randn(7, 24), torch.randn(3, 10, 24)
    matrices = [quantize_rows(weight) for weight in weights]
    experts = torch.arange(3).repeat_interleave(torch.tensor(counts))
    expected = torch.cat([int8_linear(row[None], *matrices[expert]) for row, expert in zip(x, experts)])
    torch.testing.assert_close(grouped_int8_linear(x, counts, matrices), expected)


def test_tokens_of_zeros_and_of_one_large_value_stay_finite():
    x = torch.zeros(3, 16)
    x[1, 5], x[2] = 1e4, 1e-30
    y = int8_linear(x, *quantize_rows(torch.ones(8, 16)))
    torch.testing.assert_close(y, torch.tensor([[0.0], [1e4], [0.0]]).expand(3, 8), atol=1e-9, rtol=1e-5)


def test_a_bias_is_added_and_bf16_gives_float32():
    linear = Linear(24, 10)
    y = Int8Linear(linear)(torch.randn(2, 5, 24).bfloat16())
    assert y.dtype == torch.float32 and y.shape == (2, 5, 10)
    assert Int8Linear(linear)(torch.zeros(1, 24)).equal(linear.bias[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_demos_loss_changes_by_less_than_a_hundredth_of_a_bit_per_byte(dtype):
    model, tokenizer = load("assets/demo", dtype)
    texts = [next(documents("README.md"))[:2000], "Once upon a time there was a little dog named Tom. " * 9]
    exact = evaluate(model, tokenizer, texts, 512).bits_per_byte
    int8_prefill.quantize(model)
    assert 0 < abs(evaluate(model, tokenizer, texts, 512).bits_per_byte - exact) < 0.01


def test_prompts_of_any_length_are_read_and_experts_are_watched_and_switched_off(tokenizer, checkpoint):
    model, _ = load(checkpoint, torch.float32)
    decode_model = DecodeModel(model, "int8")
    int8_prefill.quantize(model)
    off = [Intervention(expert, "off", layer=1) for expert in range(2)]
    for prompt in ("a", "a fox ran over the hill " * 8):
        params = SamplingParams(max_new_tokens=4, temperature=0)
        tokens = list(stream(model, tokenizer, prompt, params, interventions=off, decode_model=decode_model))
        assert len(tokens) == 4 and all(expert > 1 for token in tokens for expert, _ in token.experts[1])


def test_only_our_models_on_processors_with_int8_instructions_gain(model, llama, monkeypatch):
    monkeypatch.setattr(cpu_features, "cpu_flags", lambda: {"avx512vnni": True})
    assert int8_prefill.supports(model) and not int8_prefill.supports(llama)
    monkeypatch.setattr(cpu_features, "cpu_flags", lambda: {"avx2": True})
    assert not int8_prefill.supports(model)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_attention_is_in_bf16_where_that_is_fast(checkpoint, monkeypatch, has_bf16):
    model, _ = load(checkpoint, torch.float32)
    monkeypatch.setattr(cpu_features, "cpu_flags", lambda: {"avx512bf16": has_bf16})
    int8_prefill.quantize(model)
    dtypes = []

    def attend(*inputs):
        dtypes.append([value.dtype for value in inputs if isinstance(value, torch.Tensor)] + [inputs[-1]])
        return causal_attention(*inputs)

    monkeypatch.setattr("deepseek.model.attention.causal_attention", attend)
    with torch.inference_mode():
        assert model(torch.arange(1, 40)[None]).logits.isfinite().all()
    assert dtypes == [[torch.bfloat16 if has_bf16 else torch.float32] * 4] * model.config.num_hidden_layers
