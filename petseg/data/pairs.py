"""Decode a photo and its mask alike, so that they stay aligned, and count a mask's values. No folders, no torch."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from petseg.config.base import Resize
from petseg.data import decode, image_file, labels, orientation, wide_tiff
from petseg.data.decode import Photo
from petseg.data.image_file import DecodeError, OpenImage
from petseg.data.labels import LabelMap
from petseg.data.orientation import Drawn

_JPEG_SIGNATURE = b"\xff\xd8\xff"

_GREY_STRETCH = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class Pair:
    """A decoded photo and its mask."""

    photo: Photo
    class_ids: np.ndarray
    """The mask at the photo's requested size: uint8 (H, W)."""
    drawn: Drawn | None
    """What the mask's size shows of how it was drawn; see `drawn`."""
    truth: "_Truth"

    def truth_ids(self) -> np.ndarray:
        """Return the mask's class ids at the photo's original, upright size: uint8 (H, W)."""
        return self.truth.original()


class UnclearMaskError(DecodeError):
    """Raised if nothing shows whether a mask was drawn on the upright photo, or on the photo as it is stored."""


def decode_pair(
    photo: bytes,
    mask: bytes,
    size_hw: tuple[int, int],
    label_map: LabelMap,
    max_pixels: int,
    resize: Resize = "antialias",
    masks_upright: bool | None = None,
) -> Pair:
    """Decode a photo and its mask alike: both upright and at `size_hw`.

    Masks are resized with NEAREST: a filter would invent classes between classes. The photo's EXIF orientation turns
    the mask, too, with two exceptions. A mask with an orientation of its own keeps that. A mask that was drawn upright
    is not turned. If the sizes do not show how it was drawn, `masks_upright` decides.

    Raises `DecodeError` if either cannot be decoded, their sizes differ, or the mask has a value that no class covers.
    The error's `in_mask` says which of the two files is meant. Raises `UnclearMaskError` if `masks_upright` has to
    decide, and is None.
    """
    opened = image_file.open_image(photo, max_pixels)
    decoded = decode.decode_opened(opened, size_hw, resize)
    with _errors_of_mask():
        opened_mask = _open_mask(mask, max_pixels)
        how = drawn(opened.header, opened_mask.header)
        if how == "unclear" and masks_upright is None:
            raise UnclearMaskError(orientation.UNCLEAR)
        is_upright = masks_upright if how == "unclear" else how != "as stored"
        truth = _decode_mask(opened_mask, opened.header, label_map, turn=not is_upright)
    return Pair(decoded, truth.resized(size_hw), how, truth)


def drawn(photo: image_file.Header, mask: image_file.Header) -> Drawn | None:
    """Return how the sizes show that a mask was drawn: on the upright photo, on the photo as stored, or "unclear".

    Returns None if there is nothing to decide: the photo is not turned, the mask has an EXIF orientation of its own, or
    its size fits neither.
    """
    fits_stored, fits_upright = mask.size == photo.stored_size, mask.size == photo.size
    if photo.orientation == 1 or mask.orientation != 1 or not (fits_stored or fits_upright):
        return None
    return "unclear" if fits_stored and fits_upright else "as stored" if fits_stored else "upright"


def is_lossy(mask: bytes) -> bool:
    """Return True if a mask is a JPEG, whose compression changes values."""
    return mask.startswith(_JPEG_SIGNATURE)


def raw_values(mask: bytes, max_pixels: int, most: int, as_colours: bool = False) -> tuple[dict[int, int], bool]:
    """Return ({raw value: number of pixels} of a mask, True if the values are colours as 0xRRGGBB).

    The values of a colour image are colours. With `as_colours`, those of grey and indexed images are colours as well.
    Fully transparent pixels of a colour image are left out, as they have no label. Only the `most` values with the most
    pixels are returned. Raises `DecodeError` if the mask cannot be decoded.
    """
    with _errors_of_mask():
        opened = _open_mask(mask, max_pixels)
        opened.load()
        image = opened.image
        numbers = None if as_colours else _numbers(image, _grey_stretch(opened))
        raw = _colours(image) if numbers is None else numbers
        if raw.dtype == np.uint8:  # counting takes a tenth of the time of sorting
            counts = np.bincount(raw.ravel(), minlength=256)
            values = np.flatnonzero(counts)
            counts = counts[values]
        else:
            values, counts = np.unique(raw[raw != labels.TRANSPARENT] if numbers is None else raw, return_counts=True)
        kept = np.sort(np.argsort(-counts, kind="stable")[:most])
        return dict(zip(values[kept].tolist(), counts[kept].tolist(), strict=True)), numbers is None


