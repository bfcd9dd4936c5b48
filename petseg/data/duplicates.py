"""Find photos that look the same, by their perceptual hashes. Arrays only, no files."""

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

NEAR_BITS = 4
"""Two photos look the same if their 64-bit hashes differ in at most this many bits.

Krawetz describes the hash ("Kind of Like That", 2013). He takes 0 bits for the same picture and up to 10 for a
variation of it. With 4, 13 of 1,649 photos of the pet dataset were paired with another; the pairs that were looked at
were the same photo.
"""

MOST_PAIRS = 100_000
"""The search stops after this many pairs. A thousand frames of one film would give half a million near pairs."""

_BANDS = NEAR_BITS + 1
_BLOCK = 2**22


def difference_hash(picture: Image.Image) -> int:
    """Return the dHash of a picture: 64 bits, set where the brightness rises from left to right at 9 × 8 pixels."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR)).astype(int)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())


def near(hashes: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (index, other index, differing bits) of the hashes that differ in at most `NEAR_BITS` bits, nearest first.

    `hashes` is uint64 (n,). Equal hashes are paired only with the first of them. The search stops after `MOST_PAIRS`.

    Two hashes that differ in at most 4 bits are equal in at least one of five parts. So only hashes with an equal part
    are compared.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    equal = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    distances = {(int(first[inverse[index]]), int(index)): 0 for index in equal}
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        part = (unique >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        for left, right in _equal_pairs(part):
            bits = np.bitwise_count(unique[left] ^ unique[right])
            close = bits <= NEAR_BITS
            ones, others = np.sort([first[left[close]], first[right[close]]], axis=0).tolist()
            distances.update(zip(zip(ones, others, strict=True), bits[close].tolist(), strict=True))
            if len(distances) >= MOST_PAIRS:
                return _sorted(distances)
    return _sorted(distances)


def _sorted(distances: dict[tuple[int, int], int]) -> list[tuple[int, int, int]]:
    return sorted(((*pair, distance) for pair, distance in distances.items()), key=lambda entry: (entry[2], entry[:2]))


def _equal_pairs(part: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of indices with equal values, in blocks: (indices, other indices).

    Once sorted, equal values form runs. Comparing the values with themselves, shifted by 1, 2, …, finds the pairs.
    """
    order = np.argsort(part, kind="stable")
    ordered = part[order]
    for shift in range(1, len(part)):
        same = np.flatnonzero(ordered[shift:] == ordered[:-shift])
        if not same.size:
            return
        for start in range(0, len(same), _BLOCK):
            block = same[start : start + _BLOCK]
            yield order[block], order[block + shift]
