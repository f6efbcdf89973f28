"""Which dtype is fast on this machine. Importing this module does not import torch."""

from functools import cache

from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

cpu_flags, cpu_name = cache(get_host_cpu_features), cache(get_host_cpu_name)  # every forward asks


def has_amx_tiles() -> bool:
    """Whether the CPU has AMX tile registers, for large bf16 matrix products."""
    return cpu_flags().get("amx-tile", False)


def has_bf16_instructions() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); elsewhere it is emulated, four times slower."""
    return cpu_flags().get("avx512bf16", False) or has_amx_tiles()


def has_int8_instructions() -> bool:
    """Whether the CPU multiplies int8 natively (VNNI or AMX): large products take half of bf16's time on AMD's Zen 4."""
    return any(cpu_flags().get(flag, False) for flag in ("avx512vnni", "avxvnni", "amx-int8"))


def fast_in_bf16(device) -> bool:
    """Whether large products on a torch device are faster in bf16 than in fp32.

    On CPUs with AMX tiles they are. With AVX512-BF16 alone they take a third of the time on AMD's Zen 4 and a quarter on Zen 5,
    but twice the time on Intel's. Decided by the processor's name and not by a measurement, so that a resumed run keeps its
    precision.
    """
    return device.type != "cpu" or has_amx_tiles() or cpu_name() in ("znver4", "znver5")


def preferred_dtype():
    """The torch dtype to load models in: bfloat16 on a GPU or a CPU with bf16 instructions, else float32."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() or has_bf16_instructions() else torch.float32
