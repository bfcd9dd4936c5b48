"""Export a network to ONNX and torch.export, as bytes, for programs without petseg and Ray. No files and no Ray here.

Both formats take `pixels`, uint8 RGB (N, 3, H, W), and give `probabilities`, float32 (N, C, H, W), at the same size.
The model scales its input itself. Its batch norms are folded. Sides that 16 does not divide are padded, and the output
is cropped.
"""

import importlib.util
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from petseg.config.export import ExportFormat
from petseg.errors import InputError, JobError
from petseg.models.network import Network

FILES: dict[ExportFormat, str] = {"onnx": "model.onnx", "torch": "model.pt2"}

INPUT, OUTPUT = "pixels", "probabilities"

TOLERANCE = 1e-4
"""Largest allowed difference of a probability from PyTorch's. Rounding alone gives about 1e-6."""

_CHECKED = ((1, 160, 160), (3, 0, 40), (2, 100, 37), (1, 333, 500))

_EXAMPLE = (2, 3, 45, 77)
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Tensor], Tensor]


class _Probabilities(nn.Module):
    """The network for inference, batch norms folded, followed by a softmax."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        # PyTorch saves contiguous weights without a warning. A runtime chooses its own memory order.
        self.network = model.for_inference().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels).softmax(1)


def require_packages(formats: tuple[ExportFormat, ...]) -> None:
    """Raise `InputError` if a package is missing that one of the formats needs."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise InputError(
            f"--formats onnx: needs {', '.join(missing)}; pip install -e '.[export]', or give --formats torch"
        )


def export(model: Network, formats: tuple[ExportFormat, ...]) -> dict[str, tuple[bytes, float]]:
    """Export a network: {file name: (content, largest difference of a probability from PyTorch's)}, one per format.

    Raises `JobError` if a probability differs by more than `TOLERANCE` at one of `checked_shapes`.
    """
    sizes = {0: torch.export.Dim("batch")} | {
        axis: torch.export.Dim(name, min=min_side(model)) for axis, name in ((2, "height"), (3, "width"))
    }
    example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    program = torch.export.export(_Probabilities(model).eval(), (example,), dynamic_shapes=(sizes,))
    made = {}
    for name in formats:
        content, run = _MAKERS[name](program)
        made[FILES[name]] = content, _difference(run, model, FILES[name])
    return made


def min_side(model: Network) -> int:
    """Return the smallest height and width in pixels that `model.pt2` takes.

    Below it, the narrowest layer has one pixel, and PyTorch would have to compile that case separately.
    """
    return model.stride + 1


def checked_shapes(model: Network) -> list[tuple[int, int, int]]:
    """Return the (batch size, height, width) at which an exported model is compared with PyTorch.

    They all differ from the shape of the example that the model was exported with.
    """
    least = min_side(model)
    return [(count, max(least, height), max(least, width)) for count, height, width in _CHECKED]


def _to_onnx(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    import onnxruntime

    names = ({0: "batch", 2: "height", 3: "width"},)
    made = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=names, verbose=False
    )
    assert made is not None
    content = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Tensor:
        [probabilities] = session.run([OUTPUT], {INPUT: pixels.numpy()})
        return torch.from_numpy(np.asarray(probabilities))

    return content, run


def _to_torch(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue(), torch.export.load(io.BytesIO(buffer.getvalue())).module()


_MAKERS: dict[ExportFormat, Callable[[Any], tuple[bytes, Run]]] = {"onnx": _to_onnx, "torch": _to_torch}


@torch.no_grad()
def _difference(run: Run, model: Network, name: str) -> float:
    """Return the largest difference of a probability from the unfolded `model`'s, over `checked_shapes`.

    Raises `JobError` if it is more than `TOLERANCE`.
    """
    model.eval()
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for count, height, width in checked_shapes(model):
        pixels = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
        actual, expected = run(pixels), model(pixels).softmax(1)
        assert actual.shape == expected.shape and actual.dtype == torch.float32
        difference = (actual - expected).abs().max().item()
        if not difference <= TOLERANCE:
            raise JobError(
                f"{name}: at {count} × {height} × {width} a probability differs from PyTorch's by {difference:.1e}, "
                f"more than {TOLERANCE:.0e}; nothing was written. Try other versions of torch and onnxruntime"
            )
        largest = max(largest, difference)
    return largest
