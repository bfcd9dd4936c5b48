"""Choose the photos of a finished prediction that are worth labelling next: `petseg prepare select`."""

import contextlib
import csv
import dataclasses
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.base import MAX_PIXELS
from petseg.config.labelling import SelectConfig, Tool
from petseg.data import listing, manifest, visualize
from petseg.data.annotations import coco, label_studio, labelme
from petseg.data.annotations.labels import MaskedPhoto
from petseg.data.classes import numbered_classes, write_classes
from petseg.data.decode import content_format, max_bytes
from petseg.data.encode import encode_mask
from petseg.data.image_file import DecodeError, open_image
from petseg.errors import STORAGE_ERRORS, InputError
from petseg.inference.finished import FinishedPrediction, read_finished, read_masks
from petseg.inference.selection import farthest, most_unsure, rarest_classes
from petseg.progress import Progress
from petseg.reports.gallery import GalleryItem
from petseg.reports.select import selection_pages
from petseg.storage import checks
from petseg.storage.hold import hold
from petseg.storage.locations import absolute_locations

_WRITERS: Mapping[Tool, Callable[..., Iterator[tuple[str, bytes]]]] = {
    "coco": coco.write,
    "label-studio": label_studio.write,
    "labelme": labelme.write,
}

_CANDIDATES = 10
"""Number of photos that --by spread compares for each that it chooses. The network reads these photos again."""

_REMEDY = "fix this, delete the folder, and run the same command again"


@dataclasses.dataclass(frozen=True)
class _Copied:
    """A chosen photo that has been copied."""

    row: int
    """Its row in the prediction."""
    name: str
    """Its path below the folder of the copies."""
    item: GalleryItem


@cli.on_interrupt("nothing was written")
def select_photos(config: SelectConfig) -> None:
    """Choose the photos, and write them with their masks. If that fails, what was written is removed."""
    config = absolute_locations(dataclasses.replace(config, from_=storage.absolute(config.from_)))
    sources = {"--from": config.from_} | ({"--labelled": config.labelled} if config.labelled else {})
    checks.require_no_overlap(config.output, sources)
    checks.require_writable(config.output, "--output")
    with hold(config.output, "--output"):
        if set(storage.list_names(config.output)) - set(files.TRACES):
            raise InputError(f"--output {config.output}: it is not empty; choose another folder")
        prediction = read_finished(config.from_, "--from")
        if config.unlabelled and config.unlabelled not in prediction.class_names:
            raise InputError(
                f"--unlabelled {config.unlabelled}: no such class; give one of {', '.join(prediction.class_names)}"
            )
        labelled = _labelled(config, prediction)
        chosen = _choose(config, prediction, labelled)
        try:
            with checks.translate_write_errors(config.output, remedy="fix this and run the same command again"):
                copied = _write(config, prediction, chosen)
        except BaseException:
            with contextlib.suppress(*STORAGE_ERRORS):
                _remove_all(config.output)
            raise
    _print_summary(config, copied, len(labelled) - labelled.sum(), prediction.failed)


def _remove_all(output: str) -> None:
    """Remove what this start has written to the output, which was empty."""
    for name in storage.list_names(output):
        location = storage.join(output, name)
        if name in (files.PHOTO_FOLDER, files.MASK_FOLDER):
            storage.remove_folder(location)
        elif name not in files.TRACES:
            storage.remove_file(location)


def _write(config: SelectConfig, prediction: FinishedPrediction, chosen: np.ndarray) -> list[_Copied]:
    """Write all files of the chosen photos, the table of the photos last. Return the photos that could be copied."""
    copied = _copy(config, prediction, chosen)
    if not copied:
        raise InputError(f"--from {config.from_}: none of the chosen photos can be used any more")
    _write_labels(config, prediction, copied)
    for name, page in selection_pages(prediction, [one.item for one in copied], config):
        storage.write(storage.join(config.output, name), page)
    storage.write(storage.join(config.output, files.CONFIG), cli.as_file(config))
    _write_table(config, prediction, copied)
    return copied


