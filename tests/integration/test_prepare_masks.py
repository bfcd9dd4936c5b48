"""`jobs/prepare.py masks` from its command line: labels of a tool to masks that the other commands take as they are."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunJob, Store, assert_refused
from PIL import Image
from pycocotools import mask as coco_masks

from petseg import storage
from petseg.config.train import TrainConfig
from petseg.data.classes import read_classes, resolve_classes
from petseg.data.pairs import decode_pair

LABELLED = 10


def runs_of(inside: np.ndarray) -> dict[str, Any]:
    """Return a mask as COCO has it in JSON."""
    rle: Any = coco_masks.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def coco_of(trimaps: list[Path]) -> str:
    """Return a COCO file with the pets and borders of these trimaps."""
    images, annotations = [], []
    for number, path in enumerate(trimaps):
        trimap = np.asarray(Image.open(path))
        images.append({"id": number, "file_name": f"{path.stem}.jpg", "height": len(trimap), "width": trimap.shape[1]})
        for category, value in ((1, 1), (2, 3)):
            annotation = {"id": len(annotations), "image_id": number, "category_id": category}
            annotations.append(annotation | {"segmentation": runs_of(trimap == value)})
    categories = [{"id": 2, "name": "border"}, {"id": 1, "name": "pet"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Path, Path]) -> Path:
    """COCO file with the labels of ten of the 24 drawn photos."""
    file = tmp_path_factory.mktemp("export") / "labels.json"
    file.write_text(coco_of(sorted(drawn[1].glob("*.png"))[:LABELLED]))
    return file


def test_masks_of_a_coco_file_are_taken_by_check_without_a_flag(
    export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    flags = ("--from", "coco", "--images", drawn[0], "--labels", export, "--output", "masks")
    done = call_job("prepare", "masks", *flags, "--unlabelled", "background")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        f"{LABELLED} masks: {tmp_path / 'masks'}" in lines
        and "objects by class: background 0, pet 10, border 10" in lines
    )
    table = tmp_path / "masks" / "photos.csv"
    assert f"note: 14 of 24 photos have no objects and no mask; {table} lists the others" in lines
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [path.stem for path in sorted(drawn[1].glob("*.png"))[:LABELLED]]
    for row in rows:
        with Image.open(tmp_path / "masks" / f"{row['id']}.png") as mask:
            trimap = np.asarray(Image.open(drawn[1] / f"{row['id']}.png"))
            assert mask.mode == "P" and np.array_equal(np.asarray(mask), np.array([9, 1, 0, 2])[trimap])
    classes = read_classes(str(tmp_path / "masks"))
    assert classes is not None and classes.classes == ("background", "pet", "border")
    next_command = lines[-1].removeprefix("next: ").split()
    assert next_command[-6:] == ["--images", str(table), "--masks", str(tmp_path / "masks"), "--recipe", "pretrained"]
    checked = call_job("prepare", "check", "--images", table, "--masks", "masks", "--output", "checked")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{LABELLED} pairs: " in checked.stdout and "--label-map" not in checked.stdout


def test_masks_all_photos_chosen_classes_and_a_second_time(
    export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    flags = ("--from", "coco", "--images", drawn[0], "--labels", export, "--output", "masks", "--unlabelled", "rest")
    every = call_job("prepare", "masks", *flags, "--all-photos", "--classes", "pet,rest")
    assert every.returncode == 0, every.stderr
    assert f"note: {LABELLED} objects of the class border, which is not in --classes: left out" in every.stdout
    assert len(list((tmp_path / "masks").glob("*.png"))) == 24
    found = [
        set(np.unique(np.asarray(Image.open(path))).tolist()) for path in sorted((tmp_path / "masks").glob("*.png"))
    ]
    assert found[:LABELLED] == [{0, 1}] * LABELLED and found[LABELLED:] == [{1}] * 14
    assert_refused(call_job("prepare", "masks", *flags), "it has masks already; pass --merge to add to them, --over")
    again = call_job("prepare", "masks", *flags, "--overwrite")
    assert again.returncode == 0, again.stderr
    assert len(list((tmp_path / "masks").glob("*.png"))) == LABELLED


def test_masks_in_a_bucket_equal_those_on_disk(
    export: Path, drawn: tuple[Path, Path], prefix: str, store: Store, tmp_path: Path, call_job: RunJob
) -> None:
    for path in sorted(drawn[0].iterdir())[:LABELLED]:
        storage.write(f"{prefix}/photos/{path.name}", path.read_bytes())
    storage.write(f"{prefix}/labels.json", export.read_bytes())
    flags = ("--from", "coco", "--unlabelled", "background")
    places = ("--images", f"{prefix}/photos", "--labels", f"{prefix}/labels.json", "--output", f"{prefix}/masks")
    remote = call_job("prepare", "masks", *flags, *places)
    assert remote.returncode == 0, remote.stderr
    local = call_job("prepare", "masks", *flags, "--images", drawn[0], "--labels", export, "--output", "masks")
    assert local.returncode == 0, local.stderr
    for path in (tmp_path / "masks").glob("*.png"):
        assert storage.read(f"{prefix}/masks/{path.name}") == path.read_bytes()
    assert f"--images {prefix}/photos --masks {prefix}/masks" in remote.stdout


def test_masks_ignored_pixels_and_classes_named_by_numbers(
    drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    """Two classes need one bit, and ignored pixels have the value 255. The name of a class is the id of another."""
    photo = min(drawn[0].iterdir())
    with Image.open(photo) as opened:
        width, height = opened.size
    image = {"id": 1, "file_name": photo.name, "height": height, "width": width}
    categories = [{"id": 0, "name": "1"}, {"id": 1, "name": "0"}]
    boxes = [[[0, 0, 9, 0, 9, 9, 0, 9]], [[20, 20, 30, 20, 30, 30, 20, 30]]]
    annotations = [{"image_id": 1, "category_id": i, "segmentation": box} for i, box in enumerate(boxes)]
    content = {"images": [image], "categories": categories, "annotations": annotations}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    flags = ("--images", photo, "--labels", "labels.json", "--output", "masks", "--unlabelled", "ignore")
    done = call_job("prepare", "masks", "--from", "coco", *flags)
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "masks" / f"{photo.stem}.png").read_bytes()
    classes = resolve_classes(TrainConfig(), str(tmp_path / "masks"))
    assert classes.names == ("1", "0")
    ids = decode_pair(photo.read_bytes(), content, (height, width), classes.label_map, 10**6).class_ids
    assert (ids[:9, :9] == 0).all() and (ids[20:30, 20:30] == 1).all() and (ids == 255).sum() == width * height - 181


def test_masks_never_replace_photos_or_other_files(
    export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    (tmp_path / "both").mkdir()
    Image.open(min(drawn[0].iterdir())).save(tmp_path / "both" / "pet_0000.png")
    (tmp_path / "both" / "photos.csv").write_text("id,uri\npet_0000,pet_0000.png\nother,other.png\n")
    (tmp_path / "both" / "other.png").write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "both").iterdir()}
    for images in ("both/photos.csv", "both/pet_0000.png"):
        flags = ("--from", "coco", "--images", images, "--labels", export, "--unlabelled", "rest", "--output", "both")
        for more in ((), ("--overwrite",)):
            assert call_job("prepare", "masks", *flags, *more).returncode == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "both").iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--from coco --labels LABELS", "--unlabelled is required: give the class of the pixels without a label"),
        ("--from voc --labels LABELS --unlabelled ignore", "--unlabelled: the masks of voc label each pixel"),
        ("--from coco --labels LABELS --unlabelled x --annotator 3", "--annotator: only the labels of label-studio"),
        ("--from cococo --labels LABELS --unlabelled x", "--from: 'cococo' is not one of coco, cvat, label-studio"),
        ("--from coco --labels nowhere.json --unlabelled x", "nowhere.json: cannot be read: No such file"),
        (
            "--from coco --labels LABELS --unlabelled x --classes pet",
            "--unlabelled x: not one of --classes pet; add it",
        ),
        (
            "--from coco --labels LABELS --unlabelled ignore --classes pet",
            "the only class is pet, but a network needs two",
        ),
        ("--from coco --labels LABELS --unlabelled pet --classes pet,dog", "--classes: the labels have no class dog"),
        ("--from coco --labels OTHERS --unlabelled x", "none of its photos (such as z.jpg) is in --images"),
        ("--from coco --labels LARGER --unlabelled x", "its labels are for a photo of 7 × 9, but pet_0000.jpg has"),
    ],
)
def test_masks_invalid_input_is_refused_and_nothing_is_written(
    flags: str, message: str, export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    content = json.loads(export.read_text())
    content["annotations"] = [one | {"segmentation": [[0, 0, 5, 0, 5, 5]]} for one in content["annotations"][:1]]
    for name, change in (("OTHERS", {"file_name": "z.jpg"}), ("LARGER", {"height": 9, "width": 7})):
        (tmp_path / name).write_text(json.dumps(content | {"images": [content["images"][0] | change]}))
    (tmp_path / "LABELS").symlink_to(export)
    done = call_job("prepare", "masks", "--images", drawn[0], "--output", "masks", *flags.split())
    assert_refused(done, message)
    assert not (tmp_path / "masks").exists() or not list((tmp_path / "masks").iterdir())


def test_masks_merge_adds_and_replaces_and_keeps_the_others(
    export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    trimaps = sorted(drawn[1].glob("*.png"))
    flags = ("--images", drawn[0], "--unlabelled", "background", "--output", "masks")
    assert call_job("prepare", "masks", "--from", "coco", *flags, "--labels", export).returncode == 0
    folder = tmp_path / "masks"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".json")}
    corrected = json.loads(coco_of(trimaps[8:14]))  # two that are there, and four new ones
    corrected["annotations"] = [one for one in corrected["annotations"] if one["id"] != 0]  # the pet of the first
    (tmp_path / "corrected.json").write_text(json.dumps(corrected))
    merge = ("--from", "coco", *flags, "--labels", tmp_path / "corrected.json", "--merge")
    done = call_job("prepare", "masks", *merge)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"merged: 4 added, 1 changed, 1 unchanged; see {folder / 'changes.csv'}" in lines
    assert f"--images {folder / 'photos.csv'} --masks {folder} " in lines[-1]
    with (folder / "changes.csv").open() as file:
        rows = list(csv.DictReader(file))
    pet = (np.asarray(Image.open(trimaps[8])) == 1).mean()
    assert [(row["id"], row["change"]) for row in rows] == [
        (path.stem, "added" if number else "changed") for number, path in enumerate([trimaps[8], *trimaps[10:14]])
    ]
    assert float(rows[0]["pixels"]) == pytest.approx(pet, abs=1e-4)
    with (folder / "photos.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [path.stem for path in trimaps[:14]]
    changed = {name for name, content in before.items() if (folder / name).read_bytes() != content}
    assert changed == {f"{trimaps[8].stem}.png"}
    again = call_job("prepare", "masks", *merge)
    assert "merged: 0 added, 0 changed, 6 unchanged" in again.stdout
    assert len((folder / "changes.csv").read_text().splitlines()) == 6
    checked = call_job("prepare", "check", "--images", folder / "photos.csv", "--masks", folder, "--output", "checked")
    assert checked.returncode == 0 and "skipped" not in checked.stdout, checked.stdout


def test_masks_merge_with_another_class_is_refused(
    export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    flags = ("--from", "coco", "--images", drawn[0], "--output", "masks")
    done = call_job("prepare", "masks", *flags, "--labels", export, "--unlabelled", "background", "--merge")
    assert_refused(done, "there are no masks of petseg prepare masks to merge with")
    assert call_job("prepare", "masks", *flags, "--labels", export, "--unlabelled", "background").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}
    (tmp_path / "other.json").write_text(export.read_text().replace('"border"', '"collar"'))
    labels = ("--labels", "other.json", "--merge", "--unlabelled")
    assert_refused(call_job("prepare", "masks", *flags, *labels, "background"), "has no class collar; rename it")
    assert_refused(call_job("prepare", "masks", *flags, *labels, "sky"), "--unlabelled sky: not one of the classes in")
    assert {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()} == before


def test_masks_merge_photo_without_objects_is_noted_or_emptied(
    export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    """With --all-photos, a merge empties the masks of the photos that the labels list, and of no others."""
    flags = ("--from", "coco", "--images", drawn[0], "--unlabelled", "background", "--output", "masks")
    assert call_job("prepare", "masks", *flags, "--labels", export).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "masks").glob("*.png")}
    trimaps = sorted(drawn[1].glob("*.png"))
    corrected = json.loads(coco_of(trimaps[:2]))
    corrected["annotations"] = [one for one in corrected["annotations"] if one["image_id"] == 1]
    (tmp_path / "corrected.json").write_text(json.dumps(corrected))
    merge = (*flags, "--labels", "corrected.json", "--merge")
    done = call_job("prepare", "masks", *merge)
    assert done.returncode == 0, done.stderr
    assert "note: 1 photos of the labels have no object: left out; with --all-photos" in done.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "masks").glob("*.png")} == before
    assert "merged: 0 added, 1 changed, 1 unchanged" in call_job("prepare", "masks", *merge, "--all-photos").stdout
    after = {path.name: path.read_bytes() for path in (tmp_path / "masks").glob("*.png")}
    assert {name for name in before if after[name] != before[name]} == {
        trimaps[0].name
    } and after.keys() == before.keys()
    assert not np.asarray(Image.open(tmp_path / "masks" / trimaps[0].name)).any()


def test_masks_merge_keeps_a_table_of_changes_that_was_edited(
    export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    flags = ("--from", "coco", "--images", drawn[0], "--unlabelled", "background", "--output", "masks")
    assert call_job("prepare", "masks", *flags, "--labels", export).returncode == 0
    (tmp_path / "masks" / "changes.csv").write_bytes(b"time,id,change,pixels\n2026,caf\xe9,added,1.0")
    gone = sorted(drawn[1].glob("*.png"))[0].stem
    (tmp_path / "masks" / f"{gone}.png").unlink()
    (tmp_path / "more.json").write_text(coco_of(sorted(drawn[1].glob("*.png"))[10:11]))
    done = call_job("prepare", "masks", *flags, "--labels", "more.json", "--merge")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "masks" / "changes.csv").read_bytes().splitlines()
    assert lines[1] == b"2026,caf\xe9,added,1.0" and len(lines) == 3
    assert f"note: masks of {gone} are not there any more" in done.stdout
    with (tmp_path / "masks" / "photos.csv").open() as file:
        assert gone not in [row["id"] for row in csv.DictReader(file)]


def test_masks_merge_that_would_spoil_masks_is_refused(
    export: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    shutil.copytree(drawn[0], tmp_path / "photos" / "a")
    flags = ("--from", "coco", "--labels", export, "--unlabelled", "background", "--output", "masks")
    assert call_job("prepare", "masks", *flags, "--images", "photos").returncode == 0
    other_root = call_job("prepare", "masks", *flags, "--images", "photos/a", "--merge")
    assert_refused(
        other_root, "has the id", "give the folder or table of photos that the earlier masks were drawn with"
    )
    described = tmp_path / "masks" / "classes.json"
    described.write_text(described.read_text().replace("0:0,1:1,2:2", "1:0,2:1,3:2"))
    refused = call_job("prepare", "masks", *flags, "--images", "photos", "--merge")
    assert_refused(refused, "the values of the masks are not the ids of the classes")
    image = next(iter(sorted((tmp_path / "photos" / "a").iterdir())))
    Image.open(image).save(tmp_path / "masks" / "a" / f"{image.stem}.png")
    (tmp_path / "table.csv").write_text(f"id,uri\na/{image.stem},masks/a/{image.stem}.png\n")
    refused = call_job("prepare", "masks", *flags, "--images", "table.csv", "--merge")
    assert_refused(refused, f"masks/a/{image.stem}.png would be replaced, which --images needs")
