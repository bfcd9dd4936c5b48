"""Decode a photo and its mask alike, so that they stay aligned, and count a mask's values. No folders, no torch."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from petseg.config.base import Resize
from petseg.data import decode, image_file, orientation
from petseg.data.decode import Photo
from petseg.data.image_file import DecodeError
from petseg.data.labels import LabelMap
from petseg.data.mask_pixels import class_ids, errors_of_mask, open_mask
from petseg.data.notes import notes_of
from petseg.data.orientation import Drawn


@dataclass(frozen=True)
class Pair:
    """A decoded photo and its mask."""

    photo: Photo
    class_ids: np.ndarray
    """The mask at the photo's requested size: uint8 (H, W)."""
    drawn: Drawn | None
    """Result of `drawn` for the photo and the mask."""
    truth: "_Truth"

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the photo at its original size."""
        return self.photo.height * self.photo.width

    @property
    def notes(self) -> tuple[str, ...]:
        """Result of `notes.notes_of` for the photo."""
        return self.photo.notes

    def truth_ids(self) -> np.ndarray:
        """Return the mask's class ids at the photo's original, upright size: uint8 (H, W)."""
        return self.truth.original()


@dataclass(frozen=True)
class WholePair:
    """A photo and its mask, decoded at their own size and upright."""

    picture: Image.Image
    """The photo, in RGB."""
    class_ids: np.ndarray
    """The mask's class ids: uint8 (H, W)."""
    drawn: Drawn | None
    """Result of `drawn` for the photo and the mask."""
    notes: tuple[str, ...]
    """Result of `notes.notes_of` for the photo."""

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the photo."""
        return self.class_ids.size

    def truth_ids(self) -> np.ndarray:
        """Do as `Pair.truth_ids`."""
        return self.class_ids


@dataclass(frozen=True)
class Truth:
    """A mask without its photo, at the photo's own size and upright."""

    class_ids: np.ndarray
    """Class ids: uint8 (H, W)."""
    drawn: Drawn | None
    """Result of `drawn` for the photo and the mask."""
    notes: tuple[str, ...]
    """Result of `notes.notes_of` for the photo."""


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
    truth, how = _decode_truth(opened.header, mask, label_map, max_pixels, masks_upright)
    return Pair(decoded, truth.resized(size_hw), how, truth)


def decode_whole_pair(
    photo: bytes, mask: bytes, label_map: LabelMap, max_pixels: int, masks_upright: bool | None = None
) -> WholePair:
    """Decode a photo and its mask alike, at their own size. Raises the errors of `decode_pair`."""
    opened = image_file.open_image(photo, max_pixels)
    notes = notes_of(opened)
    picture = decode.load_whole(opened)
    truth, how = _decode_truth(opened.header, mask, label_map, max_pixels, masks_upright)
    return WholePair(picture, truth.original(), how, notes)


def decode_truth(
    photo: bytes, mask: bytes, label_map: LabelMap, max_pixels: int, masks_upright: bool | None = None
) -> Truth:
    """Decode the mask alone, as `decode_whole_pair` does. Of the photo only the header is read."""
    opened = image_file.open_image(photo, max_pixels)
    truth, how = _decode_truth(opened.header, mask, label_map, max_pixels, masks_upright)
    return Truth(truth.original(), how, notes_of(opened))


def drawn(photo: image_file.Header, mask: image_file.Header) -> Drawn | None:
    """Return how the sizes show that a mask was drawn: on the upright photo, on the photo as stored, or "unclear".

    Returns None if there is nothing to decide: the photo is not turned, the mask has an EXIF orientation of its own, or
    its size fits neither.
    """
    fits_stored, fits_upright = mask.size == photo.stored_size, mask.size == photo.size
    if photo.orientation == 1 or mask.orientation != 1 or not (fits_stored or fits_upright):
        return None
    return "unclear" if fits_stored and fits_upright else "as stored" if fits_stored else "upright"


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


def _decode_truth(
    photo: image_file.Header, mask: bytes, label_map: LabelMap, max_pixels: int, masks_upright: bool | None
) -> tuple[_Truth, Drawn | None]:
    """Return a decoded mask, and how it was drawn. Errors are marked as those of the mask."""
    with errors_of_mask():
        opened = open_mask(mask, max_pixels)
        how = drawn(photo, opened.header)
        if how == "unclear" and masks_upright is None:
            raise UnclearMaskError(orientation.UNCLEAR)
        turn = not (masks_upright if how == "unclear" else how != "as stored")
        (width, height), expected = opened.header.size, photo.stored_size if turn else photo.size
        if (width, height) != expected:
            raise DecodeError(f"its size {width} × {height} differs from its photo's {photo.size[0]} × {photo.size[1]}")
        return _Truth(class_ids(opened, label_map), photo.orientation if turn else opened.header.still_to_turn), how
