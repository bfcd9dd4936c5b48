"""Draw masks from the labels of an annotation tool: `petseg prepare masks`."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.base import MAX_PIXELS
from petseg.config.classes import ClassesConfig
from petseg.config.labelling import LabelFormat, MasksConfig
from petseg.data import labels as class_labels
from petseg.data import manifest
from petseg.data.annotations import coco, cvat, label_studio, labelme, voc, yolo
from petseg.data.annotations.draw import draw
from petseg.data.annotations.labels import IGNORED, Labels, PhotoLabels
from petseg.data.annotations.pairing import find_photos
from petseg.data.classes import numbered_classes, write_classes
from petseg.data.decode import max_bytes
from petseg.data.encode import encode_mask
from petseg.data.image_file import DecodeError, open_image
from petseg.data.labels import IGNORE_ID
from petseg.data.photo_table import read_table
from petseg.errors import InputError
from petseg.jobs.prepare import merge
from petseg.jobs.prepare.mask_folder import write_masks, write_photos
from petseg.jobs.prepare.merge import EarlierMasks
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

_LISTING_ALL = ("coco", "cvat")
"""Formats that list all photos of a task, also those that nobody has looked at yet."""

_SHOWN = 5
"""Number of names that a printed line shows."""


@cli.on_interrupt("masks may be incomplete: run the same command again, with --overwrite unless it has --merge")
def draw_masks(config: MasksConfig) -> None:
    """Read all labels, draw a mask for each photo that has some, and write them once all are drawn."""
    config = absolute_locations(config)
    checks.require_no_overlap(config.output, {"--images": config.images, "--labels": config.labels})
    checks.require_writable(config.output, "--output")
    photos = manifest.discover(config.images)
    image_of = dict(zip(photos["id"].to_pylist(), photos["image"].to_pylist(), strict=True))
    replaced = {storage.join(config.output, f"{row_id}.png") for row_id in image_of} & set(image_of.values())
    if replaced:
        raise InputError(
            f"--output {config.output}: {min(replaced)} would be replaced, which --images needs; choose another folder"
        )
    with hold(config.output, "--output"):
        earlier = merge.read_earlier(config.output) if config.merge else None
        old = [] if earlier else _old_masks(config)
        labels = _read(config)
        labels_of, without_photo = find_photos(list(image_of), labels.photos)
        _require_labels(config, labels, labels_of, image_of)
        if config.from_ in _LISTING_ALL and not config.all_photos:
            labels_of = {row_id: one for row_id, one in labels_of.items() if one.regions}
        chosen = [row_id for row_id in image_of if row_id in labels_of or (config.all_photos and not earlier)]
        if earlier:
            merge.require_known_classes(earlier, config.labels, labels.names, config.unlabelled)
            merge.require_same_ids(earlier, {row_id: image_of[row_id] for row_id in chosen})
            masks = _draw_all(config, image_of, labels_of, earlier.classes, chosen)
            _merge(config, earlier, masks, image_of)
            names = earlier.classes.classes
        else:
            names = _class_names(config, labels)
            classes = numbered_classes(names, labels.colours)
            masks = _draw_all(config, image_of, labels_of, classes, chosen)
            _write(config, masks, classes, image_of, old)
    _print_summary(config, labels, masks, without_photo, names, len(image_of))


def _require_labels(
    config: MasksConfig, labels: Labels, labels_of: Mapping[str, PhotoLabels], image_of: Mapping[str, str]
) -> None:
    """Raise `InputError` if no photo has labels, or no labelled photo an object that would be drawn."""
    if not labels_of:
        example = f"such as {labels.photos[0].photo}" if labels.photos else "there are none"
        raise InputError(
            f"--labels {config.labels}: none of its photos ({example}) is in --images {config.images}, such as "
            f"{next(iter(image_of))}; give the folder of these photos"
        )
    empty = sum(not one.regions for one in labels_of.values())
    if config.from_ in _LISTING_ALL and not config.all_photos:
        if empty == len(labels_of):
            raise InputError(f"--labels {config.labels}: no photo has an object; label some, or pass --all-photos")
        if config.merge and empty:
            print(
                f"note: {empty} photos of the labels have no object: left out; with --all-photos their masks are all "
                f"{config.unlabelled}"
            )


def _old_masks(config: MasksConfig) -> list[str]:
    """Return the ids of the masks that an earlier start has written to the output, and that may be removed.

    Raises `InputError` if the output has other files, or files of an earlier start without --overwrite, or if --images
    names the table in it, which would be replaced.
    """
    own = storage.join(config.output, files.PHOTOS)
    if own == config.images:
        raise InputError(
            f"--output {config.output}: {own} would be replaced, which --images needs; choose another folder"
        )
    there = [name for name in storage.list_names(config.output) if name not in files.TRACES]
    ours = files.CLASSES in there and files.PHOTOS in there
    if ours and not config.overwrite:
        raise InputError(
            f"--output {config.output}: it has masks already; pass --merge to add to them, --overwrite to replace all "
            "of them, or choose another folder"
        )
    if there and not config.overwrite:
        raise InputError(f"--output {config.output}: it is not empty; choose another folder, or pass --overwrite")
    return read_table(own, "--images")["id"].to_pylist() if ours else []


def _read(config: MasksConfig) -> Labels:
    """Return the labels. Raises `InputError` if they are invalid, also in a way that no check has foreseen."""
    read = partial(label_studio.read, annotator=config.annotator) if config.annotator else _READERS[config.from_]
    try:
        labels = read(config.labels)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--labels {config.labels}: not as {config.from_} writes them ({type(error).__name__}: {reason}); look at "
            "--from, or export them again"
        ) from error
    if config.annotator and not labels.photos:
        raise InputError(
            f"--annotator {config.annotator}: no annotation is by this person; give the number or the e-mail"
        )
    return labels


def _class_names(config: MasksConfig, labels: Labels) -> tuple[str, ...]:
    """Return the names of the classes, in order of their ids."""
    names = labels.names
    if config.unlabelled == "ignore" and "ignore" in names:
        raise InputError("--unlabelled ignore: the labels have a class of this name, too; rename it in the tool")
    if config.unlabelled not in ("", "ignore", *names):
        names = (config.unlabelled, *names)
    if config.classes:
        names = tuple(name.strip() for name in config.classes.split(","))
        if config.unlabelled not in ("", "ignore", *names):
            raise InputError(f"--unlabelled {config.unlabelled}: not one of --classes {config.classes}; add it there")
        unknown = [name for name in names if name not in (config.unlabelled, *labels.names)]
        if unknown:
            raise InputError(
                f"--classes: the labels have no class {', '.join(unknown)}; they have {', '.join(labels.names)}"
            )
    if len(names) < 2:
        raise InputError(
            f"--labels {config.labels}: the only class is {', '.join(names) or 'none'}, but a network needs two; label "
            "objects of another class, or pass --unlabelled background"
        )
    for name in names:
        if "," in name:
            raise InputError(f"the class {name!r}: a comma separates the names of classes; rename it in the tool")
    return class_labels.class_names(None, ",".join(names))


def _draw_all(
    config: MasksConfig,
    image_of: Mapping[str, str],
    labels_of: Mapping[str, PhotoLabels],
    classes: ClassesConfig,
    chosen: Sequence[str],
) -> dict[str, bytes]:
    """Return the mask of each chosen photo, as PNG.

    They are kept in memory, so that an error leaves nothing half-written.
    """
    ids = {name: class_id for class_id, name in enumerate(classes.classes)}
    unlabelled = IGNORE_ID if config.unlabelled in ("", "ignore") else ids[config.unlabelled]

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
    config: MasksConfig,
    masks: Mapping[str, bytes],
    classes: ClassesConfig,
    image_of: Mapping[str, str],
    old: Iterable[str],
) -> None:
    """Write the masks, the table of their photos, and last `classes.json`: if it exists, all masks are there."""
    with checks.translate_write_errors(
        config.output, remedy="fix this and run the same command again, with --overwrite"
    ):
        storage.remove_file(storage.join(config.output, files.CLASSES))
        for row_id in set(old).difference(masks):
            storage.remove_file(storage.join(config.output, f"{row_id}.png"))
        write_masks(config.output, masks)
        write_photos(config.output, {row_id: image_of[row_id] for row_id in masks})
        write_classes(config.output, classes)


def _merge(config: MasksConfig, earlier: EarlierMasks, masks: Mapping[str, bytes], image_of: Mapping[str, str]) -> None:
    """Merge the masks into the earlier ones, and print what changed."""
    with checks.translate_write_errors(config.output, remedy="fix this and run the same command again"):
        counts = merge.merge_masks(earlier, masks, image_of)
    changes = ", ".join(f"{counts[change]} {change}" for change in ("added", "changed", "unchanged"))
    print(f"merged: {changes}; see {storage.join(config.output, files.CHANGES)}")
    if gone := earlier.image_of.keys() - earlier.ids - masks.keys():
        print(f"note: masks of {_some(sorted(gone))} are not there any more; {files.PHOTOS} lists them no longer")


def _print_summary(
    config: MasksConfig,
    labels: Labels,
    masks: Mapping[str, bytes],
    without_photo: list[PhotoLabels],
    names: tuple[str, ...],
    num_photos: int,
) -> None:
    objects = Counter(region.name for photo in labels.photos for region in photo.regions)
    print(f"{len(masks)} masks: {config.output}")
    print(f"objects by class: {', '.join(f'{name} {objects[name]}' for name in names)}")
    for reason, count in sorted(labels.skipped.items()):
        if count:
            print(f"note: {count} {reason}")
    for name, count in sorted(objects.items()):
        if name not in (*names, IGNORED):
            print(f"note: {count} objects of the class {name}, which is not in --classes: left out")
    if without_photo:
        print(f"note: labels of {_some([one.photo for one in without_photo])} are left out: --images has no such photo")
    missing = num_photos - len(masks)
    table = storage.join(config.output, files.PHOTOS)
    if missing and not config.merge:
        print(f"note: {missing} of {num_photos} photos have no objects and no mask; {table} lists the others")
    images = table if missing or config.merge else config.images
    print(f"next: {command_line('train', ['--images', images, '--masks', config.output, '--recipe', 'pretrained'])}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
