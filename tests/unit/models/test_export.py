import pytest
import torch
from checkpoints import trained

from petseg.errors import InputError, JobError
from petseg.models import export


def test_export_model_that_differs_from_pytorch_is_refused() -> None:
    model, _ = trained(0)

    def run(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixels).softmax(1) + (2 * export.TOLERANCE if pixels.shape[0] == 3 else 0)

    with pytest.raises(JobError, match=r"model.onnx: at 3 × 17 × 40 a probability differs from PyTorch's by 2.0e-04"):
        export._difference(run, model, "model.onnx")


def test_require_packages_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"needs no_such_package; pip install -e '\.\[export\]'"):
        export.require_packages(("torch", "onnx"))
    export.require_packages(("torch",))
