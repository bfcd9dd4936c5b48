"""The arithmetic the network runs in on a device. Layer 0: torch only, no model, no Ray."""

import time
from pathlib import Path

import torch

from petseg.config.base import Precision

# What Linux calls bf16 dot products in hardware: Intel AMX, AVX-512 (Intel, AMD) and Arm. Elsewhere a CPU emulates
# bf16, which is slower than fp32.
_BF16_CPU_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}


def resolve(precision: Precision, device: torch.device) -> Precision:
    """`precision`, with "auto" replaced by "bf16" where the hardware of this machine has it, else by "fp32"."""
    if precision != "auto":
        return precision
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    return "bf16" if has_bf16 else "fp32"


def quicker(device: torch.device) -> Precision:
    """The arithmetic in which a convolution of the network, there and back, takes less time on this device: bf16 where
    the hardware has it. A CPU that has not is measured, in a tenth of a second, as no list of processors knows what
    emulates bf16, and how badly.

    Two measurements may differ, above all where something else computes meanwhile: whoever needs one answer for several
    processes, or again after a restart, must keep the first.
    """
    if device.type == "cuda" or _cpu_has_bf16():
        return resolve("auto", device)
    conv = torch.nn.utils.skip_init(torch.nn.Conv2d, 64, 64, 3, padding=1, device=device)
    torch.nn.init.constant_(conv.weight, 0.01)  # pyright: ignore[reportArgumentType] - its stub says Tensor or Module
    conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in the stubs
    x = torch.ones(8, 64, 40, 40, device=device).contiguous(memory_format=torch.channels_last)

    def seconds(arithmetic: Precision) -> float:
        started = time.perf_counter()
        with autocast(arithmetic, device):
            y = conv(x)
        y.float().sum().backward()
        return time.perf_counter() - started

    taken = [(seconds("fp32"), seconds("bf16")) for _ in range(8)]
    fp32, bf16 = (min(times) for times in zip(*taken, strict=True))
    return "bf16" if bf16 < fp32 else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which to run the network; `precision` must be resolved."""
    assert precision != "auto"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not _BF16_CPU_FLAGS.isdisjoint(cpuinfo.read_text().split())
