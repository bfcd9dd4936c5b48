"""Photos that are there twice: the same bytes, or a picture that looks the same. Arrays only, no files."""

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

NEAR_BITS = 4
"""Two photos look the same where their hashes differ in no more bits of 64. Krawetz, who describes the hash ("Kind of
Like That", 2013), takes 0 for the same picture and up to 10 for a variation of it. With 4, of 1,649 photos of the pet
dataset 13 were paired with another; those that were looked at were the same photo."""

MOST_PAIRS = 100_000
"""That are looked for: of a thousand frames of one film, half a million pairs are near."""

_BANDS = NEAR_BITS + 1
_BLOCK = 2**22


def difference_hash(picture: Image.Image) -> int:
    """64 bits that say where the brightness of a picture rises from left to right, at 9 × 8 pixels (dHash)."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR)).astype(int)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())


def near(hashes: np.ndarray) -> list[tuple[int, int, int]]:
    """The pairs of places whose hashes, uint64 (n,), differ in at most `NEAR_BITS` bits, and in how many; the nearest
    first. Of many that are equal, each is paired with the first alone; after `MOST_PAIRS` it ends.

    Two hashes that differ in at most 4 bits have at least one of five parts in common, so only those are compared.
    """
    unique, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    equal = np.flatnonzero(first[which] != np.arange(len(hashes)))
    found = {(int(first[which[place]]), int(place)): 0 for place in equal}
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        part = (unique >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        for left, right in _of_one_part(part):
            bits = np.bitwise_count(unique[left] ^ unique[right])
            close = bits <= NEAR_BITS
            ones, others = np.sort([first[left[close]], first[right[close]]], axis=0).tolist()
            found.update(zip(zip(ones, others, strict=True), bits[close].tolist(), strict=True))
            if len(found) >= MOST_PAIRS:
                return _sorted(found)
    return _sorted(found)


def _sorted(found: dict[tuple[int, int], int]) -> list[tuple[int, int, int]]:
    return sorted(((*pair, distance) for pair, distance in found.items()), key=lambda entry: (entry[2], entry[:2]))


def _of_one_part(part: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of places with equal values, a block at a time: each value's run against itself, shifted."""
    order = np.argsort(part, kind="stable")
    ordered = part[order]
    for shift in range(1, len(part)):
        same = np.flatnonzero(ordered[shift:] == ordered[:-shift])
        if not same.size:
            return
        for start in range(0, len(same), _BLOCK):
            some = same[start : start + _BLOCK]
            yield order[some], order[some + shift]
