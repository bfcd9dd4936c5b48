"""Process one shard: read its photos, predict their masks, write its rows and files. No Ray and no network code."""

import errno
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from petseg import storage
from petseg.config.base import Resize
from petseg.data import coco_rle, visualize
from petseg.data.decode import Photo, decode_opened, decode_whole, from_column, max_bytes
from petseg.data.encode import encode_grey, encode_mask
from petseg.data.image_file import DecodeError, open_image
from petseg.data.notes import notes_of
from petseg.data.tiles import Tiling
from petseg.files import OVERLAY_FOLDER
from petseg.inference import crash_guard, output_folder, plan
from petseg.inference.plan import Outputs, Summary, Target
from petseg.lookahead import map_ahead
from petseg.storage import sharded_output

_IO_THREADS = 16
_NOT_WRITTEN = ["shard", "preview"]  # columns that travel with a shard's rows, but are not in its file
_KILLED = "decoding it crashed, or ran out of memory, in every attempt; convert the photo, or leave it out"
_PIXELS_WAITING = 2**25  # maximum total pixels of original-size masks that wait for an encoder


def read_shard(
    rows: pa.Table,
    size_hw: tuple[int, int],
    max_pixels: int,
    *,
    resize: Resize = "antialias",
    tiling: Tiling | None = None,
    previews: bool = False,
    decode_timeout: float | None = None,
    in_subprocess: bool = False,
) -> pa.Table:
    """Read and decode the photos of a shard.

    Adds the columns `height`, `width`, `error`, `pixels` (raw RGB bytes at `size_hw`), `preview` (a JPEG; null unless
    `previews` is set) and `notes` (those of `notes.notes_of`).

    A photo that cannot be read or decoded has the reason in `error`, and null in the other added columns. A photo
    to be cut into tiles has null in `pixels`, because its own pixels are too large to pass on: `predict_shard` reads it
    again, and may find only then that it cannot be decoded.

    With `in_subprocess`, photos are decoded in a subprocess. A photo that repeatedly kills it, or whose decoding takes
    longer than `decode_timeout` seconds, gets an error. Without it, such a photo ends this process.

    Raises `UnavailableError` if storage does not answer. That is not the photo's fault, so no row records it.
    """
    decode = partial(_decode, size_hw=size_hw, max_pixels=max_pixels, resize=resize, tiling=tiling)
    columns_of = partial(_columns_of, decode=decode, preview_max_pixels=max_pixels if previews else None)
    contents = storage.read_each(rows["image"].to_pylist(), max_bytes(max_pixels))
    if_died, limit = {"error": _KILLED}, _time_limit(decode_timeout, lambda late: {"error": late})
    if in_subprocess:
        photos = list(crash_guard.map_in_subprocess(columns_of, contents, if_died, limit))
    else:
        photos = [crash_guard.run_with_retry(columns_of, content, if_died, limit) for content in contents]
    types = {
        "height": pa.int32(),
        "width": pa.int32(),
        "error": pa.string(),
        "pixels": pa.binary(size_hw[0] * size_hw[1] * 3),
        "preview": pa.binary(),
        "notes": pa.list_(pa.string()),
    }
    for name, arrow_type in types.items():
        rows = rows.append_column(name, pa.array([photo.get(name) for photo in photos], arrow_type))
    return rows


def predict_shard(
    rows: pa.Table,
    size_hw: tuple[int, int],
    max_pixels: int,
    outputs: Outputs,
    palette: tuple[tuple[int, int, int], ...],
    predict: Callable[[list[Photo]], Iterable[Any]],
    predict_tiled: Callable[[Image.Image], Any],
    pool: ThreadPoolExecutor,
    decode_timeout: float | None = None,
    in_subprocess: bool = False,
) -> pa.Table:
    """Convert the rows of `read_shard` to rows of `plan.schema`, with the columns `shard` and `preview` added.

    `predict` yields a `predictor.Prediction` for each decoded photo, in order. `predict_tiled` returns a
    `predictor.TiledPrediction` for a photo at its own size. `decode_timeout` and `in_subprocess` are those of
    `read_shard`, for the photos that are decoded here, at their own size. Raises `UnavailableError` if storage does not
    answer.
    """
    schema = plan.schema(outputs)
    columns = {name: [None] * rows.num_rows for name in schema.names}
    columns |= {name: rows[name].to_pylist() for name in schema.names if name in rows.column_names}
    pictures = _load_whole(rows, max_pixels, decode_timeout, in_subprocess)
    predicted = itertools.chain(_predict_decoded(rows, size_hw, predict), _predict_large(pictures, predict_tiled))
    # Other threads enlarge and encode masks while the network works on the next photos. Masks of tiled photos need no
    # enlarging.
    encode = partial(_encode, outputs=outputs, palette=palette)
    for row, values in map_ahead(pool, encode, predicted, _PIXELS_WAITING, weight=lambda item: item.num_pixels):
        for name, value in values.items():
            columns[name][row] = value
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    for name in _NOT_WRITTEN:
        table = table.append_column(name, rows[name])
    return table


