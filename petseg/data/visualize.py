"""Render pictures for reports: previews, masks over photos, truth beside prediction.

Each is a JPEG in bytes, except the masks of `layers_for_report`.
"""

import io
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image

from petseg.data import decode, labels
from petseg.data.encode import PNG_STRATEGY
from petseg.data.image_file import lift_pillow_limit

PREVIEW_SIDE = 1024
"""Longest side of a preview in pixels."""

COMPARISON_SIDE = 400
"""Longest side in pixels of each of the four pictures in a `comparison`."""

REPORT_PIXELS = 160_000
"""Largest number of pixels of a picture in a report; a report holds dozens of pictures."""

_GAP = 4  # pixels between the pictures of a comparison
# No palette of `labels` contains these two colours.
_IGNORED_COLOUR = (255, 255, 255)
_WRONG_COLOUR = (255, 0, 0)


def preview(content: bytes, max_pixels: int) -> bytes:
    """Return a photo as an upright JPEG of at most `PREVIEW_SIDE` pixels a side.

    Raises `DecodeError` as `decode_photo` does.
    """
    return _to_jpeg(decode.decode_small(content, PREVIEW_SIDE, max_pixels))


def overlay(preview_jpeg: bytes, mask_png: bytes) -> bytes:
    """Blend a mask from `encode_mask`, in its colours, half and half with the `preview` of its photo, as a JPEG."""
    with lift_pillow_limit():  # the photo was checked against our own limit
        photo = Image.open(io.BytesIO(preview_jpeg), formats=("JPEG",))
        mask = Image.open(io.BytesIO(mask_png), formats=("PNG",)).resize(photo.size, Image.Resampling.NEAREST)
    return _to_jpeg(Image.blend(photo.convert("RGB"), mask.convert("RGB"), 0.5))


def side_by_side(left_jpeg: bytes, right_jpeg: bytes) -> bytes:
    """Join two JPEGs into one, with a gap between them; the second is resized to the height of the first."""
    left, right = (
        Image.open(io.BytesIO(content), formats=("JPEG",)).convert("RGB") for content in (left_jpeg, right_jpeg)
    )
    right = right.resize((max(1, round(right.width * left.height / right.height)), left.height))
    gap = np.full((left.height, _GAP, 3), _IGNORED_COLOUR, np.uint8)
    return _to_jpeg(Image.fromarray(np.concatenate([np.asarray(left), gap, np.asarray(right)], 1)))


def comparison(
    photo: Image.Image, truth: np.ndarray, predicted: np.ndarray, palette: tuple[tuple[int, int, int], ...]
) -> bytes:
    """Render photo | truth | prediction | errors side by side as a JPEG.

    `photo` is upright and at most `COMPARISON_SIDE` pixels a side, as `decode.decode_small` makes it. `truth` and
    `predicted` are class ids, uint8 (H, W), at any size with the photo's proportions. They are resized to the photo's
    size. Ignored pixels are white. Wrong pixels are red over the photo in grey.
    """
    truth, predicted = (
        np.asarray(Image.fromarray(class_ids).resize(photo.size, Image.Resampling.NEAREST))
        for class_ids in (truth, predicted)
    )
    colours = np.full((256, 3), _IGNORED_COLOUR, np.uint8)
    colours[: len(palette)] = palette
    differing = np.asarray(photo.convert("L").convert("RGB")).copy()
    differing[(truth != predicted) & (truth != labels.IGNORE_ID)] = _WRONG_COLOUR
    gap = np.full((photo.height, _GAP, 3), _IGNORED_COLOUR, np.uint8)
    panels = [np.asarray(photo), gap, colours[truth], gap, colours[predicted], gap, differing]
    return _to_jpeg(Image.fromarray(np.concatenate(panels, 1)))


def for_report(picture: bytes) -> bytes:
    """Return one of our JPEGs or PNGs as a JPEG for a report: at most `REPORT_PIXELS` pixels, quality 80."""
    image = Image.open(io.BytesIO(picture), formats=("JPEG", "PNG")).convert("RGB")
    shrink = min(1.0, math.sqrt(REPORT_PIXELS / (image.width * image.height)))
    size = max(1, int(image.width * shrink)), max(1, int(image.height * shrink))
    buffer = io.BytesIO()
    image.resize(size).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def layers_for_report(photo: bytes, masks: Mapping[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
    """Return a photo as `for_report` does, and its masks from `encode_mask` at the same size.

    A mask is resized by nearest pixel. It stays an indexed PNG of class ids, with its palette.
    """
    small = for_report(photo)
    size = Image.open(io.BytesIO(small), formats=("JPEG",)).size
    return small, {name: _resize_mask(mask, size) for name, mask in masks.items()}


def _resize_mask(mask_png: bytes, size: tuple[int, int]) -> bytes:
    with lift_pillow_limit():  # the photo was checked against our own limit
        mask = Image.open(io.BytesIO(mask_png), formats=("PNG",)).resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG", compress_type=PNG_STRATEGY)
    return buffer.getvalue()


def _to_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
