import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from petseg.data.annotations.draw import Order, draw
from petseg.data.annotations.labels import IGNORED, PhotoLabels, Region, mask_region, rectangle, rle_of
from petseg.data.image_file import Header, upright
from petseg.errors import InputError

IDS = {"a": 1, "b": 2}


def labels(size_hw: tuple[int, int] | None, *regions: Region) -> PhotoLabels:
    return PhotoLabels("x.jpg", size_hw, regions, "labels.json, image 3")


def box(name: str, left: float, top: float, right: float, bottom: float, layer: int = 0) -> Region:
    return Region(name, (rectangle(left, top, right, bottom),), layer=layer)


@pytest.mark.parametrize(("order", "winner"), [("file", 1), ("area", 1), ("classes", 2)])
def test_draw_order_decides_which_object_covers(order: Order, winner: int) -> None:
    photo = Header(1, (20, 10), (20, 10), 1)
    small, large = box("a", 4, 4, 8, 8), box("b", 0, 0, 20, 10)
    regions = (small, large) if order == "area" else (large, small)
    assert draw(labels((10, 20), *regions), photo, IDS, 0, order)[5, 5] == winner
    assert draw(labels((10, 20), box("b", 0, 0, 9, 9, 1), box("a", 0, 0, 9, 9)), photo, IDS, 0, "file")[5, 5] == 2


def test_draw_unlabelled_ignored_and_unknown_regions() -> None:
    photo = Header(1, (20, 10), (20, 10), 1)
    mask = draw(labels((10, 20), box(IGNORED, 0, 0, 5, 5), box("other", 10, 0, 15, 5)), photo, IDS, 7, "file")
    assert (mask[:5, :5] == 255).all() and (mask == 7).sum() == 175


def test_draw_labels_of_another_size_are_scaled() -> None:
    photo = Header(1, (1001, 667), (1001, 667), 1)
    polygon = draw(labels((333, 500), box("a", 50, 100, 100, 200)), photo, IDS, 0, "file")
    ids = np.zeros((333, 500), bool)
    ids[100:200, 50:100] = True
    painted = draw(labels((333, 500), mask_region("a", ids)), photo, IDS, 0, "file")
    for mask in (polygon, painted):
        rows, columns = np.nonzero(mask)
        assert mask.shape == (667, 1001)
        assert abs(rows.min() - 200) <= 1 and abs(rows.max() - 400) <= 1
        assert abs(columns.min() - 100) <= 1 and abs(columns.max() - 200) <= 1
    with pytest.raises(InputError, match=r"image 3: its labels are for a photo of 500 × 400, but x.jpg has 1001 × 667"):
        draw(labels((400, 500)), photo, IDS, 0, "file")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_draw_photo_that_exif_turns(orientation: int) -> None:
    """Labels of the upright photo, and of the photo as it is stored, give the same upright mask."""
    stored = Image.new("L", (20, 10))
    turned = upright(stored, orientation)
    photo = Header(orientation, (20, 10), turned.size, orientation)
    width, height = turned.size
    expected = draw(labels((height, width), box("a", 0, 0, 4, 2)), photo, IDS, 0, "file")
    assert expected.shape == (height, width) and expected[:2, :4].all() and expected.sum() == 8
    if turned.size != stored.size:
        ids = np.zeros((10, 20), bool)
        ids[:2, :4] = True
        mask = draw(labels((10, 20), mask_region("a", ids)), photo, IDS, 0, "file")
        assert np.array_equal(mask, np.asarray(upright(Image.fromarray(ids.astype(np.uint8)), orientation)))


def test_draw_fractions_are_of_the_upright_photo() -> None:
    photo = Header(6, (20, 10), (10, 20), 6)
    mask = draw(labels(None, box("a", 0, 0, 0.5, 0.5)), photo, IDS, 0, "file")
    assert mask.shape == (20, 10) and mask[:10, :5].all() and mask.sum() == 50


@pytest.mark.parametrize(
    "corners",
    [
        [(25, 5), (30, 5), (30, 9)],
        [(0, 0), (1e8, 0), (10, 10)],
        [(0, 0), (5, -1e300), (10, 10)],
        [(0, 0), (float("nan"), 5), (10, 10)],
    ],
)
def test_draw_outline_outside_the_photo_is_refused(corners: list[tuple[float, float]]) -> None:
    photo = Header(1, (20, 10), (20, 10), 1)
    region = Region("a", (np.array(corners),))
    with pytest.raises(InputError, match=r"image 3: the outline of a lies outside the photo"):
        draw(labels((10, 20), region), photo, IDS, 0, "file")


def test_draw_outline_that_reaches_over_an_edge_is_cut_there() -> None:
    photo = Header(1, (20, 10), (20, 10), 1)
    assert draw(labels((10, 20), box("a", 15, 5, 30, 30)), photo, IDS, 0, "file").sum() == 25
    assert draw(labels((10, 20), box("a", -15, -5, 5, 5)), photo, IDS, 0, "file").sum() == 25
    on_edge = Region("a", (np.array([(20, 1), (20, 5), (20, 9)]),))
    assert not draw(labels((10, 20), on_edge), photo, IDS, 0, "file").any()


def test_draw_in_a_part_of_the_mask_equals_pycocotools_on_the_whole() -> None:
    photo = Header(1, (97, 71), (97, 71), 1)
    rng = np.random.default_rng(0)
    for _ in range(60):
        corners = rng.uniform(-20, 110, (int(rng.integers(3, 8)), 2))
        expected = coco_masks.decode(coco_masks.merge(rle_of([corners.ravel().tolist()], (71, 97))))
        if (corners.max(0) < 0).any() or (corners.min(0) > (97, 71)).any():
            continue
        found = draw(labels((71, 97), Region("a", (corners,))), photo, IDS, 0, "file")
        assert np.array_equal(found, expected)