def write_shard(rows: pa.Table, target: Target, *, into_existing: bool = False) -> Summary:
    """Write the files of a shard's rows and then, as the commit, its Parquet file. Repeating it gives the same bytes.

    With `into_existing`, the rows replace those of the same ids in the shard's file.

    Raises `OSError` if a job with another plan has taken over the output, and `OSError` or `UnavailableError` if the
    output cannot be written.
    """
    shard = rows["shard"][0].as_py()
    output_folder.require_plan(target)
    for folder, ending in target.outputs.files().items():
        names = [f"{folder}/{row_id}{ending}" for row_id in rows["id"].to_pylist()]
        masks, previews = (rows[name].to_pylist() for name in ("mask_png", "preview"))
        with ThreadPoolExecutor(_IO_THREADS) as pool:
            list(pool.map(partial(_write_file, target), names, masks, previews))
        used = {name.rpartition("/")[0] for name, mask in zip(names, masks, strict=True) if mask is not None}
        used |= {str(above) for below in used for above in PurePosixPath(below).parents}
        storage.flush_folders(storage.join(target.output, below) for below in used)
    rows = rows.drop_columns(_NOT_WRITTEN)
    if into_existing:
        rows = _merge(rows, target, shard)
    summary = output_folder.summarise(rows)
    target.write_shard(shard, rows, [summary.failed, summary.first_errors, summary.notes])
    storage.flush_folders([target.output])
    return summary


def _merge(rows: pa.Table, target: Target, shard: int) -> pa.Table:
    """Return the rows of a shard's file, with those of the ids in `rows` replaced."""
    location = target.location(shard)
    before = sharded_output.parse_parquet(storage.read(location))
    if (before.schema.metadata or {}).get(target.mark_key) != target.mark(shard):
        raise OSError(errno.EEXIST, "another job has been writing there", location)
    before = before.replace_schema_metadata(None).cast(rows.schema)  # Parquet has another name for the items of lists
    replacement = pc.index_in(before["id"], value_set=rows["id"])  # pyright: ignore[reportAttributeAccessIssue]
    assert replacement.null_count == before.num_rows - rows.num_rows
    indices = [
        index if of_new is None else before.num_rows + of_new for index, of_new in enumerate(replacement.to_pylist())
    ]
    return pa.concat_tables([before, rows]).take(indices).combine_chunks()


@dataclass(frozen=True)
class _PendingMask:
    """One row's mask, which `make_mask` returns, or the reason why the row has none."""

    row: int
    make_mask: Callable[[], Any] | None
    num_pixels: int
    """Pixels of the mask; 0 if there is none."""
    error: str | None = None


def _predict_decoded(
    rows: pa.Table, size_hw: tuple[int, int], predict: Callable[[list[Photo]], Iterable[Any]]
) -> Iterator[_PendingMask]:
    """Yield the rows that have pixels, predicted at the network's size."""
    pixels = from_column(rows["pixels"], (*size_hw, 3))
    heights, widths = rows["height"].to_pylist(), rows["width"].to_pylist()
    decoded = [row for row, valid in enumerate(rows["pixels"].is_valid().to_pylist()) if valid]
    photos = [Photo(pixels[row], heights[row], widths[row]) for row in decoded]
    for row, prediction in zip(decoded, predict(photos), strict=True):
        yield _PendingMask(row, prediction.mask, prediction.height * prediction.width)


def _predict_large(
    pictures: Iterator[tuple[int, Image.Image | str]], predict_tiled: Callable[[Image.Image], Any]
) -> Iterator[_PendingMask]:
    """Yield the rows whose photos are cut into tiles. No reference to a photo or a mask is kept."""

    def predict(row: int, picture: Image.Image | str) -> _PendingMask:
        if isinstance(picture, str):
            return _PendingMask(row, None, 0, picture)
        mask = predict_tiled(picture).mask()
        return _PendingMask(row, lambda: mask, mask.class_ids.size)

    return itertools.starmap(predict, pictures)