def _labelled(config: SelectConfig, prediction: FinishedPrediction) -> np.ndarray:
    """Return which photos of the prediction have a mask in --labelled: bool (N,)."""
    if not config.labelled:
        return np.zeros(prediction.rows.num_rows, bool)
    labelled = manifest.with_masks(prediction.rows["id"], config.labelled, "--labelled")
    if not labelled.any():
        raise InputError(
            f"--labelled {config.labelled}: no mask in it has the name of a photo of --from {config.from_}; give the "
            "masks of these photos, or leave it out"
        )
    if labelled.all():
        raise InputError(f"--labelled {config.labelled}: all photos of --from {config.from_} have a mask there")
    return labelled


def _choose(config: SelectConfig, prediction: FinishedPrediction, labelled: np.ndarray) -> np.ndarray:
    """Return the rows of the chosen photos, in the order of choice. None of them is `labelled`, bool (N,)."""
    rows = np.flatnonzero(~labelled)
    unsure = prediction.rows["unsure"].to_numpy()[rows]
    if config.by == "unsure":
        return rows[most_unsure(unsure, config.count)]
    if config.by == "class-share":
        return rows[rarest_classes(prediction.class_shares()[rows], config.count)]
    candidates = rows[most_unsure(unsure, _CANDIDATES * config.count)]
    return _spread(config, prediction, candidates, np.flatnonzero(labelled))


def _spread(
    config: SelectConfig, prediction: FinishedPrediction, candidates: np.ndarray, labelled: np.ndarray
) -> np.ndarray:
    """Return the rows of `candidates` that differ most from the rows `labelled` and from each other."""
    from petseg.inference.embeddings import embed_photos
    from petseg.models import checkpoint

    trained = checkpoint.find(storage.absolute(config.checkpoint or prediction.checkpoint))
    rows = np.concatenate([labelled, candidates]).tolist()
    images = prediction.rows["image"].take(rows).to_pylist()
    vectors: dict[int, np.ndarray] = {}
    progress = Progress(len(rows), 0, 0, sys.stdout, unit=("photos compared", 1))
    try:
        for row, image, vector in zip(rows, images, embed_photos(trained, images), strict=True):
            if vector is None:
                print(f"note: {image} is left out: it cannot be read any more")
            else:
                vectors[row] = vector
            progress.add(1)
    finally:
        progress.close()
    known = [vectors[row] for row in labelled.tolist() if row in vectors]
    readable = [row for row in candidates.tolist() if row in vectors]
    if not readable:
        raise InputError(f"--from {config.from_}: its photos cannot be read any more, such as {images[-1]}")
    chosen = farthest(np.stack([vectors[row] for row in readable]), known, config.count)
    return np.array(readable)[chosen]


def _copy(config: SelectConfig, prediction: FinishedPrediction, chosen: np.ndarray) -> list[_Copied]:
    """Copy the photos and write their masks, as far as the photos can be read. Return them in the order of choice."""
    rows = sorted(chosen.tolist())
    entries = prediction.rows.take(rows).to_pylist()
    contents = storage.read_each((entry["image"] for entry in entries), max_bytes(MAX_PIXELS))
    copied = {}
    progress = Progress(len(rows), 0, 0, sys.stdout, unit=("photos", 1))
    try:
        for row, entry, content, mask in zip(rows, entries, contents, read_masks(prediction, rows), strict=True):
            progress.add(1)
            try:
                preview = _preview(content, mask)
            except (DecodeError, OSError) as error:
                reason = str(error) if isinstance(error, DecodeError) else storage.reason(error)
                print(f"note: {entry['image']} is left out: {reason}")
                continue
            assert isinstance(content, bytes)
            copied[row] = _copy_one(config, prediction, row, entry, content, preview, mask)
    finally:
        progress.close()
    return [copied[row] for row in chosen.tolist() if row in copied]


def _preview(content: bytes | OSError, mask: np.ndarray) -> bytes:
    """Return the preview of a photo. So only images are copied, whatever the rows of a prediction name.

    Raises `OSError` or `DecodeError` if the photo cannot be used, or is no longer that of the mask.
    """
    if isinstance(content, OSError):
        raise content
    width, height = open_image(content, MAX_PIXELS).header.size
    if (height, width) != mask.shape:
        raise DecodeError("it has another size than its mask: it has been replaced since the prediction")
    return visualize.preview(content, MAX_PIXELS)


