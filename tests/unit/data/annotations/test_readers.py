"""Each reader on files as its tool writes them, drawn and compared with what the tool or its library gives."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from petseg.data.annotations import coco, cvat, label_studio, labelme, voc, yolo
from petseg.data.annotations.draw import Order, draw
from petseg.data.annotations.labels import Labels
from petseg.data.image_file import Header
from petseg.errors import InputError

HEIGHT, WIDTH = 60, 80
PHOTO = Header(1, (WIDTH, HEIGHT), (WIDTH, HEIGHT), 1)
NONE = 9
TRIANGLE = [10.0, 5.0, 60.5, 20.25, 20.0, 50.0]


def drawn(labels: Labels, index: int = 0, order: Order = "file") -> np.ndarray:
    """Return the mask of a photo, in which `NONE` is unlabelled, and the classes are numbered as in the labels."""
    ids = {name: number for number, name in enumerate(labels.names)}
    return draw(labels.photos[index], PHOTO, ids, NONE, order)


def triangle() -> np.ndarray:
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects([TRIANGLE], HEIGHT, WIDTH))).astype(bool)  # pyright: ignore


def png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_coco_equals_pycocotools(tmp_path: Path) -> None:
    """Polygons of several parts, masks compressed and not, and an object over another."""
    rng = np.random.default_rng(0)
    blob = np.asfortranarray((rng.random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8))
    compressed = coco_masks.encode(blob)
    counts: list[int] = []
    flat = blob.ravel("F").tolist()
    for pixel, before in zip(flat, [0, *flat], strict=False):
        if not counts or pixel != before:
            counts += [0] if not counts and pixel else []
            counts.append(0)
        counts[-1] += 1
    segmentations: list[Any] = [
        [TRIANGLE, [62, 40, 78, 40, 78, 58, 62, 58]],
        {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()},  # pyright: ignore[reportAttributeAccessIssue]
        {"size": [HEIGHT, WIDTH], "counts": counts},
        [[0, 0, 5, 5]],
        [],
    ]
    content = {
        "images": [
            {"id": number, "file_name": f"a/{number}.jpg", "height": HEIGHT, "width": WIDTH} for number in range(5)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 7, "segmentation": segmentation, "bbox": [5, 10, 40, 20]}
            for number, segmentation in enumerate(segmentations)
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = coco.read(str(tmp_path / "labels.json"))
    assert labels.names == ("dog", "cat") and [photo.photo for photo in labels.photos] == [
        f"a/{i}.jpg" for i in range(5)
    ]
    oracle = COCO(tmp_path / "labels.json")
    for number in range(3):
        expected = oracle.annToMask(oracle.loadAnns([number])[0]).astype(bool)
        assert expected.any() and np.array_equal(drawn(labels, number), np.where(expected, 1, NONE))
    assert (drawn(labels, 3) == NONE).all()
    assert (drawn(labels, 4)[10:30, 5:45] == 255).all() and (drawn(labels, 4) == 255).sum() == 20 * 40
    assert labels.skipped == {
        "polygons with fewer than three corners: left out": 1,
        "boxes without an outline: their pixels are ignored": 1,
    }


def test_labelme_shapes_equal_its_own_drawing_up_to_the_outline(tmp_path: Path) -> None:
    """labelme draws with Pillow, which also fills the pixels that the outline only touches."""
    brush = np.zeros((9, 12), bool)
    brush[2:, 3:8] = True
    shapes = [
        {"label": "cat", "points": np.reshape(TRIANGLE, (3, 2)).tolist(), "shape_type": "polygon"},
        {"label": "dog", "points": [[50, 30], [70, 45]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[20, 15], [26, 15]], "shape_type": "circle"},
        {"label": "sun", "points": [[60, 2], [71, 10]], "shape_type": "mask", "mask": png(brush)},
        {"label": "sun", "points": [[1, 1], [9, 9]], "shape_type": "line"},
    ]
    content = {
        "version": "5.8",
        "shapes": shapes,
        "imagePath": "..\\x\\1.jpg",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.json").write_text(json.dumps(content))
    labels = labelme.read(str(tmp_path))
    assert labels.names == ("cat", "dog", "sun") and labels.photos[0].photo == "a/1.json"
    assert labels.skipped == {"lines and points, which have no area: left out": 1}
    picture = Image.new("L", (WIDTH, HEIGHT), NONE)
    pencil = ImageDraw.Draw(picture)
    pencil.polygon([tuple(point) for point in shapes[0]["points"]], fill=0, outline=0)  # pyright: ignore
    pencil.rectangle((50, 30, 70, 45), fill=1)
    pencil.ellipse((14, 9, 26, 21), fill=1)
    expected = np.array(picture)
    expected[2:11, 60:72][brush] = 2
    mask = drawn(labels)
    assert np.array_equal(mask == 2, expected == 2)
    for class_id in (0, 1):
        theirs, ours = Image.fromarray((expected == class_id).astype(np.uint8)), mask == class_id
        inner, outer = (
            np.asarray(theirs.filter(kind(3))) > 0 for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
        )
        assert ours[inner].all() and outer[ours].all()


def test_label_studio_takes_the_last_submitted_annotation(tmp_path: Path) -> None:
    """The runs are those that Label Studio's own `encode_rle` gives for this mask."""
    brush = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 1, 0],
            [0, 0, 1, 0, 1, 1, 0],
            [0, 0, 1, 1, 1, 1, 0],
            [1, 0, 0, 0, 0, 0, 0],
        ]
    )
    runs = [0, 0, 0, 140, 57, 27, 254, 35, 0, 191, 255, 108, 2, 63, 248, 192, 39, 255, 182, 1, 127, 254, 48, 8]
    runs += [255, 240, 184, 0]
    size = {"original_height": HEIGHT, "original_width": WIDTH}
    percent = (np.reshape(TRIANGLE, (3, 2)) / [WIDTH, HEIGHT] * 100).tolist()
    polygon = {**size, "type": "polygonlabels", "value": {"points": percent, "polygonlabels": ["cat"]}}
    box = {"x": 50, "y": 50, "width": 25, "height": 20, "rotation": 0, "rectanglelabels": ["dog"]}
    results = [polygon, {**size, "type": "rectanglelabels", "value": box}, {**size, "type": "choices", "value": {}}]
    old = {"id": 1, "completed_by": 3, "updated_at": "2026-01-02T00:00:00Z", "result": []}
    new = {
        "id": 2,
        "completed_by": {"id": 4, "email": "b@x.org"},
        "updated_at": "2026-02-01T00:00:00Z",
        "result": results,
    }
    skipped = {
        "id": 3,
        "completed_by": 3,
        "updated_at": "2026-03-01T00:00:00Z",
        "was_cancelled": True,
        "result": [polygon],
    }
    painted = {"original_height": 5, "original_width": 7, "type": "brushlabels"}
    painted["value"] = {"format": "rle", "rle": runs, "brushlabels": ["sun"]}
    content = [
        {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-cat%20%C3%A9.jpg"}, "annotations": [old, new, skipped]},
        {"id": 2, "data": {"image": "s3://b/x/dog.jpg?sig=1"}, "annotations": [{"id": 9, "result": [painted]}]},
        {"id": 3, "data": {"image": "/data/local-files/?d=photos/none.jpg"}, "annotations": []},
    ]
    (tmp_path / "export.json").write_text(json.dumps(content))
    labels = label_studio.read(str(tmp_path / "export.json"))
    assert [photo.photo for photo in labels.photos] == ["/data/upload/1/cat é.jpg", "s3://b/x/dog.jpg"]
    assert labels.names == ("cat", "dog", "sun") and labels.skipped == {
        "results of the type choices, which petseg does not draw: left out": 1
    }
    expected = np.where(triangle(), 0, NONE)
    expected[30:42, 40:60] = 1
    assert np.array_equal(drawn(labels), expected)
    small = Header(1, (7, 5), (7, 5), 1)
    assert np.array_equal(draw(labels.photos[1], small, {"sun": 1}, 0, "file"), brush)
    of_one = label_studio.read(str(tmp_path / "export.json"), annotator="3")
    assert [photo.regions for photo in of_one.photos] == [()]
    assert len(label_studio.read(str(tmp_path / "export.json"), annotator="b@x.org").photos[0].regions) == 2


def test_label_studio_brush_is_the_alpha_of_its_pixels(tmp_path: Path) -> None:
    """Two pixels in one run of eight values: red and opaque, then white and transparent."""
    numbers = [(8, 32), (7, 5), *((2, 4),) * 4, (0, 1), (0, 2), (7, 3)]
    numbers += [(value, 8) for value in (255, 0, 0, 255, 255, 255, 255, 0)]
    bits = "".join(f"{number:0{size}b}" for number, size in numbers)
    bits += "0" * (-len(bits) % 8)
    runs = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    value = {"format": "rle", "rle": runs, "brushlabels": ["sun"]}
    result = {"original_height": 1, "original_width": 2, "type": "brushlabels", "value": value}
    content = [{"id": 1, "data": {"image": "a"}, "annotations": [{"result": [result]}]}]
    (tmp_path / "export.json").write_text(json.dumps(content))
    labels = label_studio.read(str(tmp_path / "export.json"))
    assert draw(labels.photos[0], Header(1, (2, 1), (2, 1), 1), {"sun": 1}, 0, "file").tolist() == [[1, 0]]


def test_label_studio_turned_box_equals_its_corners(tmp_path: Path) -> None:
    """A box turned by 90 degrees about its top left corner lies to the left of it."""
    box = {"x": 50, "y": 50, "width": 25, "height": 20, "rotation": 90, "rectanglelabels": ["dog"]}
    result = {"original_height": 100, "original_width": 100, "type": "rectanglelabels", "value": box}
    (tmp_path / "export.json").write_text(
        json.dumps([{"id": 1, "data": {"image": "a"}, "annotations": [{"result": [result]}]}])
    )
    labels = label_studio.read(str(tmp_path / "export.json"))
    mask = draw(labels.photos[0], Header(1, (100, 100), (100, 100), 1), {"dog": 1}, 0, "file")
    assert mask[50:75, 30:50].all() and mask.sum() == 20 * 25


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>dog</name><color>#0000ff</color></label><label><name>cat</name></label></labels></task></meta>
<image id="0" name="a/1.jpg" width="80" height="60">
 <polygon label="cat" points="10.0,5.0;60.5,20.25;20.0,50.0" z_order="1"/>
 <box label="dog" xtl="0" ytl="0" xbr="80" ybr="30" z_order="0"/>
 <mask label="dog" rle="2, 3, 1, 4" left="70" top="50" width="5" height="2" z_order="2"/>
 <polyline label="dog" points="1,1;2,2"/>
</image>
<image id="1" name="2.jpg" width="80" height="60">
 <ellipse label="cat" cx="40" cy="30" rx="20" ry="10" rotation="90"/>
</image>
</annotations>"""


def test_cvat_draws_by_layer(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT)
    labels = cvat.read(str(tmp_path))
    assert labels.names == ("dog", "cat") and labels.colours == {"dog": (0, 0, 255)}
    assert labels.skipped == {"shapes of the kind polyline, which have no area: left out": 1}
    expected = np.full((HEIGHT, WIDTH), NONE)
    expected[:30] = 0
    expected[triangle()] = 1
    expected[50, 72:75], expected[51, 71:75] = 0, 0
    assert np.array_equal(drawn(labels), expected)
    rows, columns = np.nonzero(drawn(labels, 1) == 1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 49, 30, 49)


def test_yolo_scales_to_the_photo(tmp_path: Path) -> None:
    """The layouts of Ultralytics and Roboflow. A box gives pixels to ignore, which objects cover."""
    corners = " ".join(str(value) for value in (np.reshape(TRIANGLE, (3, 2)) / [WIDTH, HEIGHT]).ravel())
    text = f"1 {corners}\n\n0 0 0 0.5 0 0.5 0.1 0 0.1\n0 0.75 0.75 0.5 0.5\n"
    expected = np.full((HEIGHT, WIDTH), NONE)
    expected[30:, 40:] = 255
    expected[triangle()] = 1
    expected[:6, :40] = 0
    for root, folder, photo in (
        ("ultralytics", "labels/train", "images/train"),
        ("roboflow", "train/labels", "train/images"),
        ("flat", "", ""),
    ):
        place = tmp_path / root / folder
        place.mkdir(parents=True)
        (place / "test.txt").write_text(text) if folder else (place / "photo.txt").write_text(text)
        (place / "2.txt").write_text("")
        (tmp_path / root / "README.roboflow.txt").write_text("# exported")
        (tmp_path / root / "validation.txt").write_text("./images/a.jpg")
        (tmp_path / root / "data.yaml").write_text("train: images/train\nnames:\n  0: dog\n  1: cat\n")
        for given, prefix in ((tmp_path / root, f"{photo}/" if photo else ""), (place, "")):
            labels = yolo.read(str(given))
            photos = [labelled.photo for labelled in labels.photos]
            assert labels.names == ("dog", "cat")
            assert photos == [f"{prefix}2.txt", f"{prefix}{'test' if folder else 'photo'}.txt"]
            assert np.array_equal(drawn(labels, 1), expected) and (drawn(labels, 0) == NONE).all()
    (tmp_path / "flat" / "data.yaml").write_text("names: [dog, cat]\n")
    assert yolo.read(str(tmp_path / "flat")).names == ("dog", "cat")


def test_coco_group_of_all_classes_is_no_class(tmp_path: Path) -> None:
    """Roboflow lists the project as a category without annotations."""
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}, CATEGORY | {"supercategory": "pets"}]
    (tmp_path / "labels.json").write_text(coco_file(categories=categories))
    assert coco.read(str(tmp_path / "labels.json")).names == ("cat",)
    own_group = [CATEGORY | {"supercategory": "cat"}, {"id": 2, "name": "dog", "supercategory": "dog"}]
    (tmp_path / "labels.json").write_text(coco_file(categories=own_group))
    assert coco.read(str(tmp_path / "labels.json")).names == ("cat", "dog")


def test_coco_object_without_outline_and_box_is_counted(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(annotated([]))
    labels = coco.read(str(tmp_path / "labels.json"))
    assert labels.skipped == {"objects without an outline and without a box: left out": 1}
    assert labels.photos[0].regions == ()


def test_voc_colours_are_those_of_the_label_map_or_its_own(tmp_path: Path) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[10:20, 10:30] = (128, 0, 0)
    pixels[20:22, 10:30] = (224, 224, 192)
    folder = tmp_path / "SegmentationClass"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "1.png")
    Image.fromarray(pixels).quantize(4).save(folder / "2.png")
    labels = voc.read(str(tmp_path))
    assert labels.names[:3] == ("background", "aeroplane", "bicycle") and len(labels.names) == 21
    expected = np.zeros((HEIGHT, WIDTH))
    expected[10:20, 10:30], expected[20:22, 10:30] = 1, 255
    assert np.array_equal(drawn(labels), expected) and np.array_equal(drawn(labels, 1), expected)
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n")
    labels = voc.read(str(tmp_path))
    assert labels.names == ("background", "cat") and np.array_equal(drawn(labels), expected)
    assert [voc.palette_colour(number) for number in (0, 1, 15, 20, 255)] == [
        *((0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192)),
    ]


IMAGE = {"id": 1, "file_name": "1.jpg", "height": 4, "width": 5}
CATEGORY = {"id": 1, "name": "cat"}


def coco_file(**changes: Any) -> str:
    content = {"images": [IMAGE], "categories": [CATEGORY], "annotations": []} | changes
    return json.dumps(content)


def annotated(segmentation: Any, **changes: Any) -> str:
    return coco_file(annotations=[{"id": 8, "image_id": 1, "category_id": 1, "segmentation": segmentation} | changes])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco_file()[:50], r"labels.json: not JSON .*cut short"),
        ("[]", r"labels.json: expected an object, got list"),
        ("[" * 200_000, r"labels.json: not JSON"),
        (coco_file(images=5), r"labels.json: its images must be a list"),
        (
            coco_file(images=[IMAGE | {"height": 10**6, "width": 10**6}]),
            r"1000000 × 1000000 is not the size of a photo",
        ),
        (json.dumps({"images": []}), r"labels.json: annotations is missing"),
        (coco_file(images=[IMAGE, IMAGE]), r"labels.json, image 1: two images have this id"),
        (coco_file(images=[IMAGE | {"height": 0}]), r"labels.json, image 1: 5 × 0 is not the size of a photo"),
        (coco_file(categories=[{"id": 1}]), r"labels.json, categories: name is missing"),
        (coco_file(categories=[{"id": 1, "name": ""}]), r"labels.json, category 1: '' is not the name of a class"),
        (coco_file(categories=[{"id": 1, "name": "a\nb"}]), r"labels.json, category 1: 'a\\nb' is not the name"),
        (coco_file(categories=[CATEGORY, CATEGORY]), r"category 1: two categories have this id or the name 'cat'"),
        (annotated([], image_id=2), r"labels.json, annotation 8: there is no image 2"),
        (annotated([], category_id=2), r"labels.json, annotation 8: there is no category 2"),
        (annotated([[0, 0, 1]]), r"annotation 8: a polygon is not a list of pairs of numbers"),
        (annotated([[0, 0, 1, "x", 2, 2]]), r"annotation 8: a polygon is not a list of pairs of numbers"),
        (annotated([[0, 0, 1, float("nan"), 2, 2]]), r"annotation 8: a polygon has a coordinate that is not finite"),
        (
            annotated({"size": [5, 4], "counts": [20]}),
            r"annotation 8: its mask has the size \[5, 4\], its image \[4, 5\]",
        ),
        (annotated({"size": [4, 5], "counts": [19]}), r"annotation 8: its mask has 19 pixels, its image 20"),
        (annotated({"size": [4, 5], "counts": [30, -10]}), r"annotation 8: the counts of its mask are not lengths"),
        (annotated({"size": [4, 5], "counts": "\u00e9"}), r"annotation 8: the counts of its mask are not lengths"),
        (annotated({"size": [4, 5], "counts": "oo"}), r"annotation 8: the counts of its mask are not lengths"),
    ],
)
def test_coco_invalid_file_is_refused_with_its_entry(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        coco.read(str(tmp_path / "labels.json"))
    assert "\n" not in str(caught.value)


def task(*results: dict[str, Any], **changes: Any) -> str:
    size = {"original_height": 4, "original_width": 5}
    return json.dumps(
        [{"id": 3, "data": {"image": "a"}, "annotations": [{"result": [size | one for one in results]}]} | changes]
    )


POLYGON = {"type": "polygonlabels"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "export.json: not a list of tasks; export the format JSON"),
        (task(annotations=None), "task 3: its annotations must be a list"),
        (task(data={"a": "x", "b": "y"}), 'task 3: its data have no text "image"'),
        (task(POLYGON), "task 3: value is missing"),
        (
            task(POLYGON | {"value": {"points": [[1]], "polygonlabels": ["a"]}}),
            "task 3: a polygon is not a list of pairs",
        ),
        (
            task(POLYGON | {"value": {"points": [], "polygonlabels": ["a", "b"]}}),
            "task 3: a region has the classes a, b",
        ),
        (
            task({"type": "brushlabels", "value": {"rle": [0, 0, 0, 1], "brushlabels": ["a"]}}),
            "task 3: a brushed mask does not fit its image",
        ),
    ],
)
def test_label_studio_invalid_file_is_refused_with_its_task(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        label_studio.read(str(tmp_path / "export.json"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotations>", "", "annotations.xml: not XML"),
        ("<annotations>", '<!DOCTYPE x [<!ENTITY a "b">]><annotations>', "it declares a document type"),
        ("60.5,20.25", "60.5", "image 0 (a/1.jpg): a polygon is not a list of pairs"),
        ('xtl="0"', 'xtl="x"', "image 0 (a/1.jpg): xtl of a box is 'x', not a number"),
        ('rle="2, 3, 1, 4"', 'rle="2, 3"', "image 0 (a/1.jpg): a mask does not fit its box"),
        ('left="70"', 'left="78"', "image 0 (a/1.jpg): a mask does not fit its box, or the box the image"),
        ("<ellipse", "<hexagon", "image 1 (2.jpg): petseg does not know the shape 'hexagon'"),
        ('height="60"', 'height=""', "image 0 (a/1.jpg): '80' × '' is not the size of a photo"),
        ('rle="2, 3, 1, 4"', f'rle="{2**63 - 1}, {2**63 - 1}, 3"', "image 0 (a/1.jpg): a mask does not fit its box"),
        ('<box label="dog"', "<box", "image 0 (a/1.jpg): None is not the name of a class"),
    ],
)
def test_cvat_invalid_file_is_refused_with_its_image(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in CVAT
    (tmp_path / "annotations.xml").write_text(CVAT.replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(message)):
        cvat.read(str(tmp_path / "annotations.xml"))


@pytest.mark.parametrize(
    ("yaml", "text", "message"),
    [
        ("names: [a", "", "data.yaml: not YAML"),
        ("nc: 2", "", "data.yaml: it has no list of names"),
        (
            "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b]",
            "",
            "data.yaml: [['x', 'x'], ['x', 'x']] is not the name of a class",
        ),
        ("names: {1: a}", "", "data.yaml: the numbers of its names are not 0, 1, 2"),
        ("names: [a, a]", "", "data.yaml: two classes have one name"),
        ("names: [yes, no]", "", "data.yaml: True is not the name of a class"),
        ("names: {0: a, b: c}", "", "data.yaml: the numbers of its names are not 0, 1, 2"),
        ("[" * 5000, "", "data.yaml: not YAML"),
        ("d: 2024-13-45", "", "data.yaml: not YAML"),
        ("names: [a]", "9" * 5000 + " 1 1", "is not the number of one of the 1 classes"),
        ("names: [a]", "1 0 0 1 0 1 1", "1.txt, line 1: '1' is not the number of one of the 1 classes"),
        ("names: [a]", "x 0 0 1 0 1 1", "1.txt, line 1: 'x' is not the number of one of the 1 classes"),
        ("names: [a]", "\n0 0 0 1 0 1 y", "1.txt, line 2: a polygon is not a list of pairs"),
    ],
)
def test_yolo_invalid_file_is_refused_with_its_line(yaml: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(yaml)
    (tmp_path / "1.txt").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        yolo.read(str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "a"}, "1.json, shape 0: points is missing"),
        ({"label": 5, "points": []}, "1.json, shape 0: 5 is not the name of a class"),
        (
            {"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "mask", "mask": "x"},
            "shape 0: its mask is not a picture",
        ),
        (
            {"label": "a", "points": [[1, 2]], "shape_type": "circle"},
            "shape 0: petseg cannot draw a shape 'circle' of 1 points",
        ),
    ],
)
def test_labelme_invalid_file_is_refused_with_its_shape(shape: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps({"shapes": [shape], "imageHeight": 4, "imageWidth": 5}))
    with pytest.raises(InputError, match=re.escape(message)):
        labelme.read(str(tmp_path))


def test_folders_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "data.yaml").write_text("names: [a]")
    for read, message in ((labelme.read, "no .json"), (yolo.read, "no .txt"), (voc.read, "no .png")):
        with pytest.raises(InputError, match=f"--labels {tmp_path}: {message} file in it"):
            read(str(tmp_path))
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"1.png: it has the colour \(1, 2, 3\)"):
        voc.read(str(tmp_path))
    (tmp_path / "labelmap.txt").write_text("cat:1,2\n")
    with pytest.raises(InputError, match=r"labelmap.txt, line 1: not NAME:RED,GREEN,BLUE"):
        voc.read(str(tmp_path))
