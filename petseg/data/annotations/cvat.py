"""Read CVAT's format "CVAT for images 1.1": one XML file. https://docs.cvat.ai/docs/dataset_management/formats/"""

from collections import Counter
from xml.etree import ElementTree

import numpy as np

from petseg import storage
from petseg.data.annotations.labels import (
    Labels,
    PhotoLabels,
    Region,
    class_name,
    ellipse,
    mask_region,
    polygon,
    rectangle,
    size_of,
)
from petseg.errors import InputError

_WITHOUT_AREA = {"polyline", "points", "skeleton", "cuboid", "tag"}


def read(location: str) -> Labels:
    """Return the labels of an XML file, or of the annotations.xml in a folder.

    Raises `InputError`, naming the file and the image, if they are invalid.
    """
    if not location.lower().endswith(".xml"):
        location = storage.join(location, "annotations.xml")
    content = storage.read_input(location)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # CVAT writes none; they can make a small file endless
        raise InputError(f"{location}: it declares a document type, which CVAT does not; export the labels again")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 - without a document type there are no entities
    except ElementTree.ParseError as error:
        raise InputError(f"{location}: not XML ({error}); was it edited, or cut short?") from error
    names, colours = [], {}
    for label in root.findall("./meta//label"):
        name = class_name(label.findtext("name"), f"{location}, labels")
        if name not in names:
            names.append(name)
            colour = (label.findtext("color") or "").lstrip("#")
            if len(colour) == 6:
                colours[name] = tuple(bytes.fromhex(colour))
    left_out: Counter[str] = Counter()
    photos = [_photo(image, location, left_out) for image in root.iter("image")]
    if not photos:
        raise InputError(f'{location}: it has no images; export the format "CVAT for images 1.1"')
    for photo in photos:
        names += [region.name for region in photo.regions if region.name not in names]
    return Labels(photos, tuple(dict.fromkeys(names)), colours, left_out)


def _photo(image: ElementTree.Element, location: str, left_out: Counter[str]) -> PhotoLabels:
    source = f"{location}, image {image.get('id')} ({image.get('name')})"
    size_hw = size_of(image.get("height"), image.get("width"), source)
    regions = []
    for shape in image:
        if shape.tag in _WITHOUT_AREA:
            left_out[f"shapes of the kind {shape.tag}"] += 1
            continue
        name, layer = class_name(shape.get("label"), source), int(_number(shape, "z_order", source, 0))
        if shape.tag == "mask":
            regions.append(mask_region(name, _mask(shape, size_hw, source), layer))
        else:
            regions.append(Region(name, (_corners(shape, source),), layer=layer))
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
        lengths = np.array([int(length) for length in (shape.get("rle") or "").split(",")])
    except ValueError:
        lengths = np.array([-1])
    inside = 0 <= left <= left + width <= size_hw[1] and 0 <= top <= top + height <= size_hw[0]
    if not inside or (lengths < 0).any() or lengths.sum() != width * height:
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
