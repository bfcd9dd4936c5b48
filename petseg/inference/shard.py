"""Process one shard: read its photos, predict their masks, write its rows and files. No Ray and no network code."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from petseg import storage
from petseg.config.base import Resize
from petseg.data import coco_rle, visualize
from petseg.data.decode import (
    DecodeError,
    Photo,
    decode_photo,
    decode_whole,
    encode_grey,
    encode_mask,
    from_column,
    max_bytes,
    upright_size,
)
from petseg.errors import UnavailableError
from petseg.inference import crash_guard, output_folder, plan
from petseg.inference.plan import Outputs, Summary, Target

_IO_THREADS = 16
_KILLED = "the process that decoded it has died"
_PIXELS_WAITING = 2**25  # maximum total pixels of original-size masks that wait for an encoder


def read_shard(
    rows: pa.Table,
    size_hw: tuple[int, int],
    max_pixels: int,
    *,
    resize: Resize = "antialias",
    tile_hw: tuple[int, int] | None = None,
    previews: bool = False,
    apart: bool = False,
) -> pa.Table:
    """Read and decode the photos of a shard.

    Returns the rows with the columns `height`, `width`, `error`, `pixels` (raw RGB bytes at `size_hw`) and `preview`
    (a JPEG if `previews` is set) added.

    A photo that cannot be read or decoded has the reason in `error`, and null in the other added columns. A photo
    larger than a tile has null in `pixels`: reading it again is better than passing it on at its own size. With
    `apart`, photos are decoded in a subprocess, and a photo that kills the subprocess gets an error, too.

    Raises `UnavailableError` if storage does not answer. That is not the photo's fault, so no row records it.
    """
    decode = partial(_decode, size_hw=size_hw, max_pixels=max_pixels, resize=resize, tile_hw=tile_hw)
    columns_of = partial(_columns_of, decode=decode, previews_of=max_pixels if previews else None)
    locations, at_most = rows["image"].to_pylist(), max_bytes(max_pixels)
    if apart:
        read = partial(_read_columns, at_most=at_most, columns_of=columns_of)
        found = list(crash_guard.each(read, locations, if_died={"error": _KILLED}))
    else:
        found = list(map(columns_of, storage.read_each(locations, at_most)))
    kinds = {
        "height": pa.int32(),
        "width": pa.int32(),
        "error": pa.string(),
        "pixels": pa.binary(size_hw[0] * size_hw[1] * 3),
        "preview": pa.binary(),
    }
    for name, kind in kinds.items():
        rows = rows.append_column(name, pa.array([photo.get(name) for photo in found], kind))
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
    apart: bool = False,
) -> pa.Table:
    """Convert the rows of `read_shard` to rows of `plan.schema`, with the columns `shard` and `preview` added.

    `predict` yields a `predictor.Prediction` for each decoded photo, in order. `predict_tiled` returns a
    `predictor.Mask` for a photo at its own size. With `apart`, photos at their own size are decoded in a subprocess, as
    in `read_shard`.
    """
    found = {name: rows[name].to_pylist() for name in ("height", "width", "error")}
    masks = _Encoding(rows.num_rows, outputs, palette, pool)
    pixels = from_column(rows["pixels"], (*size_hw, 3))
    decoded = rows["pixels"].is_valid().to_pylist()
    whole = [row for row in range(rows.num_rows) if decoded[row]]
    photos = [Photo(pixels[row], found["height"][row], found["width"][row]) for row in whole]
    for row, prediction in zip(whole, predict(photos), strict=True):
        masks.put(row, prediction.height * prediction.width, prediction.mask)

    large = [row for row in range(rows.num_rows) if not decoded[row] and found["error"][row] is None]
    locations = rows["image"].to_pylist()
    whole_pictures = _load_whole([locations[row] for row in large], max_pixels, apart)
    for row in large:
        picture = next(whole_pictures)
        if isinstance(picture, str):
            found["height"][row], found["width"][row], found["error"][row] = None, None, picture
            continue
        mask = predict_tiled(picture)
        del picture
        found["height"][row], found["width"][row] = mask.class_ids.shape
        masks.put(row, mask.class_ids.size, lambda mask=mask: mask)
        del mask
    columns = {**{name: rows[name] for name in rows.column_names}, **found, **masks.columns()}
    schema = plan.schema(outputs)
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    return table.append_column("shard", rows["shard"]).append_column("preview", rows["preview"])


def write_shard(rows: pa.Table, target: Target) -> Summary:
    """Write the files of a shard's rows and then, as the commit, its Parquet file. Repeating it gives the same bytes.

    Raises `OSError` if the output cannot be written or a job with another plan has taken it over.
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
    rows = rows.drop_columns(["shard", "preview"])
    summary = output_folder.summarise(rows)
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(output_folder.footer(target, summary)), buffer)
    storage.write(target.location(shard), buffer.getvalue())
    storage.flush_folders([target.output])
    return summary


