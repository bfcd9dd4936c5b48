"""Read CVAT's format "CVAT for images 1.1": one XML file. https://docs.cvat.ai/docs/dataset_management/formats/"""

import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np

from petseg import storage
from petseg.data.annotations.labels import (
    Labels,
    PhotoLabels,
    class_name,
    ellipse,
    mask_region,
    outline_regions,
    polygon,
    rectangle,
    size_of,
)
from petseg.errors import InputError

_WITHOUT_AREA = {"polyline", "points", "skeleton", "cuboid", "tag"}
_COLOUR = re.compile(r"#([0-9A-Fa-f]{6})")


def read(location: str) -> Labels:
    """Return the labels of an XML file, or of the annotations.xml in a folder.

    Raises `InputError`, naming the file and the image, if they are invalid.
    """
    if not location.lower().endswith(".xml"):
        location = storage.join(location, "annotations.xml")
    content = storage.read_input(location)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: not UTF-8, in which CVAT writes; export the labels again") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # CVAT writes none; they can make a small file endless
        raise InputError(f"{location}: it declares a document type, which CVAT does not; export the labels again")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - without a document type there are no entities
    except ElementTree.ParseError as error:
        raise InputError(f"{location}: not XML ({error}); was it edited, or cut short?") from error
    names, colours = [], {}
    for label in root.findall("./meta//label"):
        if label.find("parent") is not None or label.findtext("type") in _WITHOUT_AREA:
            continue
        name = class_name(label.findtext("name"), f"{location}, labels")
        if name not in names:
            names.append(name)
            colour = _COLOUR.fullmatch(label.findtext("color") or "")
            if colour:
                colours[name] = tuple(bytes.fromhex(colour[1]))
    skipped: Counter[str] = Counter()
    photos = [_photo(image, location, skipped) for image in root.iter("image")]
    if not photos:
        raise InputError(f'{location}: it has no images; export the format "CVAT for images 1.1"')
    for photo in photos:
        names += [region.name for region in photo.regions if region.name not in names]
    return Labels(photos, tuple(dict.fromkeys(names)), colours, skipped)


def _photo(image: ElementTree.Element, location: str, skipped: Counter[str]) -> PhotoLabels:
    source = f"{location}, image {image.get('id')} ({image.get('name')})"
    size_hw = size_of(image.get("height"), image.get("width"), source)
    regions = []
    for shape in image:
        if shape.tag in _WITHOUT_AREA:
            skipped[f"shapes of the kind {shape.tag}, which have no area: left out"] += 1
            continue
        name, layer = class_name(shape.get("label"), source), int(_number(shape, "z_order", source, 0))
        if shape.tag == "mask":
            regions.append(mask_region(name, _mask(shape, size_hw, source), layer))
        else:
            regions += outline_regions(name, _corners(shape, source), skipped, layer)
    return PhotoLabels(image.get("name") or "", size_hw, tuple(regions), source)


def _corners(shape: ElementTree.Element, source: str) -> np.ndarray:
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
        return polygon([value for pair in pairs for value in pair], source)
    if shape.tag == "box":
        sides = [_number(shape, side, source) for side in ("xtl", "ytl", "xbr", "ybr")]
        return rectangle(*sides, degrees=_number(shape, "rotation", source, 0))
    if shape.tag == "ellipse":
        values = [_number(shape, value, source) for value in ("cx", "cy", "rx", "ry")]
        return ellipse(*values, degrees=_number(shape, "rotation", source, 0))
    raise InputError(f"{source}: petseg does not know the shape {shape.tag!r}; draw it as a polygon")


def _mask(shape: ElementTree.Element, size_hw: tuple[int, int], source: str) -> np.ndarray:
    """Return a mask, bool (H, W), from the lengths of its runs in its box, row by row, of which the first is 0."""
    left, top, width, height = (int(_number(shape, side, source)) for side in ("left", "top", "width", "height"))
    try:
        lengths = [int(length) for length in (shape.get("rle") or "").split(",")]
    except ValueError:
        lengths = [-1]
    inside = 0 <= left <= left + width <= size_hw[1] and 0 <= top <= top + height <= size_hw[0]
    if not inside or min(lengths) < 0 or sum(lengths) != width * height:
        raise InputError(f"{source}: a mask does not fit its box, or the box the image; export the labels again")
    box = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)
    whole = np.zeros(size_hw, bool)
    whole[top : top + height, left : left + width] = box
    return whole


def _number(shape: ElementTree.Element, key: str, source: str, default: float | None = None) -> float:
    value = shape.get(key)
    if value is None and default is not None:
        return default
    try:
        number = float(value or "")
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"{source}: {key} of a {shape.tag} is {value!r}, not a number; export the labels again")
    return number
