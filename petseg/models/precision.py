"""Choose the numeric precision of the network on a device: bf16 or fp32."""

from pathlib import Path

import torch

from petseg.config.base import Precision

# Linux's names of CPU features with bf16 dot products in hardware: Intel AMX, AVX-512 (Intel, AMD) and Arm. Other CPUs
# emulate bf16, which is slower than fp32.
_BF16_CPU_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}


def resolve(precision: Precision, device: torch.device) -> Precision:
    """Return `precision`, with "auto" replaced by "bf16" if this machine's hardware supports it, else by "fp32"."""
    if precision != "auto":
        return precision
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    return "bf16" if has_bf16 else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which to run the network. `precision` must be resolved, not "auto"."""
    assert precision != "auto"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not _BF16_CPU_FLAGS.isdisjoint(cpuinfo.read_text().split())
