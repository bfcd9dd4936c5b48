"""Photos that EXIF turns, with masks that were drawn on the upright photo or on the photo as it is stored."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import RunJob
from PIL import Image, ImageOps

from cases.folders import TURNS
from petseg.config.prepare import ShardsConfig
from petseg.data import manifest, orientation, prepared, prepared_writer
from petseg.data.classes import Classes
from petseg.data.labels import LabelMap, palette
from petseg.data.pairs import UnclearMaskError, decode_pair
from petseg.errors import InputError
from petseg.pipelines import decode
from petseg.pipelines.prepare import prepare_shards

WIDE, SQUARE = (16, 32), (32, 32)
"""Height and width of upright photos."""

TURN = {1: None, **TURNS}
"""How a camera with each EXIF orientation stores an upright picture."""

LABELS = LabelMap.parse("", 3)


def upright_ids(size_hw: tuple[int, int]) -> np.ndarray:
    """Return class ids that each of the eight orientations turns into something else."""
    ids = np.zeros(size_hw, np.uint8)
    ids[:4], ids[:, :8] = 1, 2
    return ids


def stored(pixels: np.ndarray, how: int) -> Image.Image:
    image, turn = Image.fromarray(pixels), TURN[how]
    return image if turn is None else image.transpose(turn)


def encoded(image: Image.Image, how: int = 1) -> bytes:
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = how
    image.save(content, "PNG", exif=exif)
    return content.getvalue()


def files(size_hw: tuple[int, int], how: int, masks_upright: bool) -> tuple[bytes, bytes]:
    """Return a photo with this orientation, and its mask, drawn on the upright or on the stored photo."""
    ids = upright_ids(size_hw)
    photo = encoded(stored(ids * 100, how), how)
    return photo, encoded(stored(ids + 1, 1 if masks_upright else how))


@pytest.mark.parametrize("masks_upright", [True, False])
@pytest.mark.parametrize("how", TURN)
@pytest.mark.parametrize("size_hw", [WIDE, SQUARE])
def test_mask_of_a_turned_photo_lies_as_it_was_drawn(size_hw: tuple[int, int], how: int, masks_upright: bool) -> None:
    pair = decode_pair(*files(size_hw, how, masks_upright), size_hw, LABELS, 10**6, masks_upright=masks_upright)
    assert (pair.class_ids == upright_ids(size_hw)).all()
    assert (pair.truth_ids() == upright_ids(size_hw)).all()
    assert (pair.photo.pixels[..., 0] == upright_ids(size_hw) * 100).all()


@pytest.mark.parametrize(("size_hw", "hows"), [(WIDE, (2, 3, 4)), (SQUARE, range(2, 9))])
def test_mask_whose_size_shows_nothing_is_not_guessed(size_hw: tuple[int, int], hows: Any) -> None:
    for how in hows:
        with pytest.raises(UnclearMaskError, match=r"--masks-upright yes .*, or no"):
            decode_pair(*files(size_hw, how, True), size_hw, LABELS, 10**6)


def write_set(folder: Path, clear: list[bool], unclear: bool) -> tuple[str, str]:
    """Write wide photos whose masks are upright if `clear` says so, and then photos whose masks are unclear."""
    (folder / "photos").mkdir(parents=True)
    (folder / "masks").mkdir()
    pairs = [(WIDE, 6, is_upright) for is_upright in clear]
    pairs += [(WIDE, 1, True), (WIDE, 3, unclear), (SQUARE, 8, unclear)]
    for number, (size_hw, how, is_upright) in enumerate(pairs):
        photo, mask = files(size_hw, how, is_upright)
        (folder / "photos" / f"{number}.png").write_bytes(photo)
        (folder / "masks" / f"{number}.png").write_bytes(mask)
    return str(folder / "photos"), str(folder / "masks")


MIXED = ([True, False], "2 masks .*such as 3: the sizes do not show")
NOTHING_CLEAR = ([], "2 masks .*such as 1: the sizes do not show")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestSets:
    @pytest.mark.parametrize("masks_upright", [True, False])
    def test_unclear_masks_follow_the_clear_ones(
        self, masks_upright: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pairs = manifest.discover(*write_set(tmp_path, [masks_upright], masks_upright))
        [decoded] = decode.decode({"training": pairs}, SQUARE, LABELS, "nearest")
        [block] = decode.ray.get(decoded.blocks)
        for mask in block["mask"].to_pylist():
            ids = np.frombuffer(mask, np.uint8).reshape(SQUARE)
            assert (ids[2, 20], ids[20, 2], ids[20, 20]) == (1, 2, 0)
        assert "note: 2 masks of photos that EXIF turns, such as 2: used as drawn on" in capsys.readouterr().out

    @pytest.mark.parametrize(("clear", "message"), [MIXED, NOTHING_CLEAR])
    def test_unclear_masks_without_a_rule_ask_for_the_flag(
        self, clear: list[bool], message: str, tmp_path: Path
    ) -> None:
        pairs = manifest.discover(*write_set(tmp_path, clear, True))
        with pytest.raises(InputError, match=message):
            decode.decode({"training": pairs}, SQUARE, LABELS)
        [decoded] = decode.decode({"training": pairs}, SQUARE, LABELS, masks_upright="yes")
        assert decoded.num_rows == pairs.num_rows

    def test_prepared_set_unclear_masks_follow_the_clear_ones(self, tmp_path: Path) -> None:
        images, masks = write_set(tmp_path, [True], True)
        config = ShardsConfig(images=images, masks=masks, output=str(tmp_path / "set"), image_size=SQUARE, shard_size=1)
        pairs = manifest.discover(images, masks)
        classes = Classes(("a", "b", "c"), palette(3), LABELS)
        target, done = prepared_writer.make_target(pairs, config, classes), {}
        for shard, summary in prepare_shards(target, pairs, done, LABELS, skip_bad=False):
            done[shard] = summary
        prepared_writer.finish(target, pairs, done)
        settings = prepared.open_set(config.output).settings
        assert settings.rows == 4
        for name in settings.files:
            mask = pq.read_table(tmp_path / "set" / name)["mask"][0].as_py()
            ids = np.frombuffer(mask, np.uint8).reshape(SQUARE)
            assert (ids[2, 20], ids[20, 2], ids[20, 20]) == (1, 2, 0), name

    def test_prepared_set_without_a_rule_is_not_finished(self, tmp_path: Path) -> None:
        images, masks = write_set(tmp_path, [], True)
        config = ShardsConfig(images=images, masks=masks, output=str(tmp_path / "set"), shard_size=1)
        pairs = manifest.discover(images, masks)
        target = prepared_writer.make_target(pairs, config, Classes(("a", "b", "c"), palette(3), LABELS))
        with pytest.raises(InputError, match="pass --masks-upright yes"):
            dict(prepare_shards(target, pairs, {}, LABELS, skip_bad=True))
        assert prepared_writer.find_done(target).keys() == {0}


@pytest.mark.parametrize("masks_upright", [True, False])
def test_evaluation_unclear_masks_follow_the_clear_ones(masks_upright: bool, tmp_path: Path, call_job: RunJob) -> None:
    write_set(tmp_path, [masks_upright], masks_upright)
    (tmp_path / "masks" / "classes.json").write_text('{"classes": ["a", "b", "c"], "label_map": "1:0,2:1,3:2"}')
    (tmp_path / "upright").mkdir()
    for photo in (tmp_path / "photos").iterdir():
        with Image.open(photo) as image:
            width, height = ImageOps.exif_transpose(image).size
        ids = upright_ids((height, width))
        Image.fromarray(ids + 1).save(tmp_path / "upright" / photo.name)
    flags = ("--images", "photos", "--masks", "masks", "--output", "out")
    done = call_job("evaluate", "--from", "upright", *flags)
    assert done.returncode == 0, done.stderr
    assert "note: 2 masks of photos that EXIF turns, such as 2: used as drawn on" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["pixel_accuracy"] == 1 and metrics["pixels"] == 3 * math.prod(WIDE) + math.prod(SQUARE)
    assert pq.read_table(tmp_path / "out" / "per_image.parquet")["error"].null_count == 4


@pytest.mark.parametrize(("clear", "message"), [MIXED, NOTHING_CLEAR])
def test_evaluation_unclear_masks_without_a_rule_ask_for_the_flag(
    clear: list[bool], message: str, tmp_path: Path, call_job: RunJob
) -> None:
    write_set(tmp_path, clear, True)
    (tmp_path / "masks" / "classes.json").write_text('{"classes": ["a", "b", "c"], "label_map": "1:0,2:1,3:2"}')
    flags = ("--from", "masks", "--images", "photos", "--masks", "masks", "--output", "out")
    done = call_job("evaluate", *flags)
    assert done.returncode == 2 and re.search(message, done.stderr)
    done = call_job("evaluate", *flags, "--masks-upright", "yes")
    assert done.returncode == 0, done.stderr


def test_decision_needs_clear_masks_that_agree() -> None:
    assert orientation.decision({"upright": 3, "unclear": 5}) is True
    assert orientation.decision({"as stored": 1, "unclear": 5}) is False
    assert orientation.decision({"unclear": 5}) is None
    assert orientation.decision({"as stored": 1, "upright": 9}) is None
