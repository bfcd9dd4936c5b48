"""Decide for a set of pairs if the masks of photos that EXIF turns were drawn on the upright photos.

Some tools draw on the photo as it is shown, and others on the pixels as they are stored. Where a photo that is not
square lies on its side, the size of its mask shows which. All other masks of the set follow those.
"""

from collections.abc import Mapping
from typing import Any, Literal

from petseg.config.base import MasksUpright
from petseg.errors import InputError

Drawn = Literal["as stored", "upright", "unclear"]

REMEDY = (
    "look at both: pass --masks-upright yes if the mask was drawn on the upright photo, or no if it was drawn on the "
    "photo as it is stored"
)
UNCLEAR = f"its photo is turned by EXIF, and its size does not show if it was drawn on the upright photo; {REMEDY}"

USED = {
    True: "used as drawn on the upright photos, as the sizes of the others show",
    False: "used as drawn on the photos as they are stored, as the sizes of the others show",
}
"""Maps the decision to the words that tell the user of it."""


def given(flag: MasksUpright) -> bool | None:
    """Return the decision of --masks-upright; None for "auto"."""
    return {"auto": None, "yes": True, "no": False}[flag]


def decision(counts: Mapping[Any, int]) -> bool | None:
    """Return True if the clear masks were drawn on upright photos, False if not; None if they differ or do not exist.

    `counts` are the numbers of masks by how they were drawn.
    """
    upright, as_stored = counts.get("upright", 0), counts.get("as stored", 0)
    return upright > 0 if bool(upright) != bool(as_stored) else None


def decide(counts: Mapping[Any, int], example: str) -> bool:
    """Return `decision(counts)`, and print it. `example` is the id of an unclear mask.

    Raises `InputError` if nothing decides.
    """
    unclear = counts["unclear"]
    masks = f"{unclear} mask{'s' * (unclear != 1)} of photos that EXIF turns, such as {example}"
    upright = decision(counts)
    if upright is None:
        raise InputError(f"{masks}: the sizes do not show if they were drawn on the upright photos; {REMEDY}")
    print(f"note: {masks}: {USED[upright]}")
    return upright
