"""Result of a check, from which its findings and its page are made."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from petseg.config.prepare import CheckConfig
from petseg.data import listing, orientation
from petseg.data.check import Disagreement, Row
from petseg.data.classes import Classes
from petseg.data.mask_values import Labels


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Complete result of a check."""

    config: CheckConfig
    """Settings of the check, with absolute locations."""
    pairs: pa.Table
    """Manifest of the pairs."""
    rows: Sequence[Row]
    """Result for each pair, in the order of `pairs`."""
    unpaired_photos: Sequence[str]
    """Ids of the photos without a mask."""
    unpaired_masks: Sequence[str]
    """Ids of the masks without a photo."""
    skipped: listing.Skipped
    """Numbers of files in the two folders that are no images."""
    splits: Mapping[str, str]
    """Split (train, val or test) of each id."""
    labels: Labels
    """Raw values of all masks."""
    classes: Classes
    exact_duplicates: Sequence[tuple[int, int]]
    """Exact duplicates as `check.find_duplicates` returns them: indices into `rows`."""
    near_duplicates: Sequence[tuple[int, int, int]]
    """Near-duplicates as `check.find_duplicates` returns them."""
    disagreements: Mapping[str, Disagreement] = field(default_factory=dict)
    """Disagreement of the networks of --checkpoint with each mask, by id. Masks that cannot be read have none."""
    predictions: Mapping[str, bytes] = field(default_factory=dict)
    """Predicted masks of the most likely label errors, as `encode_mask` makes them, by id."""

    def masks_upright(self) -> bool | None:
        """Return the decision of --masks-upright or, for auto, that of the masks' sizes. None if nothing decides."""
        upright = orientation.given(self.config.masks_upright)
        if upright is not None:
            return upright
        return orientation.decision(Counter(row.drawn for row in self.rows if row.drawn is not None))

    def duplicates(self) -> list[tuple[int, int]]:
        """Return all pairs of duplicate photos: exact duplicates first, then near-duplicates."""
        return [*self.exact_duplicates, *((one, other) for one, other, _ in self.near_duplicates)]

    def cross_split_duplicates(self) -> list[tuple[int, int]]:
        """Return the duplicate photos whose two copies are in different splits (train, val, test)."""
        splits = [self.splits.get(row.id) for row in self.rows]
        return [
            (one, other)
            for one, other in self.duplicates()
            if splits[one] and splits[other] and splits[one] != splits[other]
        ]

    def duplicate_of(self) -> dict[str, str]:
        """Return {id of a duplicate: id of its other copy}, preferring a copy in another split."""
        pairs = [*reversed(self.duplicates()), *reversed(self.cross_split_duplicates())]
        return {self.rows[other].id: self.rows[one].id for one, other in pairs}