class _Encoding:
    """Compute and encode the masks of a shard in other threads, while the network works on the next photos."""

    def __init__(
        self, num_rows: int, outputs: Outputs, palette: tuple[tuple[int, int, int], ...], pool: ThreadPoolExecutor
    ) -> None:
        self._encoded: list[dict[str, Any]] = [{} for _ in range(num_rows)]
        self._outputs = outputs
        self._palette = palette
        self._pool = pool
        self._waiting: deque[tuple[int, int, Future[dict[str, Any]]]] = deque()
        self._pixels_waiting = 0

    def put(self, row: int, pixels: int, make_mask: Callable[[], Any]) -> None:
        self._waiting.append((row, pixels, self._pool.submit(self._encode, make_mask)))
        self._pixels_waiting += pixels
        while self._pixels_waiting > _PIXELS_WAITING:
            self._take()

    def columns(self) -> dict[str, list[Any]]:
        """Return the mask columns by name. A row without a mask has null."""
        while self._waiting:
            self._take()
        of_mask = [name for name in plan.schema(self._outputs).names if name not in output_folder.OF_PHOTO]
        return {name: [encoded.get(name) for encoded in self._encoded] for name in of_mask}

    def _take(self) -> None:
        row, pixels, encoding = self._waiting.popleft()
        self._encoded[row] = encoding.result()
        self._pixels_waiting -= pixels

    def _encode(self, make_mask: Callable[[], Any]) -> dict[str, Any]:
        mask = make_mask()
        encoded: dict[str, Any] = {
            "mask_png": encode_mask(mask.class_ids, self._palette),
            "class_pixels": mask.class_pixels,
            "confidence": mask.confidence,
        }
        if self._outputs.probabilities:
            encoded["probability_pngs"] = [encode_grey(of_class) for of_class in mask.probabilities]
        if self._outputs.coco_rle:
            counts = coco_rle.encode(mask.class_ids, len(self._palette))
            encoded["coco_rle"] = [{"size": list(mask.class_ids.shape), "counts": of_class} for of_class in counts]
        return encoded


def _read_columns(
    location: str, at_most: int, columns_of: Callable[[bytes | OSError], dict[str, Any]]
) -> dict[str, Any]:
    [content] = storage.read_each([location], at_most)
    return columns_of(content)


def _columns_of(
    content: bytes | OSError, decode: Callable[[bytes], dict[str, Any]], previews_of: int | None
) -> dict[str, Any]:
    """Return the columns of one photo. `content` is the file's content or the error of reading it.

    Adds a preview if `previews_of`, the maximum number of pixels, is not None.
    """
    if isinstance(content, OSError):
        return {"error": _reason(content)}
    try:
        found = decode(content)
        if previews_of is not None:
            found["preview"] = visualize.preview(content, previews_of)
    except DecodeError as error:
        return {"error": _reason(error)}
    return found


def _load_whole(locations: list[str], max_pixels: int, apart: bool) -> Iterator[Image.Image | str]:
    """Yield each photo at its own size, or the reason why it cannot be used.

    Each photo is decoded while the one before is in use, so two are in memory at a time. No reference to a yielded
    photo is kept here.
    """
    read = partial(_read_whole, max_pixels=max_pixels)

    def load(location: str) -> Image.Image | str:
        try:
            return next(crash_guard.each(read, [location], if_died=_KILLED)) if apart else read(location)
        except UnavailableError:
            raise
        except (DecodeError, OSError) as error:
            return _reason(error)

    if not locations:
        return
    with ThreadPoolExecutor(1) as loader:
        loading = deque([loader.submit(load, locations[0])])
        for following in [*locations[1:], None]:
            wait(loading)
            if following is not None:
                loading.append(loader.submit(load, following))
            yield loading.popleft().result()


def _read_whole(location: str, max_pixels: int) -> Image.Image:
    return decode_whole(storage.read(location, at_most=max_bytes(max_pixels)), max_pixels)


def _decode(
    content: bytes, size_hw: tuple[int, int], max_pixels: int, resize: Resize, tile_hw: tuple[int, int] | None
) -> dict[str, Any]:
    if tile_hw is not None:
        height, width = upright_size(content, max_pixels)
        if height > tile_hw[0] or width > tile_hw[1]:
            return {"height": height, "width": width}
    photo = decode_photo(content, size_hw, max_pixels, resize)
    return {"height": photo.height, "width": photo.width, "pixels": photo.pixels.tobytes()}


def _write_file(target: Target, name: str, mask_png: bytes | None, preview: bytes | None) -> None:
    """Write one file of a row. `name` is its path in the output."""
    location = storage.join(target.output, name)
    if mask_png is None:
        storage.remove_file(location)  # left by an earlier, killed start that could still read the photo
    elif name.startswith(f"{plan.OVERLAY_FOLDER}/"):
        assert preview is not None
        storage.write(location, visualize.overlay(preview, mask_png), scratch=target.output)
    else:
        storage.write(location, mask_png, scratch=target.output)


def _reason(error: DecodeError | OSError) -> str:
    return str(error) if isinstance(error, DecodeError) else f"cannot be read: {error.strerror or error}"
