from pathlib import Path

import pytest
import torch

from petseg.models import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("flags", "expected"), [("fpu sse avx512_bf16", "bf16"), ("fpu sse avx2", "fp32")])
def test_resolve_auto_is_bf16_only_if_the_cpu_supports_it(
    flags: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: f"processor : 0\nflags : {flags}\n")
    assert precision.resolve("auto", CPU) == expected
    assert precision.resolve("fp32", CPU) == "fp32"
    assert precision.resolve("bf16", CPU) == "bf16"


def test_autocast_output_has_the_given_precision() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with precision.autocast("bf16", CPU):
        assert layer(x).dtype == torch.bfloat16
    with precision.autocast("fp32", CPU):
        assert layer(x).dtype == torch.float32