def _copy_one(
    config: SelectConfig,
    prediction: FinishedPrediction,
    row: int,
    entry: Mapping[str, Any],
    content: bytes,
    preview: bytes,
    mask: np.ndarray,
) -> _Copied:
    """Write a photo and its mask. `entry` has the values of its row."""
    row_id = entry["id"]
    extension = PurePosixPath(entry["image"]).suffix
    if extension.lower() not in listing.IMAGE_EXTENSIONS:  # a table may name any file
        extension = f".{content_format(content).lower().replace('jpeg2000', 'jp2')}"
    name = row_id + extension
    png = encode_mask(mask, prediction.palette)
    storage.write(storage.join(config.output, files.PHOTO_FOLDER, name), content)
    storage.write(storage.join(config.output, files.MASK_FOLDER, f"{row_id}.png"), png)
    photo, masks = visualize.layers_for_report(preview, {"prediction": png})
    item = GalleryItem(
        id=row_id,
        photo=photo,
        masks=masks,
        score=entry["unsure"],
        classes=[label for label, pixels in zip(prediction.class_names, entry["class_pixels"], strict=True) if pixels],
        link=f"{files.PHOTO_FOLDER}/{name}",
    )
    return _Copied(row, name, item)


def _write_labels(config: SelectConfig, prediction: FinishedPrediction, copied: list[_Copied]) -> None:
    """Write the description of the classes, and the masks as the labels of --tool."""
    write_classes(
        storage.join(config.output, files.MASK_FOLDER),
        numbered_classes(prediction.class_names, dict(zip(prediction.class_names, prediction.palette, strict=True))),
    )
    if config.tool is None:
        return
    in_order = sorted(copied, key=lambda one: one.row)
    masks = read_masks(prediction, [one.row for one in in_order])
    photos = (MaskedPhoto(one.name, mask) for one, mask in zip(in_order, masks, strict=True))
    unlabelled = prediction.class_names.index(config.unlabelled) if config.unlabelled else None
    # labelme expects its files beside the photos.
    folder = storage.join(config.output, files.PHOTO_FOLDER) if config.tool == "labelme" else config.output
    write = _WRITERS[config.tool]
    if config.tool == "label-studio":  # a bucket has addresses of its own
        root = label_studio.LOCAL_FILES if storage.is_local(config.output) else f"{config.output}/"
        write = partial(label_studio.write, address=f"{root}{files.PHOTO_FOLDER}/")
    for name, content in write(photos, prediction.class_names, unlabelled, prediction.palette):
        storage.write(storage.join(folder, name), content)


def _write_table(config: SelectConfig, prediction: FinishedPrediction, copied: list[_Copied]) -> None:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("id", "uri", "original", "unsure"))
    for one in copied:
        original = prediction.rows["image"][one.row].as_py()
        rows.writerow((one.item.id, f"{files.PHOTO_FOLDER}/{one.name}", original, f"{one.item.score:.4f}"))
    storage.write(storage.join(config.output, files.PHOTOS), table.getvalue().encode())


def _print_summary(config: SelectConfig, copied: list[_Copied], available: int, failed: int) -> None:
    """Print what was written. `available` photos could be chosen; `failed` ones have no mask."""
    print(f"{len(copied)} photos with their masks: {config.output}")
    if failed:
        print(f"note: {failed} photos of the prediction failed; without a mask they are not chosen")
    if available < config.count:
        print(f"note: --count {config.count}: the prediction has only {available} photos without a label")
    print(f"look at them: {storage.join(config.output, files.REPORT)}")
    if config.tool is not None:
        names = storage.list_names(config.labelled) if config.labelled else []
        merges = files.CLASSES in names and files.PHOTOS in names
        words = ["masks", "--from", config.tool, "--images", "PHOTOS", "--labels", "LABELS", "--unlabelled"]
        words += [config.unlabelled or "CLASS", "--output", *([config.labelled, "--merge"] if merges else ["MASKS"])]
        print(f"next, with the corrected labels: {command_line('prepare', words)}")
