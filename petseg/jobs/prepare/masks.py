"""Draw masks from the labels of an annotation tool: `petseg prepare masks`."""

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.base import MAX_PIXELS
from petseg.config.classes import ClassesConfig
from petseg.config.prepare import LabelFormat, MasksConfig
from petseg.data import labels as class_labels
from petseg.data import manifest
from petseg.data.annotations import coco, cvat, label_studio, labelme, voc, yolo
from petseg.data.annotations.draw import draw
from petseg.data.annotations.labels import IGNORED, Labels, PhotoLabels
from petseg.data.annotations.pairing import find_photos
from petseg.data.classes import write_classes
from petseg.data.decode import max_bytes
from petseg.data.encode import encode_mask
from petseg.data.image_file import DecodeError, open_image
from petseg.data.labels import IGNORE_ID
from petseg.data.photo_table import is_table, read_table
from petseg.errors import InputError
from petseg.lookahead import map_ahead
from petseg.progress import Progress
from petseg.storage import checks
from petseg.storage.hold import hold
from petseg.storage.locations import absolute_locations

_READERS: dict[LabelFormat, Callable[[str], Labels]] = {
    "coco": coco.read,
    "cvat": cvat.read,
    "label-studio": label_studio.read,
    "labelme": labelme.read,
    "voc": voc.read,
    "yolo": yolo.read,
}

_SHOWN = 5
"""Number of names that a printed line shows."""


@cli.on_interrupt("nothing was written; run the same command again")
def draw_masks(config: MasksConfig) -> None:
    """Read all labels, draw a mask for each photo that has some, and write them once all are drawn."""
    config = absolute_locations(config)
    checks.require_no_overlap(config.output, {"--images": config.images, "--labels": config.labels})
    checks.require_writable(config.output, "--output")
    if files.CLASSES in storage.list_names(config.output) and not config.overwrite:
        raise InputError(
            f"--output {config.output}: {files.CLASSES} already exists; choose another folder, or pass --overwrite"
        )
    photos = manifest.discover(config.images)
    image_of = dict(zip(photos["id"].to_pylist(), photos["image"].to_pylist(), strict=True))
    read = partial(label_studio.read, annotator=config.annotator) if config.annotator else _READERS[config.from_]
    found = read(config.labels)
    labels_of, without_photo = find_photos(list(image_of), found.photos)
    if not labels_of:
        example = f"such as {found.photos[0].photo}" if found.photos else "there are none"
        raise InputError(
            f"--labels {config.labels}: none of its photos ({example}) is in --images {config.images}, such as "
            f"{next(iter(image_of))}; give the folder of these photos"
        )
    names = _class_names(config, found)
    classes = _describe(names, found.colours)
    masks = _draw_all(config, image_of, labels_of, names, classes)
    with hold(config.output, "--output"):
        _write(config, masks, classes, image_of)
    _print_summary(config, found, masks, without_photo, names, len(image_of))


def _class_names(config: MasksConfig, found: Labels) -> tuple[str, ...]:
    """Return the names of the classes, in order of their ids."""
    names = found.names
    if config.unlabelled not in ("", "ignore", *names):
        names = (config.unlabelled, *names)
    if config.classes:
        names = tuple(name.strip() for name in config.classes.split(","))
        if config.unlabelled not in ("", "ignore", *names):
            raise InputError(f"--unlabelled {config.unlabelled}: not one of --classes {config.classes}; add it there")
        unknown = [name for name in names if name not in (config.unlabelled, *found.names)]
        if unknown:
            raise InputError(
                f"--classes: the labels have no class {', '.join(unknown)}; they have {', '.join(found.names)}"
            )
    if len(names) < 2:
        raise InputError(
            f"the only class is {', '.join(names) or 'none'}, but a network needs two; pass --unlabelled background"
        )
    for name in names:
        if "," in name:
            raise InputError(f"the class {name!r}: a comma separates the names of classes; rename it in the tool")
    return class_labels.class_names(None, ",".join(names))


