"""Read Pascal VOC's segmentation masks: colour PNGs in SegmentationClass/, and labelmap.txt as CVAT writes it."""

import re
from collections import Counter

import numpy as np

from petseg import storage
from petseg.config.base import MAX_PIXELS
from petseg.data.annotations.labels import IGNORED, Labels, PhotoLabels, class_name, mask_region
from petseg.data.decode import max_bytes
from petseg.data.image_file import DecodeError
from petseg.data.mask_pixels import open_mask
from petseg.errors import InputError

_FOLDER, _LABEL_MAP = "SegmentationClass", "labelmap.txt"

_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of VOC 2012, in the order of its palette: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"""

_VOID = (224, 224, 192)
"""Colour of the outlines, which are ignored. It is entry 255 of VOC's palette."""


def read(location: str) -> Labels:
    """Return the labels of a folder. Raises `InputError`, naming the file, if one is invalid."""
    folder = storage.join(location, _FOLDER) if _FOLDER in storage.list_names(location) else location
    names = sorted(name for name in storage.list_files(folder) if name.lower().endswith(".png"))
    if not names:
        raise InputError(f"--labels {location}: no .png file in it; give the folder that contains {_FOLDER}")
    colours = _colours(location)
    by_colour = {_VOID: IGNORED} | {colour: name for name, colour in colours.items()}
    photos = []
    locations = [storage.join(folder, name) for name in names]
    for name, place, content in zip(names, locations, storage.read_each(locations, max_bytes(MAX_PIXELS)), strict=True):
        if isinstance(content, OSError):
            raise InputError(f"{place}: cannot be read: {storage.reason(content)}; restore it") from content
        try:
            photos.append(_photo(name, content, by_colour, place))
        except DecodeError as error:
            raise InputError(f"{place}: {error}; export the labels again") from error
    return Labels(photos, tuple(colours), colours, Counter())


def _photo(name: str, content: bytes, by_colour: dict[tuple[int, int, int], str], place: str) -> PhotoLabels:
    opened = open_mask(content, MAX_PIXELS)
    opened.load()
    pixels = np.asarray(opened.image.convert("RGB"), np.uint32)
    values = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    regions = []
    for value in np.unique(values).tolist():
        colour = (value >> 16, value >> 8 & 255, value & 255)
        if colour not in by_colour:
            raise InputError(
                f"{place}: it has the colour {colour}, which is neither in {_LABEL_MAP} nor one of VOC's; add it there"
            )
        regions.append(mask_region(by_colour[colour], values == value))
    height, width = values.shape
    return PhotoLabels(name, (height, width), tuple(regions), place)


def _colours(location: str) -> dict[str, tuple[int, int, int]]:
    """Return the colour of each class: from labelmap.txt in the folder or the one above it, else VOC's own."""
    for folder in (location, location.rstrip("/").rpartition("/")[0]):
        if _LABEL_MAP in storage.list_names(folder):
            return _parse(storage.join(folder, _LABEL_MAP))
    return {name: palette_colour(number) for number, name in enumerate(_NAMES)}


def _parse(location: str) -> dict[str, tuple[int, int, int]]:
    colours = {}
    for number, line in enumerate(storage.read_input(location).decode("utf-8-sig", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.partition(":")[0].split(",")
        if len(parts) != 3 or not all(re.fullmatch(r" *\d{1,3} *", part) and int(part) < 256 for part in parts):
            raise InputError(f"{location}, line {number}: not NAME:RED,GREEN,BLUE; correct it")
        name, colour = class_name(name, f"{location}, line {number}"), (int(parts[0]), int(parts[1]), int(parts[2]))
        if name in colours or colour in colours.values():
            raise InputError(f"{location}, line {number}: this name or colour is in an earlier line; give each its own")
        colours[name] = colour
    return colours


def palette_colour(number: int) -> tuple[int, int, int]:
    """Return an entry of VOC's palette: each channel collects every third bit of the number, the lowest bit first."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]
