"""Exported networks equal PyTorch at any size and batch, and work without petseg."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from checkpoints import CONFIG, trained
from PIL import Image

import petseg
from petseg import files
from petseg.config import base
from petseg.config.model import ModelConfig
from petseg.config.train import TrainConfig
from petseg.data import oxford_pets
from petseg.jobs import export as job
from petseg.models import checkpoint, export
from petseg.models.checkpoint import TrainState
from petseg.training import run_folder

SIZES = [(1, 160, 160), (2, 17, 17), (4, 64, 33), (1, 45, 77), (3, 96, 250)]


def export_job(*flags: object) -> int:
    """Run the job in this process, because loading torch again would take longest."""
    before, sys.argv = sys.argv, ["jobs/export.py", *map(str, flags)]
    try:
        job.run()
    except SystemExit as exit:
        assert isinstance(exit.code, int)
        return exit.code
    finally:
        sys.argv = before
    raise AssertionError("a job exits")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on a folder that is marked as the pet dataset."""
    folder = tmp_path_factory.mktemp("runs")
    pets = folder / "pets"
    pets.mkdir()
    (pets / oxford_pets.DONE_FILE).write_text("{}")
    settings = TrainConfig(images=f"{pets}/images", masks=f"{pets}/masks", storage=str(folder), name="first")
    rows = {"id": ["a/1", "a/2", "a/3"], "image": [f"{pets}/images/a/{i}.jpg" for i in (1, 2, 3)], "mask": ["m"] * 3}
    pairs = pa.table(rows)
    run_folder.begin(settings, {"train": pairs.slice(0, 2), "val": pairs.slice(2)})
    model, optimizer = trained(0)
    epoch: dict[str, Any] = {"val_loss": 0.5, "val_miou": 0.625, "val_iou": {"pet": 0.75, "background": None}}
    checkpoint.save(str(folder / "first"), model, TrainState(optimizer.state_dict()), CONFIG, [epoch])
    return folder / "first"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    output = run.parent / "exported"
    assert export_job("--checkpoint", run, "--output", output, "--licence", "CC BY-SA 4.0") == 0
    return output


def expected(run: Path, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.load_model(checkpoint.find(str(run))).eval()(pixels).softmax(1)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_export_onnx_equals_pytorch(run: Path, exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    [taken], [given] = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("pixels", "tensor(uint8)", ["batch", 3, "height", "width"])
    assert (given.name, given.type, given.shape) == ("probabilities", "tensor(float)", ["batch", 3, "height", "width"])
    for count, height, width in [*SIZES, (1, 1, 1), (1, 5, 16)]:
        pixels = noise(count, 3, height, width)
        [found] = session.run(None, {"pixels": pixels.numpy()})
        np.testing.assert_allclose(np.asarray(found), expected(run, pixels).numpy(), atol=export.TOLERANCE, rtol=0)


def test_export_torch_export_equals_pytorch(run: Path, exported: Path) -> None:
    program = torch.export.load(exported / "model.pt2").module()
    for count, height, width in SIZES:
        pixels = noise(count, 3, height, width)
        torch.testing.assert_close(program(pixels), expected(run, pixels), atol=export.TOLERANCE, rtol=0)
    with pytest.raises(AssertionError, match="17"):
        program(noise(1, 3, 16, 40))


def test_export_config_and_checks_are_written(run: Path, exported: Path) -> None:
    files = {"MODEL_CARD.md", "checks.json", "config.json", "model.onnx", "model.pt2"}
    assert {path.name for path in exported.iterdir()} == files
    assert base.from_json(ModelConfig, (exported / "config.json").read_text(), "config.json") == CONFIG
    checks = json.loads((exported / "checks.json").read_text())
    assert checks["checkpoint"] == str(run / "checkpoints" / "epoch-0001")
    assert all(0 <= checks["largest_difference"][name] <= 1e-4 for name in ("model.onnx", "model.pt2"))


def test_model_card_has_classes_splits_and_scores(exported: Path) -> None:
    text = (exported / files.MODEL_CARD).read_text()
    for line in (
        "| 0 | pet | 242 61 61 |",
        "| train | 2 |",
        "| val | 1 |",
        "| mIoU | 0.625 |",
        "| IoU, pet | 0.750 |",
        "| IoU, background | – |",
        "The weights: CC BY-SA 4.0.",
    ):
        assert line in text.splitlines()
    assert (
        "The photos: The Oxford-IIIT" in text
        and "`1:0,2:1,3:2`" in text
        and torch.__version__.partition("+")[0] in text
    )


def test_model_card_example_gives_the_mask(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (exported / files.MODEL_CARD).read_text(), re.DOTALL)
    (tmp_path / "model.onnx").symlink_to(exported / "model.onnx")
    smooth = Image.fromarray(noise(6, 8, 3).numpy()).resize((80, 60), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "photo.jpg", "PNG")  # a PNG, so decoding reduces nothing
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)  # noqa: S102 - our own
    mask = petseg.load(str(run), precision="fp32").predict("photo.jpg")
    assert found["mask"].size == (80, 60)
    # The example enlarges classes, petseg enlarges probabilities. They differ at edges.
    assert (np.asarray(found["mask"]) == mask.class_ids).mean() > 0.9


def test_export_existing_output_is_refused(run: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (exported / "model.onnx").stat().st_mtime_ns
    assert export_job("--checkpoint", run, "--output", exported) == 2
    assert "it already has an export; choose another folder, or pass --overwrite" in capsys.readouterr().err
    assert export_job("--checkpoint", run, "--output", run, "--overwrite") == 2
    assert "it contains a config.json that no export wrote" in capsys.readouterr().err
    assert (exported / "model.onnx").stat().st_mtime_ns == before


def test_export_file_of_another_program_is_kept(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"another's")
    assert export_job("--checkpoint", run, "--output", tmp_path, "--formats", "torch", "--overwrite") == 2
    assert f"--output {tmp_path}: it contains a model.onnx that no export wrote" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"another's"
