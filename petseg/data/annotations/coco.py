"""COCO annotations: one JSON file with images, categories and annotations. https://cocodataset.org/#format-data"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pycocotools import mask as coco_masks

from petseg import storage
from petseg.data.annotations.labels import (
    Labels,
    MaskedPhoto,
    PhotoLabels,
    Region,
    box_regions,
    class_name,
    entry,
    listed,
    mask_region,
    painted_classes,
    polygon,
    rectangle,
    rle_of,
    size_of,
)
from petseg.errors import InputError


def read(location: str) -> Labels:
    """Return the labels of a file. Raises `InputError`, naming the file and the entry, if they are invalid."""
    images, annotations, categories = entry(
        storage.read_json(location), ("images", "annotations", "categories"), location
    )
    listed(annotations, "annotations", location)
    used = {str(one.get("category_id")) for one in annotations if isinstance(one, dict)}
    names = _names(categories, used, location)
    photos: dict[Any, tuple[str, tuple[int, int], list[Region], str]] = {}
    for image in listed(images, "images", location):
        image_id, file_name, height, width = entry(image, ("id", "file_name", "height", "width"), location)
        source = f"{location}, image {image_id}"
        if image_id in photos:
            raise InputError(f"{source}: two images have this id; give each its own")
        photos[image_id] = str(file_name), size_of(height, width, source), [], source
    skipped: Counter[str] = Counter()
    for number, annotation in enumerate(annotations):
        source = f"{location}, annotation {annotation.get('id', number)}" if isinstance(annotation, dict) else location
        image_id, category_id = entry(annotation, ("image_id", "category_id"), source)
        if image_id not in photos or category_id not in names:
            kind, value = ("category", category_id) if image_id in photos else ("image", image_id)
            raise InputError(f"{source}: there is no {kind} {value}; export the labels again")
        _, size_hw, regions, _ = photos[image_id]
        outline, bbox = annotation.get("segmentation"), annotation.get("bbox")
        regions += _regions(outline, bbox, names[category_id], size_hw, skipped, source)
    found = [PhotoLabels(name, size_hw, tuple(regions), source) for name, size_hw, regions, source in photos.values()]
    return Labels(found, tuple(names.values()), skipped=skipped)


def _names(categories: Any, used: set[str], location: str) -> dict[Any, str]:
    """Return the name of each category by its id. `used` are the ids that annotations have, as texts."""
    listed(categories, "categories", location)
    entries = [entry(one, ("id", "name"), f"{location}, categories") for one in categories]
    groups = [one.get("supercategory") for one in categories if one.get("supercategory") != one["name"]]
    names: dict[Any, str] = {}
    for category_id, text in entries:
        source = f"{location}, category {category_id}"
        name = class_name(text, source)
        if name in groups and str(category_id) not in used:
            continue  # Roboflow adds the name of the project, as the group of all classes
        if category_id in names or name in names.values():
            raise InputError(f"{source}: two categories have this id or the name {name!r}; give each its own")
        names[category_id] = name
    return dict(sorted(names.items())) if all(isinstance(key, int) for key in names) else names


def _regions(
    segmentation: Any, bbox: Any, name: str, size_hw: tuple[int, int], skipped: Counter[str], source: str
) -> list[Region]:
    if not segmentation:
        if not bbox:
            skipped["objects without an outline and without a box: left out"] += 1
            return []
        left, top, width, height = polygon(bbox, source).ravel()
        return box_regions(rectangle(left, top, left + width, top + height), skipped)
    if isinstance(segmentation, dict):
        return [Region(name, rle=_rle(segmentation, size_hw, source))]
    parts = [polygon(part, source) for part in listed(segmentation, "polygons", source)]
    polygons = tuple(part for part in parts if len(part) > 2)
    skipped["polygons with fewer than three corners: left out"] += len(parts) - len(polygons)
    return [Region(name, polygons)] if polygons else []


def _rle(segmentation: dict[str, Any], size_hw: tuple[int, int], source: str) -> Any:
    """Return a checked mask in run-length encoding. pycocotools does not check it, and would read out of bounds."""
    size, counts = entry(segmentation, ("size", "counts"), source)
    if not isinstance(size, list) or tuple(size) != size_hw:
        raise InputError(
            f"{source}: its mask has the size {size}, its image {list(size_hw)} (height, width); export the labels "
            "again"
        )
    lengths = counts if isinstance(counts, list) else _lengths(counts)
    if lengths is None or any(not isinstance(length, int) or length < 0 for length in lengths):
        raise InputError(f"{source}: the counts of its mask are not lengths of runs; export the labels again")
    if sum(lengths) != size_hw[0] * size_hw[1]:
        raise InputError(
            f"{source}: its mask has {sum(lengths)} pixels, its image {size_hw[0] * size_hw[1]}; export the labels "
            "again"
        )
    return rle_of({"size": list(size_hw), "counts": lengths}, size_hw)


def _lengths(counts: Any) -> list[int] | None:
    """Return the lengths of the runs of a compressed mask, or None if it is not one.

    A length is written in digits of 5 bits, the lowest first, and from the fourth on as the difference to the one
    before the last.
    """
    if not isinstance(counts, str | bytes):
        return None
    text = counts.encode() if isinstance(counts, str) else counts
    lengths: list[int] = []
    value, shift = 0, 0
    for byte in text:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 60:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value, shift = 0, 0
    return None if shift else lengths


def write(
    photos: Iterable[MaskedPhoto],
    names: Sequence[str],
    unlabelled: int | None,
    palette: Sequence[tuple[int, int, int]] = (),
) -> Iterator[tuple[str, bytes]]:
    """Yield `annotations.json`. The format has no colours, so `palette` is not used.

    CVAT imports it as "COCO 1.0". It writes its own masks in this form, too: `iscrowd` 1 and a run-length encoding.
    """
    images, annotations = [], []
    for image_id, photo in enumerate(photos, start=1):
        height, width = photo.class_ids.shape
        images.append({"id": image_id, "file_name": photo.photo, "height": height, "width": width})
        for class_id, inside in painted_classes(photo.class_ids, names, unlabelled):
            rle = mask_region(names[class_id], inside).rle
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id + 1,  # tools take 0 for no class
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "area": int(coco_masks.area(rle)),
                    "bbox": coco_masks.toBbox(rle).tolist(),
                    "iscrowd": 1,
                }
            )
    categories = [{"id": i + 1, "name": name, "supercategory": ""} for i, name in enumerate(names) if i != unlabelled]
    yield (
        "annotations.json",
        json.dumps({"images": images, "categories": categories, "annotations": annotations}).encode(),
    )
