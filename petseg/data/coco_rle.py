"""Masks as COCO run-length encoding, such as pycocotools reads. Arrays in, bytes out.

The format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c (rleEncode, rleToString).
"""

import numpy as np

_BITS = 5  # of a number per character
_MORE = 0x20
_SIGN = 0x10
_FIRST = 48  # the character "0"


def encode(class_ids: np.ndarray, num_classes: int) -> list[str]:
    """The compressed `counts` of each class of a mask, uint8 (H, W); `size` is (H, W)."""
    by_column = class_ids.ravel(order="F")
    starts = np.flatnonzero(np.diff(by_column)) + 1  # of the runs after the first
    starts = np.concatenate(([0], starts, [by_column.size]))
    classes = by_column[starts[:-1]]
    return [_compress(_counts(starts, classes == class_id)) for class_id in range(num_classes)]


def _counts(starts: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Lengths of the runs outside and inside of a class by turns, the first one outside, given the runs of all."""
    changes = np.flatnonzero(np.diff(inside, prepend=False))  # from outside to inside and back
    return np.diff(starts[np.concatenate((changes, [-1]))], prepend=0)


def _compress(counts: np.ndarray) -> str:
    """Each count, from the fourth on as the difference to the one before the last, as signed groups of five bits."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters = np.zeros((len(values), 13), np.uint8)  # 64 bits are 13 groups
    going_on = np.ones(len(values), bool)
    for group in range(characters.shape[1]):
        low = values & ((1 << _BITS) - 1)
        values >>= _BITS
        more = np.where(low & _SIGN, values != -1, values != 0)
        characters[going_on, group] = (low + _MORE * more + _FIRST)[going_on]
        going_on &= more
        if not going_on.any():
            break
    return characters[characters > 0].tobytes().decode("ascii")
