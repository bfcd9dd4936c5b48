"""The pretrained recipe through the jobs: train on two workers, predict, evaluate, load, export, other classes."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import RunJob, call_in
from PIL import Image

import petseg
from petseg import files
from petseg.models import checkpoint, export
from petseg.models.encoder_unet import EncoderUNet
from petseg.models.encoder_weights import DEFAULT_ENCODER, load_encoder_weights

FLAGS = ("--recipe", "pretrained", "--image-size", 32, 48, "--val-count", 7, "--num-workers", 2, "--cpus-per-worker", 1)
SAME_NUMBERS = ("--precision", "fp32", "--batch-size", 4)


@pytest.fixture(scope="module")
def storage(local_ray: None, tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Path, Path]) -> Path:
    """Folder with the run `first` of two epochs, trained by two workers, and its printed lines in `printed`."""
    folder = tmp_path_factory.mktemp("pretrained")
    flags = ("--images", drawn[0], "--masks", drawn[1], *FLAGS, *SAME_NUMBERS, "--storage", folder)
    done = call_in(folder, "train", *flags, "--epochs", 2, "--name", "first")
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


@pytest.mark.ray
def test_train_pretrained_starts_from_the_weights_and_describes_itself(storage: Path) -> None:
    assert "--recipe pretrained gives better masks" not in (storage / "printed").read_text()
    found = checkpoint.find(str(storage / "first"))
    assert (found.model.network, found.model.encoder) == ("encoder-unet", DEFAULT_ENCODER)
    assert found.model.encoder_library.startswith("timm ")
    start = load_encoder_weights(found.model, "")["encoder.conv_stem.weight"]
    trained = checkpoint.load_model(found).get_parameter("encoder.conv_stem.weight")
    assert 0 < (trained - start).abs().mean() < 0.1 * start.abs().mean()


@pytest.mark.ray
def test_predict_and_load_pretrained_give_the_same_masks(
    storage: Path, drawn: tuple[Path, Path], call_job: RunJob, tmp_path: Path
) -> None:
    flags = ("--checkpoint", storage / "first", "--images", drawn[0], "--precision", "fp32")
    for output, shape in (("one", ("--shard-size", 5)), ("two", ("--shard-size", 5, "--num-workers", 2))):
        done = call_job("predict", *flags, *shape, "--output", output)
        assert done.returncode == 0, done.stderr
    shards = [sorted(path.read_bytes() for path in (tmp_path / name).glob("part-*")) for name in ("one", "two")]
    assert len(shards[0]) == 5 and shards[0] == shards[1]
    photo = min(drawn[0].iterdir())
    mask = petseg.load(str(storage / "first"), precision="fp32").predict(str(photo))
    with Image.open(tmp_path / "one" / "masks" / f"{photo.stem}.png") as written:
        assert np.array_equal(np.asarray(written), mask.class_ids)


@pytest.mark.ray
def test_evaluate_pretrained_scores_each_class(
    storage: Path, drawn: tuple[Path, Path], call_job: RunJob, tmp_path: Path
) -> None:
    done = call_job(
        "evaluate", "--checkpoint", storage / "first", "--images", drawn[0], "--masks", drawn[1], "--output", "scores"
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert list(scores["iou"]) == ["pet", "background", "border"] and 0 < scores["cross_entropy"] < 2


@pytest.mark.ray
def test_export_pretrained_equals_pytorch(storage: Path, call_job: RunJob, tmp_path: Path) -> None:
    done = call_job("export", "--checkpoint", storage / "first", "--output", "exported")
    assert done.returncode == 0, done.stderr
    network = checkpoint.load_model(checkpoint.find(str(storage / "first"))).eval()
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "model.onnx")
    program = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    for shape in ((1, 3, 160, 160), (3, 3, 33, 77)):
        pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        with torch.inference_mode():
            expected = network(pixels).softmax(1)
        [from_onnx] = session.run(None, {"pixels": pixels.numpy()})
        np.testing.assert_allclose(np.asarray(from_onnx), expected.numpy(), atol=export.TOLERANCE, rtol=0)
        torch.testing.assert_close(program(pixels), expected, atol=export.TOLERANCE, rtol=0)
    card = (tmp_path / "exported" / files.MODEL_CARD).read_text()
    library = checkpoint.find(str(storage / "first")).model.encoder_library
    source = f"encoder {DEFAULT_ENCODER} ({library}): trained on ImageNet-1k by Google (Apache-2.0); decoder: random"
    assert f"| weights at the start | {source} |" in card


@pytest.mark.ray
def test_init_from_pretrained_run_with_other_classes_keeps_the_encoder(
    storage: Path, drawn: tuple[Path, Path], call_job: RunJob, tmp_path: Path
) -> None:
    two = ("--classes", "pet,other", "--label-map", "1:pet,2:other,3:other", "--learning-rate", 1e-9, "--epochs", 1)
    flags = ("--images", drawn[0], "--masks", drawn[1], *FLAGS, *two, "--init-from", storage / "first")
    done = call_job("train", *flags, "--name", "second")
    assert done.returncode == 0, done.stderr
    assert "the last layer starts from random weights" in done.stdout
    second = checkpoint.load_model(checkpoint.find(str(tmp_path / "runs" / "second")))
    assert isinstance(second, EncoderUNet) and second.num_classes == 2
    before = checkpoint.load_model(checkpoint.find(str(storage / "first"))).get_parameter("encoder.conv_stem.weight")
    assert torch.allclose(before, second.get_parameter("encoder.conv_stem.weight"), atol=1e-6)
