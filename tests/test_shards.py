import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from petseg import labels, manifest, shards, storage
from petseg.config import InputError
from petseg.images import Photo
from petseg.predict import Mask
from petseg.shards import Plan

SIZE = (16, 24)
SETTINGS = {"checkpoint_sha256": "c0ffee"}


def paint(photos: list[Photo]) -> Iterator[Mask]:
    """A predictor that needs no network: the class is the photo's brightest channel."""
    for photo in photos:
        winner = int(photo.pixels.mean((0, 1)).argmax())
        ids = np.full((photo.height, photo.width), winner, np.uint8)
        yield Mask(ids, np.bincount(ids.ravel(), minlength=3).tolist(), 0.75)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven photos in two folders; b/3 is broken."""
    folder = tmp_path / "photos"
    for i in range(7):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = [0, 0, 0]
        colour[i % 3] = 255
        Image.new("RGB", (30 + i, 20), tuple(colour)).save(path)
    (folder / "b" / "3.jpg").write_bytes(b"broken")
    return folder


def make_plan(photos: Path, output: Path, **changes: object) -> Plan:
    settings = {"shard_size": 3, "png": True, "settings": SETTINGS} | changes
    return shards.make_plan(manifest.discover(str(photos)), str(output), **settings)  # pyright: ignore


def start(plan: Plan) -> dict[int, shards.Summary]:
    done = shards.find_done(plan)
    shards.begin(plan)
    return done


def do(plan: Plan, *numbers: int) -> dict[int, shards.Summary]:
    done = {}
    with ThreadPoolExecutor(2) as pool:
        for number in numbers:
            rows = shards.read_shard(plan.rows(number), SIZE, 10**6)
            rows = shards.predict_shard(rows, SIZE, paint, labels.palette(3), pool)
            done[number] = shards.write_shard(rows, plan.target)
    return done


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_photo_has_its_row_and_every_mask_its_file(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    assert start(plan) == {}
    done = do(plan, 0, 1, 2)
    summary = shards.finish(plan, done)
    assert (summary.rows, summary.failed, len(summary.first_errors)) == (7, 1, 1)
    assert summary.first_errors[0].startswith("b/3: not an image")

    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [file.name for file in files] == [f"part-0000{i}-of-00003.parquet" for i in range(3)]
    table = pa.concat_tables([pq.read_table(file) for file in files])
    assert table.schema.remove_metadata() == shards.SCHEMA
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["a/0", "a/2", "a/4", "a/6", "b/1", "b/3", "b/5"]
    for row in rows:
        number = int(row["id"][2:])
        png = tmp_path / "out" / "masks" / f"{row['id']}.png"
        assert row["image"] == str(photos / f"{row['id']}.jpg")
        if number == 3:
            assert row["error"].startswith("not an image")
            assert all(row[key] is None for key in shards.SCHEMA.names if key not in ("id", "image", "error"))
            assert not png.exists()
            continue
        assert row["error"] is None
        assert (row["height"], row["width"], row["confidence"]) == (20, 30 + number, 0.75)
        assert row["class_pixels"] == [20 * (30 + number) if i == number % 3 else 0 for i in range(3)]
        assert png.read_bytes() == row["mask_png"]
        mask = Image.open(io.BytesIO(row["mask_png"]))
        assert (mask.mode, mask.size, mask.getextrema()) == ("P", (30 + number, 20), (number % 3, number % 3))

    success = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())
    assert (success["images"], success["failed"], success["shards"]) == (7, 1, 3)
    assert success["plan"]["checkpoint_sha256"] == "c0ffee"


def test_a_second_start_does_the_rest_to_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    whole, halved = make_plan(photos, tmp_path / "whole"), make_plan(photos, tmp_path / "halved")
    start(whole)
    shards.finish(whole, do(whole, 0, 1, 2))

    start(halved)
    first = do(halved, 1)
    assert not shards.is_finished(halved, first)
    found = start(make_plan(photos, tmp_path / "halved"))
    assert found == first
    done = found | do(halved, 2, 0)
    shards.finish(halved, done)
    assert shards.is_finished(halved, done)
    assert content(tmp_path / "halved") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    "harm", ["missing", "cut short", "empty", "broken footer", "too few rows", "of another plan", "without footer"]
)
def test_a_shard_that_is_not_whole_and_ours_is_not_taken(harm: str, photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    done = do(plan, 0, 1, 2)
    file = Path(plan.target.location(1))
    table = pq.read_table(file)
    if harm == "missing":
        file.unlink()
    elif harm in ("cut short", "empty"):
        file.write_bytes(file.read_bytes()[:-100] if harm == "cut short" else b"")
    elif harm == "broken footer":
        whole = file.read_bytes()
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        file.write_bytes(whole[:footer] + b"\xff" * 40 + whole[footer + 40 :])
    elif harm == "too few rows":
        pq.write_table(table.slice(1), file)
    elif harm == "of another plan":
        changed = table.schema.metadata | {b"petseg.plan": b"0" * 64}
        pq.write_table(table.replace_schema_metadata(changed), file)
    else:
        pq.write_table(table.replace_schema_metadata(None), file)
    shards.finish(plan, done)
    found = start(plan)
    assert found == {0: done[0], 2: done[2]}
    assert not shards.is_finished(plan, found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_size": 4}, r"shard_size \(was 3, now 4\)"),
        ({"png": False}, r"png \(was True, now False\)"),
        ({"settings": {"checkpoint_sha256": "tea"}}, r"checkpoint_sha256 \(was c0ffee, now tea\)"),
        ({"settings": SETTINGS | {"tile": 1}}, r"tile \(was None, now 1\)"),
    ],
)
def test_other_settings_over_an_output_are_refused(
    changes: dict[str, object], message: str, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    plan = make_plan(photos, output)
    start(plan)
    do(plan, 0)
    before = content(output)
    with pytest.raises(InputError, match=f"--output .*out: begun with other settings: {message}"):
        start(make_plan(photos, output, **changes))
    assert content(output) == before


def test_looking_changes_nothing(photos: Path, tmp_path: Path) -> None:
    assert shards.find_done(make_plan(photos, tmp_path / "out")) == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_plan_that_was_edited_is_refused(content: bytes, photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    (tmp_path / "out" / shards.PLAN_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"out/_plan\.json: "):
        shards.find_done(plan)


def test_a_folder_that_changed_is_refused(photos: Path, tmp_path: Path) -> None:
    start(make_plan(photos, tmp_path / "out"))
    (photos / "new.jpg").touch()
    with pytest.raises(InputError, match=r"images \(was 7, now 8\), manifest_sha256"):
        start(make_plan(photos, tmp_path / "out"))


@pytest.mark.parametrize("name", ["masks/x.png", "data.parquet", "_SUCCESS.json"])
def test_the_output_of_something_else_is_not_written_over(name: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).touch()
    with pytest.raises(InputError, match=f"{name.split('/')[0]} is there already"):
        start(make_plan(photos, tmp_path / "out"))
    assert list(content(tmp_path / "out")) == [name]


def test_leftovers_of_a_killed_start_are_cleared(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    start(plan)
    leftover = tmp_path / "out" / f"{storage._TEMPORARY}0123"
    leftover.write_bytes(b"half a file")
    start(plan)
    assert not leftover.exists()
    leftover.write_bytes(b"half a file, of a worker that was killed and replaced")
    shards.finish(plan, do(plan, 0, 1, 2))
    assert not leftover.exists()


def test_without_png_the_masks_are_in_the_parquet_alone(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out", png=False)
    start(plan)
    do(plan, 0)
    assert not (tmp_path / "out" / "masks").exists()
    assert pq.read_table(plan.target.location(0))["mask_png"].null_count == 0


def test_photos_that_cannot_be_read_are_rows(photos: Path, tmp_path: Path) -> None:
    """Vanished between listing and reading, empty, and larger than the limit."""
    plan = make_plan(photos, tmp_path / "out")
    (photos / "a" / "0.jpg").unlink()
    (photos / "a" / "2.jpg").write_bytes(b"")
    Image.new("1", (1001, 1000)).save(photos / "a" / "4.jpg")
    errors = shards.read_shard(plan.rows(0), SIZE, 10**6)["error"].to_pylist()
    assert errors[0] == "cannot be read: No such file or directory"
    assert errors[1] == "the file is empty"
    assert errors[2] == "1001 × 1000 pixels are more than the limit of 1000000"
