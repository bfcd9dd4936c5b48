"""`petseg.load`: a photo's mask equals the one that the prediction job writes."""

import ast
import gc
import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from checkpoints import CONFIG, save
from PIL import Image

import petseg
from petseg.data import decode, encode
from petseg.data.tiles import Tiling
from petseg.errors import InputError
from petseg.inference.plan import Outputs
from petseg.inference.predictor import Predictor
from petseg.inference.shard import predict_shard, read_shard
from petseg.models import checkpoint

MAX_PIXELS = 10**6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint of an almost untrained network."""
    folder = tmp_path_factory.mktemp("run")
    save(folder, 0.5)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG of 50 × 70 pixels (width × height), stored rotated with an EXIF orientation."""
    path = tmp_path_factory.mktemp("photo") / "cat.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((70, 50), Image.Resampling.BILINEAR).save(path, exif=exif)
    return path


def row_of_job(run: Path, photo: Path, tiling: Tiling | None) -> dict[str, Any]:
    """Return the row that the prediction job writes for a photo, computed without Ray."""
    found = checkpoint.find(str(run))
    predictor = Predictor(
        checkpoint.load_model(found), torch.device("cpu"), 8, CONFIG.image_size, tiling=tiling, probabilities=True
    )
    common: Any = {"size_hw": CONFIG.image_size, "max_pixels": MAX_PIXELS}
    table = pa.table({"id": ["cat"], "image": [str(photo)], "shard": [0]})
    table = read_shard(table, **common, tiling=tiling)
    with ThreadPoolExecutor(1) as pool:
        table = predict_shard(
            table,
            **common,
            outputs=Outputs(probabilities=True),
            palette=CONFIG.palette,
            predict=predictor,
            predict_tiled=predictor.tiled,
            pool=pool,
        )
    return table.to_pylist()[0]


@pytest.mark.parametrize(("tile", "overlap"), [(None, 0), ((32, 24), 8), ((32, 24), 3), ((80, 24), 6), ((70, 50), 12)])
def test_predict_photo_mask_equals_that_of_the_job(
    run: Path, photo: Path, tile: tuple[int, int] | None, overlap: int
) -> None:
    row = row_of_job(run, photo, tile and Tiling(tile, overlap))
    segmenter = petseg.load(str(run), tile=tile, tile_overlap=overlap if tile else None, probabilities=True)
    for source in (photo, str(photo), f"file://{photo}", photo.read_bytes()):
        mask = segmenter.predict(source)
        assert mask.class_ids.shape == (70, 50) and mask.class_ids.dtype == np.uint8
        assert encode.encode_mask(mask.class_ids, CONFIG.palette) == row["mask_png"]
        assert (mask.class_pixels, mask.confidence) == (row["class_pixels"], pytest.approx(row["confidence"]))
        assert mask.probabilities is not None
        assert [encode.encode_grey(of_class) for of_class in mask.probabilities] == row["probability_pngs"]


def test_load_default_tile_overlap_equals_that_of_the_job(run: Path, photo: Path) -> None:
    mask = petseg.load(str(run), tile=(32, 24)).predict(photo)
    assert encode.encode_mask(mask.class_ids, CONFIG.palette) == row_of_job(run, photo, Tiling((32, 24), 6))["mask_png"]
    assert mask.probabilities is None


def test_predict_decoded_image_equals_its_file(run: Path, photo: Path) -> None:
    segmenter = petseg.load(str(run), precision="fp32")
    buffer = io.BytesIO()
    decode.decode_whole(photo.read_bytes(), MAX_PIXELS).save(buffer, "PNG")  # a PNG, so decoding reduces nothing
    expected = segmenter.predict(buffer.getvalue())
    opened = Image.open(photo)
    upright = np.asarray(Image.open(buffer))
    for image in (opened, Image.fromarray(upright), Image.fromarray(upright).convert("RGBA"), upright):
        mask = segmenter.predict(image)
        assert np.array_equal(mask.class_ids, expected.class_ids)
    assert opened.mode == "RGB" and opened.size == (70, 50)


def test_load_and_predict_pillow_limit_is_restored(run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # below the photo's number of pixels
    petseg.load(str(run)).predict(photo)
    petseg.load(str(run), tile=(32, 24)).predict(photo)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_segmenter_that_is_dropped_ends_its_threads(run: Path, photo: Path) -> None:
    before = set(threading.enumerate())
    segmenter = petseg.load(str(run))
    segmenter.predict(photo)
    started = set(threading.enumerate()) - before
    assert started
    del segmenter
    gc.collect()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_picture_has_class_ids_and_palette(run: Path, photo: Path) -> None:
    segmenter = petseg.load(str(run))
    mask = segmenter.predict(photo)
    picture = segmenter.picture(mask)
    assert np.array_equal(np.asarray(picture), mask.class_ids)
    colours = np.asarray(segmenter.model.palette, np.uint8)
    assert np.array_equal(np.asarray(picture.convert("RGB")), colours[mask.class_ids])
    assert segmenter.model.class_names == CONFIG.class_names


def test_load_and_predict_invalid_input_is_refused(run: Path, tmp_path: Path) -> None:
    segmenter = petseg.load(str(run), max_pixels=100)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    for image, message in {
        str(tmp_path / "none.jpg"): r"none\.jpg: cannot be read: No such file",
        str(tmp_path / "broken.jpg"): r"broken\.jpg: not an image that can be read",
        str(tmp_path / "large.png"): r"large\.png: 20 × 20 pixels are more than the limit of 100",
        b"broken": "^image: not an image",
    }.items():
        with pytest.raises(InputError, match=message):
            segmenter.predict(image)
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match=r"uint8 \(H, W, 3\) is expected"):
            segmenter.predict(array)
    with pytest.raises(InputError, match="I;16; give the file's path"):
        segmenter.predict(Image.new("I;16", (4, 4)))
    with pytest.raises(InputError, match="neither a run's folder nor a complete checkpoint"):
        petseg.load(str(tmp_path))
    with pytest.raises(InputError, match="--tile 8 8"):
        petseg.load(str(run), tile=(8, 8))


def test_import_petseg_loads_no_other_package() -> None:
    code = "import sys; before = set(sys.modules); import petseg; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name for name in ast.literal_eval(done.stdout) if name.split(".")[0] not in sys.stdlib_module_names} - {
        "petseg"
    }
