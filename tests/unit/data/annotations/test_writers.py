"""Masks written as labels of each tool, read back by its reader or by the tool's own library."""

import base64
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from petseg.data.annotations import coco, label_studio, labelme
from petseg.data.annotations.draw import draw
from petseg.data.annotations.labels import Labels, MaskedPhoto
from petseg.data.annotations.pairing import find_photos
from petseg.data.image_file import Header
from petseg.errors import InputError

NAMES = ("ground", 'cat & "kitten" <1>', "Hündin", "nobody")
PALETTE = ((0, 0, 0), (255, 0, 16), (0, 128, 255), (1, 2, 3))
Write = Callable[..., Iterator[tuple[str, bytes]]]


def masks() -> list[np.ndarray]:
    """Return masks of the classes 0 to 2, and of ignored pixels."""
    rng = np.random.default_rng(0)
    found = [np.full((1, 1), 1), np.full((3, 5), 2), np.zeros((4, 7)), np.full((2, 3), 255)]
    for position in ((0, 0), (0, 12), (6, 0), (6, 12), (3, 5)):
        one_pixel = np.zeros((7, 13))
        one_pixel[position] = 1
        found += [one_pixel, np.where(one_pixel, 0, 2), np.where(one_pixel, 255, 1)]
    for height, width in itertools.product((1, 2, 17, 64), (1, 3, 16, 91)):
        found.append(rng.choice([0, 1, 2, 255], (height, width)))
        coarse = rng.choice([0, 1, 2, 255], (-(-height // 9), -(-width // 9)))
        found.append(np.kron(coarse, np.ones((9, 9)))[:height, :width])
    stripes = np.zeros((300, 500))
    stripes[40:, :] = 1  # one run of 130,000 pixels: longer than a run of a brush can be
    return [mask.astype(np.uint8) for mask in (*found, stripes)]


def written(write: Write, photos: Iterable[MaskedPhoto], unlabelled: int | None, folder: Path) -> list[str]:
    """Write all files to a folder, and return their names."""
    names = []
    for name, content in write(photos, NAMES, unlabelled, PALETTE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        names.append(name)
    return names


def read_submitted(folder: Path) -> Labels:
    """Read Label Studio's tasks once a person has submitted each prediction as it was."""
    tasks = json.loads((folder / "label-studio.json").read_text())
    for number, task in enumerate(tasks):
        task["id"] = number
        task["annotations"] = [{"result": prediction["result"]} for prediction in task["predictions"]]
    (folder / "export.json").write_text(json.dumps(tasks))
    return label_studio.read(str(folder / "export.json"))


TOOLS: dict[str, tuple[Write, Callable[[Path], Labels]]] = {
    "coco": (coco.write, lambda folder: coco.read(str(folder / "annotations.json"))),
    "label-studio": (label_studio.write, read_submitted),
    "labelme": (labelme.write, lambda folder: labelme.read(str(folder))),
}


@pytest.mark.parametrize("unlabelled", [0, 2, None])
@pytest.mark.parametrize("tool", TOOLS)
def test_writer_masks_read_back_are_the_same(tool: str, unlabelled: int | None, tmp_path: Path) -> None:
    """Ignored pixels are those of no class. Without an unlabelled class, only they are unpainted."""
    write, read = TOOLS[tool]
    folders = ("", "cats/", "a b/ü/", "100%/c&d=e#f+g?/")
    photos = {f"{folders[i % 4]}photo {i}.v2": mask for i, mask in enumerate(masks())}
    written(write, (MaskedPhoto(f"{row_id}.jpg", mask) for row_id, mask in photos.items()), unlabelled, tmp_path)
    labels = read(tmp_path)
    assert set(labels.names) - {"nobody"} == set(NAMES[:3]) - ({NAMES[unlabelled]} if unlabelled is not None else set())
    labels_of, without_photo = find_photos(list(photos), labels.photos)
    assert labels_of.keys() == photos.keys() and not without_photo
    ids = {name: class_id for class_id, name in enumerate(NAMES)}
    empty = 255 if unlabelled is None else unlabelled
    for row_id, mask in photos.items():
        of_photo, size = labels_of[row_id], (mask.shape[1], mask.shape[0])
        assert of_photo.photo.rpartition(".")[0] == row_id
        painted = set(np.unique(mask)) - {255, unlabelled}
        assert sorted(region.name for region in of_photo.regions) == sorted(NAMES[class_id] for class_id in painted)
        drawn = draw(of_photo, Header(1, size, size, 1), ids, empty, "file")
        assert np.array_equal(drawn, np.where(mask == 255, empty, mask)), row_id


def test_coco_writer_equals_the_masks_in_pycocotools(tmp_path: Path) -> None:
    photos = [MaskedPhoto(f"{i}.jpg", mask) for i, mask in enumerate(masks())]
    assert written(coco.write, photos, 0, tmp_path) == ["annotations.json"]
    oracle = COCO(tmp_path / "annotations.json")
    assert [category["name"] for category in oracle.loadCats(oracle.getCatIds())] == list(NAMES[1:])
    for image_id, photo in enumerate(photos, start=1):
        expected = np.where(photo.class_ids == 255, 0, photo.class_ids)
        mask = np.zeros_like(expected)
        for annotation in oracle.loadAnns(oracle.getAnnIds(imgIds=[image_id])):
            inside = oracle.annToMask(annotation).astype(bool)
            rows, columns = np.nonzero(inside)
            left, top = columns.min(), rows.min()
            assert annotation["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert annotation["area"] == inside.sum() and annotation["iscrowd"] == 1
            mask[inside] = annotation["category_id"] - 1
        assert np.array_equal(mask, expected)


def test_label_studio_writer_runs_fill_the_pixels_and_all_their_channels() -> None:
    """Decoded bit by bit. By hand, they were also compared with `decode_rle` of label-studio-sdk 2.1.2."""
    for mask in masks():
        ((_, _), (_, content)) = label_studio.write([MaskedPhoto("a.jpg", mask)], NAMES, 0)
        (task,) = json.loads(content)
        (prediction,) = task["predictions"]
        decoded = np.zeros_like(mask)
        for result in prediction["result"]:
            height, width = result["original_height"], result["original_width"]
            pixels = decode_rle(result["value"]["rle"]).reshape(height, width, 4)
            assert set(np.unique(pixels)) <= {0, 255} and (pixels == pixels[..., 3:]).all()
            (name,) = result["value"]["brushlabels"]
            decoded[pixels[..., 3] > 0] = NAMES.index(name)
        assert np.array_equal(decoded, np.where(mask == 255, 0, mask))


def decode_rle(rle: list[int]) -> np.ndarray:
    bits, start = "".join(f"{byte:08b}" for byte in rle), 0

    def read(size: int) -> int:
        nonlocal start
        start += size
        return int(bits[start - size : start], 2)

    count, word_size = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out, i = np.zeros(count, np.uint8), 0
    while i < count:
        repeats = read(1)
        j = i + 1 + read(sizes[read(2)])
        assert j <= count
        out[i:j] = read(word_size) if repeats else [read(word_size) for _ in range(i, j)]
        i = j
    assert len(bits) - start < 8
    return out


def test_label_studio_writer_address_is_percent_encoded() -> None:
    photo = MaskedPhoto("a b/ü#1&2+3?.jpg", np.ones((2, 2), np.uint8))
    path = "a%20b/%C3%BC%231%262%2B3%3F.jpg"
    for files, prefix in (
        (label_studio.write([photo], NAMES, 0), "/data/local-files/?d="),
        (label_studio.write([photo], NAMES, 0, address="https://x.org/"), "https://x.org/"),
    ):
        (task,) = json.loads(dict(files)["label-studio.json"])
        assert task["data"] == {"image": prefix + path}


def test_label_studio_writer_configuration_has_the_painted_classes_and_names_the_predictions() -> None:
    photo = MaskedPhoto("a.jpg", np.ones((2, 2), np.uint8))
    files = dict(label_studio.write([photo], NAMES, 0, PALETTE))
    view = ElementTree.fromstring(files["label-studio-config.xml"])  # noqa: S314 - our own
    assert files["label-studio-config.xml"].startswith(b"<View>")
    image, brush = view
    assert (view.tag, image.tag, brush.tag) == ("View", "Image", "BrushLabels")
    assert image.get("value") == "$image" and brush.get("toName") == image.get("name")
    colours = [(label.get("value"), label.get("background")) for label in brush]
    assert colours == [(NAMES[1], "#ff0010"), (NAMES[2], "#0080ff"), (NAMES[3], "#010203")]
    (result,) = json.loads(files["label-studio.json"])[0]["predictions"][0]["result"]
    assert (result["from_name"], result["to_name"]) == (brush.get("name"), image.get("name"))
    without_palette = dict(label_studio.write([photo], NAMES, None))
    labels = ElementTree.fromstring(without_palette["label-studio-config.xml"]).iter("Label")  # noqa: S314 - our own
    assert [label.attrib for label in labels] == [{"value": name} for name in NAMES]


def test_label_studio_predictions_that_nobody_submitted_are_refused(tmp_path: Path) -> None:
    written(label_studio.write, [MaskedPhoto("a.jpg", np.ones((2, 2), np.uint8))] * 2, 0, tmp_path)
    place = tmp_path / "label-studio.json"
    message = r"label-studio.json: no task has a submitted annotation, only predictions in 2 of them; submit some in"
    tasks = json.loads(place.read_text())
    for content in (tasks, [task | {"annotations": []} for task in tasks]):
        place.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            label_studio.read(str(place))
    place.write_text(json.dumps([{"data": {"image": "a"}, "annotations": [{"result": [], "was_cancelled": True}]}]))
    with pytest.raises(InputError, match=r"no task has a submitted annotation; submit some in Label Studio"):
        label_studio.read(str(place))


def test_labelme_writer_file_is_as_labelme_writes_it(tmp_path: Path) -> None:
    """Its corners are whole numbers, of which labelme takes the second as the last pixel: labelme/_utils/shape.py."""
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 7:20] = 2
    mask[6, 8] = 255
    assert written(labelme.write, [MaskedPhoto("cats/tom.v2.jpg", mask)], 0, tmp_path) == ["cats/tom.v2.json"]
    content: dict[str, Any] = json.loads((tmp_path / "cats" / "tom.v2.json").read_text())
    assert content.keys() == {*("version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth")}
    assert content["imagePath"] == "tom.v2.jpg" and content["imageData"] is None
    assert (content["imageHeight"], content["imageWidth"]) == (20, 30)
    (shape,) = content["shapes"]
    assert (shape["label"], shape["shape_type"], shape["points"]) == ("Hündin", "mask", [[7, 5], [19, 8]])
    box = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
    assert np.array_equal(box, (mask[5:9, 7:20] == 2).astype(np.uint8))


def test_writers_read_a_photo_only_when_the_one_before_is_written() -> None:
    """So a file per photo needs the memory of one photo."""
    asked = []

    def photos() -> Iterator[MaskedPhoto]:
        for i in range(3):
            asked.append(i)
            yield MaskedPhoto(f"{i}.jpg", np.ones((2, 2), np.uint8))

    files = labelme.write(photos(), NAMES, 0)
    for i in range(3):
        assert next(files)[0] == f"{i}.json" and asked == list(range(i + 1))
