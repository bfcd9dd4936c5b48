"""A photo and its mask, decoded alike, so that they cannot come apart; and what is in a mask. No folders, no torch."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from petseg.config.base import Resize
from petseg.data import decode, labels
from petseg.data.decode import DecodeError, Photo
from petseg.data.labels import LabelMap

_STRETCHED: dict[object, int] = {"L;2": 85, "L;4": 17}


def decode_pair(
    photo: bytes,
    mask: bytes,
    size_hw: tuple[int, int],
    label_map: LabelMap,
    max_pixels: int,
    resize: Resize = "antialias",
) -> tuple[Photo, np.ndarray]:
    """Decode a photo and its mask alike: (photo, class ids uint8 (H, W)), both upright and at `size_hw`.

    Masks are resized with NEAREST: a filter would invent classes between classes. The photo's EXIF orientation turns
    the mask, too, unless the mask has its own, or was drawn upright already (it has the photo's upright size and not
    its stored one).

    Raises `DecodeError` where either cannot be decoded, their sizes differ, or the mask has a value that no class
    covers; its `in_mask` says which of the two it means.
    """
    decoded, truth = _decode_pair(photo, mask, size_hw, label_map, max_pixels, resize)
    return decoded, truth.at(size_hw)


def decode_pair_and_truth(
    photo: bytes,
    mask: bytes,
    size_hw: tuple[int, int],
    label_map: LabelMap,
    max_pixels: int,
    resize: Resize = "antialias",
) -> tuple[Photo, np.ndarray, np.ndarray]:
    """What `decode_pair` gives, and the mask's class ids at the photo's original, upright size: uint8 (H, W)."""
    decoded, truth = _decode_pair(photo, mask, size_hw, label_map, max_pixels, resize)
    return decoded, truth.at(size_hw), truth.whole()


def raw_values(mask: bytes, max_pixels: int, most: int, as_colours: bool = False) -> tuple[dict[int, int], bool]:
    """How many pixels of a mask have each raw value, whatever it means, and whether these are colours (0xRRGGBB).

    Those of a colour image are, and with `as_colours` all: grey and indexed ones have colours, too. Of more than `most`
    values those with the most pixels. Raises `DecodeError`.
    """
    with decode.as_decode_errors(in_mask=True):
        image = decode.open_image(mask, max_pixels)
        stretch = _STRETCHED.get(image.tile[0].args, 1) if image.format == "PNG" and image.tile else 1
        raw = np.asarray(image)
        colours = as_colours or raw.ndim != 2 or raw.dtype.kind not in "bui"
        values, counts = np.unique(_colours(image) if colours else raw // stretch, return_counts=True)
        kept = np.sort(np.argsort(-counts, kind="stable")[:most])
        return dict(zip(values[kept].tolist(), counts[kept].tolist(), strict=True)), colours


def _decode_pair(
    photo: bytes, mask: bytes, size_hw: tuple[int, int], label_map: LabelMap, max_pixels: int, resize: Resize
) -> "tuple[Photo, _Truth]":
    with decode.as_decode_errors():
        image = decode.open_image(photo, max_pixels)
        header = decode.header_of(image)
        decoded = decode.decode_opened(image, header, size_hw, resize)
    with decode.as_decode_errors(in_mask=True):
        return decoded, _decode_mask(decode.open_image(mask, max_pixels), header, label_map)


@dataclass(frozen=True)
class _Truth:
    """The class ids of a mask as it is stored, and the orientation that turns it like its photo."""

    class_ids: Image.Image
    orientation: int

    def at(self, size_hw: tuple[int, int]) -> np.ndarray:
        """Upright and resized: before it is turned, as the photo is, so that the same places are picked."""
        rows, columns = size_hw[::-1] if self.orientation in decode.SWAPS_SIDES else size_hw
        resized = self.class_ids.resize((columns, rows), Image.Resampling.NEAREST)
        return np.asarray(decode.upright(resized, self.orientation))

    def whole(self) -> np.ndarray:
        return np.asarray(decode.upright(self.class_ids, self.orientation))


def _decode_mask(mask: ImageFile.ImageFile, photo: decode.Header, label_map: LabelMap) -> _Truth:
    # Pillow stretches grey of 2 or 4 bits to 0..255. Asked first, since reading EXIF may load the pixels.
    stretch = _STRETCHED.get(mask.tile[0].args, 1) if mask.format == "PNG" and mask.tile else 1
    header = decode.header_of(mask)
    size, orientation = header.size, header.still_to_turn
    if header.orientation == 1 and header.stored_size == photo.stored_size:
        size, orientation = photo.size, photo.orientation
    if size != photo.size:
        raise DecodeError(f"its size {size[0]} × {size[1]} differs from its photo's {photo.size[0]} × {photo.size[1]}")
    return _Truth(_class_ids(mask, stretch, label_map), orientation)


def _class_ids(mask: ImageFile.ImageFile, stretch: int, label_map: LabelMap) -> Image.Image:
    """Raw values to class ids at the stored size, so that no value escapes the check by being resized away."""
    if label_map.colours:
        raw = _colours(mask)
        class_ids = label_map.table[raw]
        if (class_ids == labels.UNKNOWN_ID).any():
            raise DecodeError(label_map.refusal(np.unique(raw[class_ids == labels.UNKNOWN_ID]).tolist()))
        return Image.fromarray(class_ids)
    table = label_map.table
    if mask.mode in ("L", "P"):  # most masks: as bytes they are looked up and searched in a tenth of the time
        of_byte = table[np.arange(256) // stretch].astype(np.uint8).tobytes()
        mapped = mask.tobytes().translate(of_byte)
        if labels.UNKNOWN_ID in mapped:
            found = np.unique(np.asarray(mask) // stretch)
            unknown = found[table[found] == labels.UNKNOWN_ID]
            raise DecodeError(label_map.refusal(unknown.tolist(), has_255=255 in found))
        return Image.frombytes("L", mask.size, mapped)
    raw = np.asarray(mask) // stretch if stretch > 1 else np.asarray(mask)
    if raw.ndim != 2 or raw.dtype.kind not in "bui":
        raise DecodeError(
            f"it is a colour image (mode {mask.mode}), where one number per pixel is expected, as grey or indexed "
            f"colour; pass --label-map with its colours, as in {_example(mask)}"
        )
    raw = raw.astype(np.uint8) if raw.dtype == bool else raw
    # Values outside the table are clipped to look them up, but stay unknown.
    unknown = (raw < 0) | (raw >= len(table)) if raw.dtype.itemsize > 2 else np.False_
    class_ids = table[np.clip(raw, 0, len(table) - 1) if np.any(unknown) else raw]
    unknown = unknown | (class_ids == labels.UNKNOWN_ID)
    if unknown.any():
        raise DecodeError(label_map.refusal(np.unique(raw[unknown]).tolist(), has_255=bool((raw == 255).any())))
    return Image.fromarray(class_ids)


def _colours(mask: Image.Image) -> np.ndarray:
    """A mask's pixels as 0xRRGGBB: uint32 (H, W). Alpha is dropped."""
    if mask.mode not in ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "RGBX"):
        raise DecodeError(f"its mode is {mask.mode}; masks of colours are RGB images of 8 bits")
    red, green, blue = np.moveaxis(np.asarray(mask.convert("RGB"), np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _example(mask: Image.Image) -> str:
    """What --label-map could be for a mask of colours."""
    found = np.unique(_colours(mask)).tolist()[:3]
    return f'"{",".join(f"#{raw:06x}:{i}" for i, raw in enumerate(found))},…"'
