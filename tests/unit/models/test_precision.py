from pathlib import Path

import pytest
import torch

from petseg.config import base
from petseg.models import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("flags", "expected"), [("fpu sse avx512_bf16", "bf16"), ("fpu sse avx2", "fp32")])
def test_auto_is_bf16_where_the_cpu_has_it(flags: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: f"processor : 0\nflags : {flags}\n")
    assert precision.resolve("auto", CPU) == expected
    assert precision.resolve("fp32", CPU) == "fp32"
    assert precision.resolve("bf16", CPU) == "bf16"


def test_autocast() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with precision.autocast("bf16", CPU):
        assert layer(x).dtype == torch.bfloat16
    with precision.autocast("fp32", CPU):
        assert layer(x).dtype == torch.float32


def test_hardware_that_has_bf16_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else computes meanwhile would change the answer, and so the numbers of a run."""
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision.time, "perf_counter", None)
    assert precision.quicker(CPU) == "bf16"


def test_what_is_quicker_is_measured_and_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    before = torch.random.get_rng_state()
    assert precision.quicker(torch.device("cpu")) in ("bf16", "fp32")
    assert torch.equal(torch.random.get_rng_state(), before)
    clock = iter(range(1000))  # each call of it is a second later, and bf16 takes one call more
    autocast = precision.autocast

    def slow(arithmetic: base.Precision, device: torch.device) -> torch.autocast:
        if arithmetic == "bf16":
            next(clock)
        return autocast(arithmetic, device)

    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(precision, "autocast", slow)
    assert precision.quicker(torch.device("cpu")) == "fp32"
