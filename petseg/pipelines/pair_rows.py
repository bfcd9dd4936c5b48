"""Decode rows of a manifest to rows of pixels, as the tasks of `decode` and `prepare` do. No Ray here."""

import functools
from typing import Any

import pyarrow as pa

from petseg.config.base import MAX_PIXELS, Resize
from petseg.data import manifest, prepared, tiles
from petseg.data.decode import max_bytes
from petseg.data.image_file import DecodeError
from petseg.data.labels import LabelMap
from petseg.data.pairs import UnclearMaskError, decode_pair, decode_whole_pair
from petseg.data.tiles import Tile, Tiling
from petseg.inference import crash_guard

_OUT_OF_MEMORY = "decoding the pair runs out of memory; shrink its files, or use a larger machine"


def decode_rows(
    rows: pa.Table,
    image_size: tuple[int, int],
    label_map: LabelMap,
    resize: Resize = "antialias",
    masks_upright: bool | None = None,
    tiling: Tiling | None = None,
    seed: int = 0,
) -> pa.Table:
    """Decode rows of a manifest to rows of `prepared.schema`, and add the columns `error`, `drawn` and `notes`.

    With `tiling`, each pair becomes a row per tile: at random places, which `seed` and the pair's id determine, if the
    pair has True in the manifest's column `random`, else those of a prediction.

    A bad pair has the reason in `error`, and no pixels. Without `masks_upright`, a pair whose mask is "unclear" in
    `drawn` has neither an error nor pixels.

    Raises `UnavailableError` if storage does not answer.
    """
    schema = prepared.schema(image_size)
    for name, kind in (("error", pa.string()), ("drawn", pa.string()), ("notes", pa.list_(pa.string()))):
        schema = schema.append(pa.field(name, kind))
    decode_one = functools.partial(
        _decode_pair,
        image_size=image_size,
        label_map=label_map,
        resize=resize,
        masks_upright=masks_upright,
        tiling=tiling,
        seed=seed,
    )
    decoded: list[dict[str, object]] = []
    for pair in manifest.read_pairs(rows, max_bytes(MAX_PIXELS)):
        if_died: dict[str, object] = {"id": pair[0]["id"], "error": f"{pair[0]['image']}: {_OUT_OF_MEMORY}"}
        decoded += crash_guard.run_with_retry(decode_one, pair, [if_died])
    return pa.table({name: [row.get(name) for row in decoded] for name in schema.names}, schema=schema)


def _decode_pair(
    pair: tuple[dict[str, Any], bytes, bytes, str],
    image_size: tuple[int, int],
    label_map: LabelMap,
    resize: Resize,
    masks_upright: bool | None,
    tiling: Tiling | None,
    seed: int,
) -> list[dict[str, object]]:
    """Return the rows of a pair: one, or one for each tile."""
    row, photo, mask, error = pair
    if error:
        return [{"id": row["id"], "error": error}]
    try:
        if tiling is None:
            decoded = decode_pair(photo, mask, image_size, label_map, MAX_PIXELS, resize, masks_upright)
            size_hw, notes = (decoded.photo.height, decoded.photo.width), decoded.photo.notes
            pair_tiles = iter([Tile(decoded.photo.pixels, decoded.class_ids)])
        else:
            decoded = decode_whole_pair(photo, mask, label_map, MAX_PIXELS, masks_upright)
            size_hw, notes = decoded.class_ids.shape, decoded.notes
            whole = (decoded.picture, decoded.class_ids, tiling, image_size, resize)
            seeds = (seed, *row["id"].encode())
            pair_tiles = tiles.training_tiles(*whole, seed=seeds) if row["random"] else tiles.validation_tiles(*whole)
    except UnclearMaskError:
        return [{"id": row["id"], "drawn": "unclear"}]
    except DecodeError as error:
        return [{"id": row["id"], "error": f"{row['mask' if error.in_mask else 'image']}: {error}"}]
    common: dict[str, object] = {"id": row["id"], "height": size_hw[0], "width": size_hw[1]}
    rows = [common | {"image": tile.pixels.tobytes(), "mask": tile.class_ids.tobytes()} for tile in pair_tiles]
    rows[0] |= {"drawn": decoded.drawn, "notes": list(notes)}  # once per pair, because the driver counts pairs
    return rows
