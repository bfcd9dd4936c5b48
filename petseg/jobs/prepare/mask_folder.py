"""The folder that `petseg prepare masks` writes: a mask for each photo, the table of the photos, and classes.json."""

import csv
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from petseg import files, storage
from petseg.lookahead import map_ahead

_WRITERS = 16
"""Number of files to write at the same time, because storage takes long to answer."""


def write_masks(folder: str, masks: Mapping[str, bytes]) -> None:
    """Write masks, PNGs by id. Raises `OSError` or `UnavailableError` if one cannot be written."""

    def write(row_id: str) -> None:
        storage.write(storage.join(folder, f"{row_id}.png"), masks[row_id], scratch=folder)

    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in map_ahead(pool, write, masks, _WRITERS):
            pass


def write_photos(folder: str, image_of: Mapping[str, str]) -> None:
    """Write the table of the photos. `image_of` has their locations by id.

    Raises `OSError` or `UnavailableError` if it cannot be written.
    """
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("id", "uri"), *image_of.items()])
    storage.write(storage.join(folder, files.PHOTOS), table.getvalue().encode())