def _open_mask(content: bytes, max_pixels: int) -> OpenImage:
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


@contextlib.contextmanager
def _errors_of_mask() -> Iterator[None]:
    """Mark a `DecodeError` as one of the mask."""
    try:
        yield
    except DecodeError as error:
        error.in_mask = True
        raise


@dataclass(frozen=True)
class _Truth:
    """The class ids of a mask as it is stored, and the EXIF orientation that turns it like its photo."""

    class_ids: Image.Image
    orientation: int

    def resized(self, size_hw: tuple[int, int]) -> np.ndarray:
        """Return the class ids resized and upright: uint8 (H, W) at `size_hw`.

        Like the photo, the mask is resized before it is turned, so that both are sampled at the same positions.
        """
        rows, columns = size_hw[::-1] if self.orientation in image_file.SWAPS_SIDES else size_hw
        resized = self.class_ids.resize((columns, rows), Image.Resampling.NEAREST)
        return np.asarray(image_file.upright(resized, self.orientation))

    def original(self) -> np.ndarray:
        return np.asarray(image_file.upright(self.class_ids, self.orientation))


def _decode_mask(mask: OpenImage, photo: image_file.Header, label_map: LabelMap, turn: bool) -> _Truth:
    """Decode a mask. With `turn`, the photo's orientation turns it."""
    (width, height), expected = mask.header.size, photo.stored_size if turn else photo.size
    if (width, height) != expected:
        raise DecodeError(f"its size {width} × {height} differs from its photo's {photo.size[0]} × {photo.size[1]}")
    mask.load()
    try:
        class_ids = _class_ids(mask.image, _grey_stretch(mask), label_map)
    except DecodeError as error:
        if is_lossy(mask.content):
            raise DecodeError(labels.LOSSY_REMEDY) from error
        raise
    return _Truth(class_ids, photo.orientation if turn else mask.header.still_to_turn)


def _grey_stretch(mask: OpenImage) -> int:
    """Return the factor by which Pillow multiplies the values of a PNG with 2 or 4 bits of grey, to fill 0..255."""
    return _GREY_STRETCH.get(mask.raw_mode, 1) if mask.image.format == "PNG" else 1


def _class_ids(mask: ImageFile.ImageFile, stretch: int, label_map: LabelMap) -> Image.Image:
    """Map raw values to class ids at the stored size, so that resizing cannot hide a value from the check.

    Raises `DecodeError` if the mask has a value that no class covers.
    """
    if label_map.colours:
        raw = _colours(mask)
        class_ids = label_map.table[raw]
        if (class_ids == labels.UNKNOWN_ID).any():
            raise DecodeError(label_map.explain_unknown(np.unique(raw[class_ids == labels.UNKNOWN_ID]).tolist()))
        return Image.fromarray(class_ids)
    table = label_map.table
    if mask.mode in ("L", "P"):  # most masks: mapping and searching bytes takes a tenth of the time
        lookup = table[np.arange(256) // stretch].astype(np.uint8).tobytes()
        mapped = mask.tobytes().translate(lookup)
        if labels.UNKNOWN_ID in mapped:
            values = np.unique(np.asarray(mask) // stretch)
            unknown = values[table[values] == labels.UNKNOWN_ID]
            raise DecodeError(label_map.explain_unknown(unknown.tolist(), has_255=255 in values))
        return Image.frombytes("L", mask.size, mapped)
    raw = _numbers(mask, stretch)
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


def _numbers(mask: Image.Image, stretch: int) -> np.ndarray | None:
    """Return a mask's pixels as integers (H, W); None if it is a colour image.

    Raises `DecodeError` if the pixels are floating-point numbers that are not all whole.
    """
    raw = np.asarray(mask)
    if raw.ndim != 2:
        return None
    if raw.dtype == bool:
        return raw.astype(np.uint8)
    if raw.dtype.kind == "f":
        whole = np.abs(raw) < 2**31  # false for NaN, too
        whole[whole] = raw[whole] == np.floor(raw[whole])
        if not whole.all():
            raise DecodeError(f"it has the value {raw[~whole][0]:g}; raw values are whole numbers")
        return raw.astype(np.int64)
    return raw // stretch if stretch > 1 else raw


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
