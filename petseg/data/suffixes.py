"""Pair names that end differently, such as the photo a_0000 and the mask a, or the photo b and the mask b_mask."""

import itertools

import pyarrow as pa
import pyarrow.compute as pc


def keys_of(ids: pa.ChunkedArray, suffix: str) -> pa.ChunkedArray:
    """Return the ids without `suffix`; null for an id that does not end with it."""
    if not suffix:
        return ids
    stems = pc.utf8_slice_codeunits(ids, 0, -len(suffix))  # pyright: ignore[reportAttributeAccessIssue]
    has_suffix = pc.and_(pc.ends_with(ids, suffix), pc.not_equal(stems, ""))  # pyright: ignore[reportAttributeAccessIssue]
    return pc.if_else(has_suffix, stems, None)  # pyright: ignore[reportAttributeAccessIssue]


def find_suffixes(photo_ids: list[str], mask_ids: list[str]) -> tuple[str, str]:
    """Return (suffix of all photos, suffix of all masks), without which most names are equal; ("", "") if none are.

    A suffix begins with a character that is neither a letter nor a digit: otherwise x1 would be the photo of x2.
    """
    best, most = ("", ""), 0
    candidates = itertools.product(_common_suffixes(photo_ids), _common_suffixes(mask_ids))
    for of_photos, of_masks in sorted(candidates, key=lambda pair: len(pair[0]) + len(pair[1])):
        photo_keys = {name.removesuffix(of_photos) for name in photo_ids}
        equal = sum(name.removesuffix(of_masks) in photo_keys for name in mask_ids)
        if equal > most:
            best, most = (of_photos, of_masks), equal
    return best


def _common_suffixes(names: list[str]) -> list[str]:
    """Return "" and each suffix that all names have, and that leaves something of each of them."""
    common = names[0][1:]
    while not all(name.endswith(common) and name != common for name in names):
        common = common[1:]
    return ["", *(common[start:] for start, character in enumerate(common) if not character.isalnum())]
