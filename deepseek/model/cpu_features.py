"""TODO"""

import torch
from llvmlite.binding import get_host_cpu_name


def fast_in_bf16(device: torch.device) -> bool:
    """Whether large products are faster in bf16 than in fp32.

    On processors with AMX tiles they are; with AVX512-BF16 alone they take a quarter of the time on AMD's Zen 5, but twice the
    time on Intel's. By name and not by the clock, so that a run that is resumed goes on as it began.
    """
    return device.type != "cpu" or torch.cpu._is_amx_tile_supported() or get_host_cpu_name() == "znver5"


def preferred_dtype() -> torch.dtype:
    """bfloat16 on a GPU, or a processor with bfloat16 instructions; elsewhere it is emulated, four times slower."""
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
