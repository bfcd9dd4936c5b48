"""Encode masks as COCO run-length encoding, which pycocotools reads. Arrays in, strings out.

The format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c (rleEncode, rleToString).
"""

import numpy as np

_GROUP_BITS = 5  # per character
_MORE_FLAG = 0x20  # set if another character of the number follows
_SIGN_BIT = 0x10  # the sign bit of a group of five
_FIRST_CHARACTER = 48  # code of the character "0", which stands for 0


def encode(class_ids: np.ndarray, num_classes: int) -> list[str]:
    """Return COCO's compressed `counts` for each class of a mask, uint8 (H, W). COCO's `size` is (H, W)."""
    by_column = class_ids.ravel(order="F")
    starts = np.flatnonzero(np.diff(by_column)) + 1  # starts of the runs after the first
    starts = np.concatenate(([0], starts, [by_column.size]))
    classes = by_column[starts[:-1]]
    return [_compress(_counts(starts, classes == class_id)) for class_id in range(num_classes)]


def _counts(starts: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the lengths of one class's runs, alternately outside and inside; the first is outside, and may be 0.

    `starts` are the starts of the runs of all classes, and the end of the mask. `inside` says which runs are the class.
    """
    changes = np.flatnonzero(np.diff(inside, prepend=False))  # from outside to inside and back
    return np.diff(starts[np.concatenate((changes, [-1]))], prepend=0)


def _compress(counts: np.ndarray) -> str:
    """Return the counts as characters: signed numbers in groups of five bits, the lowest group first.

    From the fourth on, a count is stored as its difference from the count two places before.
    """
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters = np.zeros((len(values), 13), np.uint8)  # 64 bits need 13 groups
    unfinished = np.ones(len(values), bool)
    for group in range(characters.shape[1]):
        low = values & ((1 << _GROUP_BITS) - 1)
        values >>= _GROUP_BITS
        more = np.where(low & _SIGN_BIT, values != -1, values != 0)
        characters[unfinished, group] = (low + _MORE_FLAG * more + _FIRST_CHARACTER)[unfinished]
        unfinished &= more
        if not unfinished.any():
            break
    return characters[characters > 0].tobytes().decode("ascii")
