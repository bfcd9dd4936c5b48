import io
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARD_SIZE_HW, do_shards, make_plan
from PIL import Image

from petseg.data import manifest
from petseg.data.tiles import Tiling
from petseg.inference import output_folder
from petseg.inference.plan import Outputs, schema
from petseg.inference.shard import read_shard

EVERYTHING = Outputs(overlay=True, probabilities=True, coco_rle=True)


def write_all(photos: Path, output: Path, **changes: object) -> list[dict]:
    plan = make_plan(photos, output, **changes)
    output_folder.begin(plan)
    done = do_shards(plan, *range(plan.target.num_shards))
    output_folder.finish(plan, done)
    return pa.concat_tables([pq.read_table(file) for file in sorted(output.glob("part-*"))]).to_pylist()


def test_write_shard_every_photo_has_a_row_and_every_mask_its_files(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    found = write_all(photos, output, outputs=EVERYTHING)
    assert [file.name for file in sorted(output.glob("part-*"))] == [f"part-0000{i}-of-00003.parquet" for i in range(3)]
    for file in output.glob("part-*"):
        assert pq.read_schema(file).remove_metadata() == schema(EVERYTHING)
    assert [row["id"] for row in found] == ["a/0", "a/2", "a/4", "a/6", "b/1", "b/3", "b/5"]
    for row in found:
        number = int(row["id"][2:])
        png, jpg = output / "masks" / f"{row['id']}.png", output / "overlays" / f"{row['id']}.jpg"
        assert row["image"] == str(photos / f"{row['id']}.jpg")
        if number == 3:
            assert row["error"].startswith("not an image")
            assert all(row[key] is None for key in row if key not in ("id", "image", "error"))
            assert not png.exists() and not jpg.exists()
            continue
        assert row["error"] is None
        size, winner = (20, 30 + number), number % 3
        assert (row["height"], row["width"], row["confidence"]) == (*size, 0.75)
        assert row["class_pixels"] == [size[0] * size[1] if i == winner else 0 for i in range(3)]
        assert png.read_bytes() == row["mask_png"]
        mask = Image.open(io.BytesIO(row["mask_png"]))
        assert (mask.mode, mask.size, mask.getextrema()) == ("P", size[::-1], (winner, winner))
        for class_id, content in enumerate(row["probability_pngs"]):
            grey = Image.open(io.BytesIO(content))
            assert (grey.mode, grey.size, grey.getextrema()) == (
                "L",
                size[::-1],
                (191 if class_id == winner else 32,) * 2,
            )
        assert [rle["size"] for rle in row["coco_rle"]] == [list(size)] * 3
        everywhere = row["coco_rle"][winner]["counts"]
        assert {rle["counts"] for rle in row["coco_rle"]} - {everywhere} and everywhere[0] == "0"
        with Image.open(jpg) as overlay:
            assert overlay.size == size[::-1]
            colour = np.array([255 * (channel == winner) for channel in range(3)])
            expected = (colour + np.array(mask.convert("RGB"))[0, 0]) / 2
            assert np.abs(np.asarray(overlay).mean((0, 1)) - expected).max() < 6

    success = json.loads((output / "_SUCCESS.json").read_text())
    assert (success["images"], success["failed"], success["shards"]) == (7, 1, 3)
    assert success["plan"]["checkpoint_sha256"] == "c0ffee"


def test_write_shard_without_png_masks_are_only_in_parquet(photos: Path, tmp_path: Path) -> None:
    found = write_all(photos, tmp_path / "out", outputs=Outputs(png=False))
    assert not (tmp_path / "out" / "masks").exists()
    assert [row["mask_png"] is None for row in found] == [row["id"] == "b/3" for row in found]
    assert set(found[0]) == set(schema(Outputs()).names)


def test_write_shard_photo_deleted_after_a_kill_leaves_no_mask_file(photos: Path, tmp_path: Path) -> None:
    """The first start wrote the mask, but was killed before the shard was complete."""
    plan = make_plan(photos, tmp_path / "out", outputs=EVERYTHING)
    output_folder.begin(plan)
    do_shards(plan, 0)
    Path(plan.target.location(0)).unlink()
    (photos / "a" / "2.jpg").unlink()
    assert do_shards(plan, 0)[0].failed == 1
    left = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*/*/*"))
    assert left == ["masks/a/0.png", "masks/a/4.png", "overlays/a/0.jpg", "overlays/a/4.jpg"]


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Run without root's permission to read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_read_shard_missing_empty_or_too_large_photo_is_an_error_row(photos: Path, tmp_path: Path) -> None:
    """Photos: deleted between listing and reading, empty, and larger than the limit."""
    found = manifest.discover(str(photos))
    (photos / "a" / "0.jpg").unlink()
    (photos / "a" / "2.jpg").write_bytes(b"")
    Image.new("1", (1001, 1000)).save(photos / "a" / "4.jpg")
    errors = read_shard(found, SHARD_SIZE_HW, 10**6)["error"].to_pylist()
    assert errors[0] == "cannot be read: No such file or directory"
    assert errors[1] == "the file is empty"
    assert errors[2] == "1001 × 1000 pixels are more than the limit of 1000000"
    assert errors[3] is None


def test_read_shard_bug_in_our_code_is_not_an_error_row(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("planted")

    monkeypatch.setattr("petseg.inference.shard.decode_opened", fail)
    with pytest.raises(AttributeError, match="planted"):
        read_shard(manifest.discover(str(photos)), SHARD_SIZE_HW, 10**6)


def test_read_shard_out_of_memory_once_photo_is_decoded_in_a_subprocess(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = manifest.discover(str(photos)).slice(0, 2)
    expected = read_shard(found, SHARD_SIZE_HW, 10**6)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("petseg.inference.shard.decode_opened", fail)  # in this process only
    assert read_shard(found, SHARD_SIZE_HW, 10**6).equals(expected)


def test_read_shard_photo_without_permission_is_an_error_row(photos: Path, request: pytest.FixtureRequest) -> None:
    found = manifest.discover(str(photos))
    (photos / "a" / "0.jpg").chmod(0)
    request.getfixturevalue("as_nobody")
    assert read_shard(found, SHARD_SIZE_HW, 10**6)["error"][0].as_py() == "cannot be read: Permission denied"


KINDS = {
    "8 bits.png": (Image.new("L", (40, 30), 200), {}),
    "16 bits.png": (Image.fromarray(np.full((30, 40), 200 * 257, np.uint16)), {}),
    "cmyk.jpg": (Image.new("CMYK", (40, 30), (0, 200, 200, 0)), {}),
    "animated.gif": (
        Image.new("RGB", (40, 30), "red"),
        {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "blue")]},
    ),
    "palette.png": (Image.new("P", (40, 30), 3), {}),
    "alpha.webp": (Image.new("RGBA", (40, 30), (255, 0, 0, 9)), {}),
}


def test_predict_shard_unusual_colour_modes_have_masks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, (image, options) in KINDS.items():
        image.save(tmp_path / "photos" / name, **options)
    found = write_all(tmp_path / "photos", tmp_path / "out")
    assert len(found) == len(KINDS)
    assert all(row["error"] is None and (row["height"], row["width"]) == (30, 40) for row in found)


def test_read_shard_photo_larger_than_a_tile_is_decoded_later(photos: Path, tmp_path: Path) -> None:
    """A photo within one tile is decoded while reading, a larger one is not. The rows are the same with and without
    tiles, because the predictor of the tests sees one colour only."""
    found = manifest.discover(str(photos))
    table = read_shard(found, SHARD_SIZE_HW, 10**6, tiling=Tiling((20, 33), 0))
    # 30 + i pixels wide; b/3 is broken
    assert table["pixels"].is_valid().to_pylist() == [True, True, False, False, True, False, False]
    assert table["width"].to_pylist() == [30, 32, 34, 36, 31, None, 35]
    plan, tiled = make_plan(photos, tmp_path / "whole"), make_plan(photos, tmp_path / "tiled")
    for each, tiling in ((plan, None), (tiled, Tiling((20, 33), 0))):
        output_folder.begin(each, overwrite=True)
        do_shards(each, 0, 1, 2, tiling=tiling)
    for file in sorted((tmp_path / "whole").rglob("*.p*")):
        assert (tmp_path / "tiled" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()


def test_predict_shard_large_truncated_photo_is_an_error_row(photos: Path, tmp_path: Path) -> None:
    """The photo's header is valid, its pixels are not. The other photos are predicted."""
    Image.effect_noise((400, 400), 50).convert("RGB").save(photos / "a" / "2.jpg")
    content = (photos / "a" / "2.jpg").read_bytes()
    (photos / "a" / "2.jpg").write_bytes(content[: len(content) // 2])
    plan = make_plan(photos, tmp_path / "out")
    output_folder.begin(plan)
    [summary] = do_shards(plan, 0, tiling=Tiling((16, 16), 0)).values()
    assert (summary.rows, summary.failed) == (3, 1)
    row = pq.read_table(plan.target.location(0)).to_pylist()[1]
    assert "truncated" in row.pop("error")
    assert {key for key, value in row.items() if value is not None} == {"id", "image"}


def test_write_shard_all_photos_broken_all_rows_have_errors(photos: Path, tmp_path: Path) -> None:
    for path in photos.glob("*/*"):
        path.write_bytes(b"broken")
    found = write_all(photos, tmp_path / "out", outputs=EVERYTHING)
    assert len(found) == 7 and all(row["error"] for row in found)
    assert not (tmp_path / "out" / "masks").exists()


def mutations(count: int) -> Iterator[bytes]:
    """Yield photos of every format with bytes changed, removed, inserted or cut off. Seeded."""
    generator = random.Random(2026)
    picture = Image.effect_mandelbrot((120, 90), (-2, -1, 1, 1), 60).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    seeds = []
    for kind, options in (
        *[("JPEG", {"exif": turned}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("WEBP", {})],
        *[("BMP", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("TIFF", {})],
    ):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        seeds.append(buffer.getvalue())
    for number in range(count):
        content = bytearray(seeds[number % len(seeds)])
        within = min(len(content), generator.choice([40, 700, 10**9]))  # changes in headers do most harm
        place = generator.randrange(within)
        kind = generator.choice(["cut", "change", "change", "lose", "insert"])
        if kind == "cut":
            del content[place:]
        elif kind == "change":
            for _ in range(generator.choice([1, 3, 20, 200])):
                content[generator.randrange(within)] = generator.choice([0, 255, generator.randrange(256)])
        elif kind == "lose":
            del content[place : place + generator.randrange(2000)]
        else:
            content[place:place] = generator.randbytes(generator.randrange(300))
        yield bytes(content)


def test_write_shard_thousand_mutated_photos_give_thousand_rows(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, content in enumerate(mutations(1000)):
        (folder / f"{number:04}.jpg").write_bytes(content)
    started = time.monotonic()
    found = write_all(folder, tmp_path / "out", shard_size=100, outputs=Outputs(overlay=True))
    assert time.monotonic() - started < 120  # only detects a hang; a few seconds are usual
    assert len(found) == 1000
    good = [row for row in found if row["error"] is None]
    assert 150 < len(good) < 850
    assert {path.stem for path in (tmp_path / "out" / "masks").iterdir()} == {row["id"] for row in good}
    assert all(row["height"] * row["width"] <= 10**6 for row in good)
    assert all("\n" not in row["error"] and len(row["error"]) < 300 for row in found if row["error"])