def _describe(names: tuple[str, ...], colours: Mapping[str, tuple[int, int, int]]) -> ClassesConfig:
    palette = class_labels.palette(len(names))
    return ClassesConfig(
        classes=names,
        label_map=",".join(f"{class_id}:{class_id}" for class_id in range(len(names))),
        ignore_label=str(IGNORE_ID),
        palette=tuple(colours.get(name, colour) for name, colour in zip(names, palette, strict=True)),
    )


def _draw_all(
    config: MasksConfig,
    image_of: Mapping[str, str],
    labels_of: Mapping[str, PhotoLabels],
    names: tuple[str, ...],
    classes: ClassesConfig,
) -> dict[str, bytes]:
    """Return the mask of each photo, as PNG. They are kept in memory, so that an error leaves nothing half-written."""
    ids = {name: class_id for class_id, name in enumerate(names)}
    unlabelled = ids.get(config.unlabelled, IGNORE_ID)
    chosen = list(image_of) if config.all_photos else [row_id for row_id in image_of if row_id in labels_of]

    def draw_one(item: tuple[str, bytes | OSError]) -> tuple[str, bytes]:
        row_id, content = item
        location = image_of[row_id]
        if isinstance(content, OSError):
            raise InputError(f"{location}: cannot be read: {storage.reason(content)}") from content
        try:
            header = open_image(content, MAX_PIXELS).header
        except DecodeError as error:
            raise InputError(f"{location}: {error}; replace it, or remove it and its labels") from error
        empty = PhotoLabels(location, None, (), location)
        mask = draw(labels_of.get(row_id, empty), header, ids, unlabelled, config.order)
        return row_id, encode_mask(mask, classes.palette)

    masks = {}
    contents = storage.read_each((image_of[row_id] for row_id in chosen), max_bytes(MAX_PIXELS))
    threads = len(os.sched_getaffinity(0))
    progress = Progress(len(chosen), 0, 0, sys.stdout, unit=("masks", 1))
    try:
        with ThreadPoolExecutor(threads) as pool:
            for row_id, content in map_ahead(pool, draw_one, zip(chosen, contents, strict=True), 2 * threads):
                masks[row_id] = content
                progress.add(1)
    finally:
        progress.close()
    return masks


def _write(
    config: MasksConfig, masks: Mapping[str, bytes], classes: ClassesConfig, image_of: Mapping[str, str]
) -> None:
    """Write the masks, the table of their photos, and last `classes.json`: if it exists, all masks are there."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("id", "uri"))
    rows.writerows((row_id, image_of[row_id]) for row_id in masks)
    photos = storage.join(config.output, files.PHOTOS)
    with checks.translate_write_errors(config.output, remedy="fix this and run the same command again"):
        storage.remove_file(storage.join(config.output, files.CLASSES))
        if is_table(photos):
            for row_id in read_table(photos, "--images")["id"].to_pylist():
                if row_id not in masks:
                    storage.remove_file(storage.join(config.output, f"{row_id}.png"))
        for row_id, content in masks.items():
            storage.write(storage.join(config.output, f"{row_id}.png"), content, scratch=config.output)
        storage.write(photos, table.getvalue().encode())
        write_classes(config.output, classes)


def _print_summary(
    config: MasksConfig,
    found: Labels,
    masks: Mapping[str, bytes],
    without_photo: list[PhotoLabels],
    names: tuple[str, ...],
    num_photos: int,
) -> None:
    print(f"{len(masks)} masks of {len(names)} classes ({', '.join(names)}): {config.output}")
    for reason, count in sorted(found.left_out.items()):
        if count:
            print(f"note: {count} {reason}: left out, because they have no area")
    others = Counter(region.name for photo in found.photos for region in photo.regions)
    for name, count in sorted(others.items()):
        if name not in (*names, IGNORED):
            print(f"note: {count} objects of the class {name}, which is not in --classes: left out")
    if without_photo:
        print(f"note: labels of {_some([one.photo for one in without_photo])} are left out: --images has no such photo")
    left = num_photos - len(masks)
    table = storage.join(config.output, files.PHOTOS)
    if left:
        print(f"note: {left} of {num_photos} photos have no labels and no mask; {table} lists the others")
    images = table if left else config.images
    print(f"next: {command_line('train', ['--images', images, '--masks', config.output, '--recipe', 'pretrained'])}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
