"""Which dtype is taken on which machine."""

import pytest
import torch

from deepseek.model import cpu_features


@pytest.mark.parametrize(
    "flags, name, fast, dtype",
    [
        ({}, "haswell", False, torch.float32),
        ({"avx512bf16": True}, "sapphirerapids", False, torch.bfloat16),
        ({"avx512bf16": True, "amx-tile": True}, "sapphirerapids", True, torch.bfloat16),
        ({"avx512bf16": True}, "znver4", True, torch.bfloat16),
        ({"avx512bf16": True}, "znver5", True, torch.bfloat16),
    ],
)
def test_the_cpu_decides(monkeypatch, flags, name, fast, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cpu_features, "cpu_flags", lambda: flags)
    monkeypatch.setattr(cpu_features, "cpu_name", lambda: name)
    assert cpu_features.fast_in_bf16(torch.device("cpu")) is fast
    assert cpu_features.fast_in_bf16(torch.device("cuda"))
    assert cpu_features.preferred_dtype() == dtype


def test_a_gpu_takes_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpu_features, "cpu_flags", lambda: {})
    assert cpu_features.preferred_dtype() == torch.bfloat16


def test_the_flags_are_those_that_torch_reads():
    """llvmlite is asked, for it costs no import of torch; the two must agree on this processor."""
    assert cpu_features.has_amx_tiles() == torch.cpu._is_amx_tile_supported()
    assert cpu_features.has_bf16_instructions() == (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
