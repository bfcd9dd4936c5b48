"""Pixels of a mask file: as raw values, and as class ids. No folders, no torch."""

import contextlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

from petseg.data import image_file, labels, wide_tiff
from petseg.data.image_file import DecodeError, OpenImage
from petseg.data.labels import LabelMap

_JPEG_SIGNATURE = b"\xff\xd8\xff"
_STRETCHED_BY = {"2": 85, "4": 17}  # Pillow makes values of 2 or 4 bits of grey fill 0..255


@contextlib.contextmanager
def errors_of_mask() -> Iterator[None]:
    """Mark a `DecodeError` as one of the mask."""
    try:
        yield
    except DecodeError as error:
        error.in_mask = True
        raise


def open_mask(content: bytes, max_pixels: int) -> OpenImage:
    """Do as `image_file.open_image`, and open TIFF files of 64 bits, too. Raises `DecodeError` if it has many pages."""
    try:
        opened = image_file.open_image(content, max_pixels)
    except image_file.UnknownTiffError as error:
        opened = image_file.open_image(wide_tiff.narrow(content, error, max_pixels), max_pixels)
    if opened.num_pages > 1:
        raise DecodeError(
            f"it has {opened.num_pages} pages, of which it is not known what each means; merge them into one image "
            "with a value for each class"
        )
    return opened


def is_lossy(mask: bytes) -> bool:
    """Return True if a mask is a JPEG, whose compression changes values."""
    return mask.startswith(_JPEG_SIGNATURE)


def raw_values(mask: bytes, max_pixels: int, most: int, as_colours: bool = False) -> tuple[dict[int, int], bool]:
    """Return ({raw value: number of pixels} of a mask, True if the values are colours as 0xRRGGBB).

    The values of a colour image are colours. With `as_colours`, those of grey and indexed images are colours as well.
    Fully transparent pixels of a colour image are left out, as they have no label. Only the `most` values with the most
    pixels are returned. Raises `DecodeError` if the mask cannot be decoded.
    """
    with errors_of_mask():
        opened = open_mask(mask, max_pixels)
        opened.load()
        image = opened.image
        numbers = None if as_colours else _numbers(image, _stored_values(opened))
        raw = _colours(image) if numbers is None else numbers
        if raw.dtype == np.uint8:  # counting takes a tenth of the time of sorting
            counts = np.bincount(raw.ravel(), minlength=256)
            values = np.flatnonzero(counts)
            counts = counts[values]
        else:
            values, counts = np.unique(raw[raw != labels.TRANSPARENT] if numbers is None else raw, return_counts=True)
        kept = np.sort(np.argsort(-counts, kind="stable")[:most])
        return dict(zip(values[kept].tolist(), counts[kept].tolist(), strict=True)), numbers is None


def class_ids(opened: OpenImage, label_map: LabelMap) -> Image.Image:
    """Decode a mask, and map its raw values to class ids at the stored size: resizing could hide a value.

    Raises `DecodeError` if it is damaged, or has a value that no class covers.
    """
    opened.load()
    try:
        return _map(opened.image, _stored_values(opened), label_map)
    except DecodeError as error:
        if is_lossy(opened.content):
            raise DecodeError(labels.LOSSY_REMEDY) from error
        raise


def _map(mask: ImageFile.ImageFile, stored: np.ndarray, label_map: LabelMap) -> Image.Image:
    if label_map.colours:
        raw = _colours(mask)
        class_ids = label_map.table[raw]
        if (class_ids == labels.UNKNOWN_ID).any():
            raise DecodeError(label_map.explain_unknown(np.unique(raw[class_ids == labels.UNKNOWN_ID]).tolist()))
        return Image.fromarray(class_ids)
    table = label_map.table
    if mask.mode in ("L", "P"):  # most masks: mapping and searching bytes takes a tenth of the time
        mapped = mask.tobytes().translate(table[stored].tobytes())
        if labels.UNKNOWN_ID in mapped:
            values = np.unique(stored[np.asarray(mask)])
            unknown = values[table[values] == labels.UNKNOWN_ID]
            raise DecodeError(label_map.explain_unknown(unknown.tolist(), has_255=255 in values))
        return Image.frombytes("L", mask.size, mapped)
    raw = _numbers(mask, stored)
    if raw is None:
        raise DecodeError(
            f"it is a colour image (mode {mask.mode}), where one number per pixel is expected, as grey or indexed "
            f"colour; pass --label-map with its colours, as in {_example_label_map(mask)}"
        )
    # Values outside the table are clipped for the lookup, but stay unknown.
    unknown = (raw < 0) | (raw >= len(table)) if raw.dtype.itemsize > 2 else np.False_
    class_ids = table[np.clip(raw, 0, len(table) - 1) if np.any(unknown) else raw]
    unknown = unknown | (class_ids == labels.UNKNOWN_ID)
    if unknown.any():
        raise DecodeError(label_map.explain_unknown(np.unique(raw[unknown]).tolist(), has_255=bool((raw == 255).any())))
    return Image.fromarray(class_ids)


def _stored_values(opened: OpenImage) -> np.ndarray:
    """Return the stored value for each value, 0 to 255, of an image that Pillow has decoded: uint8 (256,).

    Pillow gives brightness: it inverts a TIFF in which 0 is white, and stretches a few bits of grey to 0..255.
    """
    values, (_, _, layout) = np.arange(256, dtype=np.uint8), opened.raw_mode.partition(";")
    if opened.image.mode not in ("1", "L"):
        return values
    if "I" in layout:
        values = 1 - values if opened.image.mode == "1" else 255 - values
    return values // _STRETCHED_BY.get(layout[:1], 1) if opened.image.mode == "L" else values


def _numbers(mask: Image.Image, stored: np.ndarray) -> np.ndarray | None:
    """Return a mask's pixels as integers (H, W); None if it is a colour image.

    Raises `DecodeError` if the pixels are floating-point numbers that are not all whole.
    """
    raw = np.asarray(mask)
    if raw.ndim != 2:
        return None
    if raw.dtype in (bool, np.uint8):
        return stored[raw.astype(np.uint8)]
    if raw.dtype.kind == "f":
        whole = np.abs(raw) < 2**31  # false for NaN, too
        whole[whole] = raw[whole] == np.floor(raw[whole])
        if not whole.all():
            raise DecodeError(f"it has the value {raw[~whole][0]:g}; raw values are whole numbers")
        return raw.astype(np.int64)
    return raw


def _colours(mask: Image.Image) -> np.ndarray:
    """Return a mask's pixels as 0xRRGGBB: uint32 (H, W).

    A fully transparent pixel has the value `labels.TRANSPARENT`: its colour is that of what an eraser has removed.
    """
    if mask.mode not in ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "RGBX"):
        raise DecodeError(f"its mode is {mask.mode}; masks of colours are RGB images of 8 bits")
    has_alpha = mask.mode in ("PA", "LA", "RGBA") or "transparency" in mask.info
    channels = np.moveaxis(np.asarray(mask.convert("RGBA" if has_alpha else "RGB"), np.uint32), -1, 0)
    colours = channels[0] << 16 | channels[1] << 8 | channels[2]
    if has_alpha:
        colours[channels[3] == 0] = labels.TRANSPARENT
    return colours


def _example_label_map(mask: Image.Image) -> str:
    """Return an example of --label-map for a colour mask, with up to three of its colours."""
    raw = _colours(mask)
    colours = np.unique(raw[raw != labels.TRANSPARENT]).tolist()[:3]
    return f'"{",".join(f"#{raw:06x}:{i}" for i, raw in enumerate(colours))},…"'
