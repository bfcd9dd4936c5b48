from typing import Any

import numpy as np
import pytest
from pycocotools import mask as cocotools

from petseg.data import coco_rle


def masks() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 3, (37, 53), np.uint8)
    blocks = np.kron(generator.integers(0, 3, (9, 7), np.uint8), np.ones((50, 80), np.uint8))
    one, two, wide = np.zeros((5, 4), np.uint8), np.full((1, 1), 2, np.uint8), np.zeros((3000, 2000), np.uint8)
    wide[10:20, 7] = 1  # run lengths of millions, which take several characters
    wide[-1, -1] = 2
    return [noise, blocks, one, two, wide, np.ascontiguousarray(blocks.T)]


@pytest.mark.parametrize("ids", masks(), ids=lambda ids: f"{ids.shape[0]}x{ids.shape[1]}")
def test_encode_pycocotools_writes_and_reads_the_same_counts(ids: np.ndarray) -> None:
    for class_id, counts in enumerate(coco_rle.encode(ids, 3)):
        theirs: Any = cocotools.encode(np.asfortranarray(ids == class_id, np.uint8))
        assert theirs["counts"].decode() == counts
        rle: Any = {"size": list(ids.shape), "counts": counts}
        assert np.array_equal(cocotools.decode(rle), ids == class_id)
        assert cocotools.area(rle) == (ids == class_id).sum()


def test_encode_counts_match_hand_computed_ones() -> None:
    """The mask read by columns is 0 1 0 1 1 1. Runs outside and inside class 1 are 1, 1, 1, 3; for class 0 they are
    0, 1, 1, 1, 3. From the fourth on, the format stores the difference to the count two before."""
    ids = np.array([[0, 1], [1, 1], [0, 1]], np.uint8)
    assert coco_rle.encode(ids, 2) == ["01102", "1112"]