def _encode(
    predicted: _PendingMask, outputs: Outputs, palette: tuple[tuple[int, int, int], ...]
) -> tuple[int, dict[str, Any]]:
    """Return (row, its values by column name), computing its mask."""
    if predicted.make_mask is None:
        return predicted.row, {"height": None, "width": None, "notes": None, "error": predicted.error}
    mask = predicted.make_mask()
    height, width = mask.class_ids.shape
    values: dict[str, Any] = {
        "height": height,
        "width": width,
        "mask_png": encode_mask(mask.class_ids, palette),
        "class_pixels": mask.class_pixels,
        "confidence": mask.confidence,
        "unsure": mask.unsure,
    }
    if outputs.probabilities:
        values["probability_pngs"] = [encode_grey(of_class) for of_class in mask.probabilities]
    if outputs.coco_rle:
        counts = coco_rle.encode(mask.class_ids, len(palette))
        values["coco_rle"] = [{"size": [height, width], "counts": of_class} for of_class in counts]
    return predicted.row, values


def _columns_of(
    content: bytes | OSError, decode: Callable[[bytes], dict[str, Any]], preview_max_pixels: int | None
) -> dict[str, Any]:
    """Return the columns of one photo. `content` is the file's content or the error of reading it.

    Adds a preview if `preview_max_pixels` is not None.
    """
    if isinstance(content, OSError):
        return {"error": _reason(content)}
    try:
        columns = decode(content)
        if preview_max_pixels is not None:
            columns["preview"] = visualize.preview(content, preview_max_pixels)
    except DecodeError as error:
        return {"error": _reason(error)}
    return columns


def _load_whole(
    rows: pa.Table, max_pixels: int, decode_timeout: float | None, in_subprocess: bool
) -> Iterator[tuple[int, Image.Image | str]]:
    """Yield (row, photo) or (row, error) for each row that has neither pixels nor an error. The photo has its own size.

    The next photo is decoded while one is in use, so two are in memory at a time.
    """
    decode = partial(decode_whole, max_pixels=max_pixels)
    limit = _time_limit(decode_timeout, lambda late: late)

    def load(row: int) -> tuple[int, Image.Image | str]:
        try:
            content = storage.read(locations[row], at_most=max_bytes(max_pixels))
            if in_subprocess:
                return row, next(crash_guard.map_in_subprocess(decode, [content], _KILLED, limit))
            return row, crash_guard.run_with_retry(decode, content, _KILLED, limit)
        except (DecodeError, OSError) as error:
            return row, _reason(error)

    locations, errors = rows["image"].to_pylist(), rows["error"].to_pylist()
    decoded = rows["pixels"].is_valid().to_pylist()
    large = [row for row in range(rows.num_rows) if not decoded[row] and errors[row] is None]
    with ThreadPoolExecutor(1) as loader:
        yield from map_ahead(loader, load, large, 1)


def _time_limit(seconds: float | None, to_result: Callable[[str], Any]) -> crash_guard.TimeLimit[Any] | None:
    """Return the limit of decoding a photo. `to_result` makes a result of the error of a photo that takes longer."""
    if seconds is None:
        return None
    late = f"decoding it took longer than --decode-timeout {seconds:g} s; convert the photo, or leave it out"
    return crash_guard.TimeLimit(seconds, to_result(late))


def _decode(
    content: bytes, size_hw: tuple[int, int], max_pixels: int, resize: Resize, tiling: Tiling | None
) -> dict[str, Any]:
    opened = open_image(content, max_pixels)
    width, height = opened.header.size
    if tiling is not None and tiling.cuts(height, width):
        return {"height": height, "width": width, "notes": notes_of(opened)}
    photo = decode_opened(opened, size_hw, resize)
    return {"height": height, "width": width, "pixels": photo.pixels.tobytes(), "notes": photo.notes}


def _write_file(target: Target, name: str, mask_png: bytes | None, preview: bytes | None) -> None:
    """Write one file of a row. `name` is its path in the output."""
    location = storage.join(target.output, name)
    if mask_png is None:
        storage.remove_file(location)  # of an earlier start that could still read the photo, and was killed
    elif name.startswith(f"{OVERLAY_FOLDER}/"):
        assert preview is not None
        storage.write(location, visualize.overlay(preview, mask_png), scratch=target.output)
    else:
        storage.write(location, mask_png, scratch=target.output)


def _reason(error: DecodeError | OSError) -> str:
    return str(error) if isinstance(error, DecodeError) else f"cannot be read: {storage.reason(error)}"
