"""Choose the photos of a finished prediction that are worth labelling next: `petseg prepare select`."""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.base import MAX_PIXELS
from petseg.config.classes import ClassesConfig
from petseg.config.labelling import SelectConfig, Tool
from petseg.data import manifest, visualize
from petseg.data.annotations import coco, label_studio, labelme
from petseg.data.annotations.labels import MaskedPhoto
from petseg.data.classes import write_classes
from petseg.data.decode import max_bytes
from petseg.data.encode import encode_mask
from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID
from petseg.errors import InputError
from petseg.inference.finished import FinishedPrediction, read_finished, read_masks
from petseg.inference.selection import farthest, most_unsure, rarest_classes
from petseg.reports.gallery import GalleryItem
from petseg.reports.select import selection_pages
from petseg.storage import checks
from petseg.storage.hold import hold
from petseg.storage.locations import absolute_locations

_WRITERS: Mapping[Tool, Callable[..., Iterator[tuple[str, bytes]]]] = {
    "coco": coco.write,
    "label-studio": partial(label_studio.write, address=f"{label_studio.LOCAL_FILES}{files.PHOTO_FOLDER}/"),
    "labelme": labelme.write,
}

_CANDIDATES = 10
"""Photos that --by spread looks at, for each that it chooses: the most unsure ones. The network reads them again."""

_REMEDY = "fix this, delete the folder, and run the same command again"


@dataclasses.dataclass(frozen=True)
class _Copied:
    """A chosen photo that has been copied."""

    row: int
    """Its row in the prediction."""
    name: str
    """Its path below the folder of the copies."""
    item: GalleryItem


@cli.on_interrupt("the output is incomplete: delete it, and run the same command again")
def select_photos(config: SelectConfig) -> None:
    """Choose the photos, and write them with their masks. The table of the photos is written last."""
    config = absolute_locations(dataclasses.replace(config, from_=storage.absolute(config.from_)))
    sources = {"--from": config.from_} | ({"--labelled": config.labelled} if config.labelled else {})
    checks.require_no_overlap(config.output, sources)
    checks.require_writable(config.output, "--output")
    if [name for name in storage.list_names(config.output) if name != files.LOCK]:
        raise InputError(f"--output {config.output}: it is not empty; choose another folder")
    prediction = read_finished(config.from_, "--from")
    if config.unlabelled and config.unlabelled not in prediction.class_names:
        raise InputError(
            f"--unlabelled {config.unlabelled}: no such class; give one of {', '.join(prediction.class_names)}"
        )
    chosen = _choose(config, prediction)
    with hold(config.output, "--output"), checks.translate_write_errors(config.output, remedy=_REMEDY):
        copied = _copy(config, prediction, chosen)
        if not copied:
            raise InputError(f"--from {config.from_}: none of the chosen photos can be read any more")
        _write_labels(config, prediction, copied)
        for name, page in selection_pages(prediction, [one.item for one in copied], config):
            storage.write(storage.join(config.output, name), page)
        _write_table(config, prediction, copied)
    _print_summary(config, copied, len(chosen))


def _choose(config: SelectConfig, prediction: FinishedPrediction) -> np.ndarray:
    """Return the rows of the chosen photos, in the order of choice. None of them has a mask in --labelled."""
    labelled = _labelled(config, prediction)
    rows = np.flatnonzero(~labelled)
    if not len(rows):
        raise InputError(
            f"--labelled {config.labelled}: every photo of the prediction has a mask there; predict others"
        )
    unsure = prediction.rows["unsure"].to_numpy()[rows]
    if config.by == "unsure":
        return rows[most_unsure(unsure, config.count)]
    if config.by == "class-share":
        return rows[rarest_classes(prediction.class_shares()[rows], config.count)]
    candidates = rows[most_unsure(unsure, _CANDIDATES * config.count)]
    return _spread(config, prediction, candidates, np.flatnonzero(labelled))


def _labelled(config: SelectConfig, prediction: FinishedPrediction) -> np.ndarray:
    """Return which photos of the prediction have a mask in --labelled: bool (N,)."""
    ids = prediction.rows["id"].to_pylist()
    if not config.labelled:
        return np.zeros(len(ids), bool)
    masks = manifest.mask_ids(config.labelled, "--labelled")
    labelled = np.fromiter((row_id in masks for row_id in ids), bool, len(ids))
    if not labelled.any():
        print(f"note: no mask in --labelled {config.labelled} has the name of a photo of the prediction")
    return labelled


def _spread(
    config: SelectConfig, prediction: FinishedPrediction, candidates: np.ndarray, labelled: np.ndarray
) -> np.ndarray:
    """Return the rows of `candidates` that differ most from the rows `labelled` and from each other."""
    from petseg.inference.embeddings import embed_photos
    from petseg.models import checkpoint

    trained = checkpoint.find(storage.absolute(config.checkpoint or prediction.checkpoint))
    rows = np.concatenate([labelled, candidates])
    images = prediction.rows["image"].take(rows.tolist()).to_pylist()
    vectors = dict(zip(rows.tolist(), embed_photos(trained, images), strict=True))
    known = [vector for row in labelled.tolist() if (vector := vectors[row]) is not None]
    readable = {row: vector for row in candidates.tolist() if (vector := vectors[row]) is not None}
    if not readable:
        raise InputError(f"--from {config.from_}: its photos cannot be read any more, such as {images[-1]}")
    chosen = farthest(np.stack(list(readable.values())), known, config.count)
    return np.array(list(readable))[chosen]


def _copy(config: SelectConfig, prediction: FinishedPrediction, chosen: np.ndarray) -> list[_Copied]:
    """Copy the photos and write their masks, as far as the photos can be read. Return them in the order of choice."""
    rows = sorted(chosen.tolist())
    shares = prediction.class_shares()
    entries = prediction.rows.take(rows).to_pylist()
    contents = storage.read_each((entry["image"] for entry in entries), max_bytes(MAX_PIXELS))
    copied = {}
    for row, entry, content, mask in zip(rows, entries, contents, read_masks(prediction, rows), strict=True):
        try:
            if isinstance(content, OSError):
                raise content
            preview = visualize.preview(content, MAX_PIXELS)  # so only images are copied, whatever the rows name
        except (DecodeError, OSError) as error:
            reason = str(error) if isinstance(error, DecodeError) else storage.reason(error)
            print(f"note: {entry['image']} is left out: {reason}")
            continue
        name = entry["id"] + PurePosixPath(entry["image"]).suffix
        png = encode_mask(mask, prediction.palette)
        storage.write(storage.join(config.output, files.PHOTO_FOLDER, name), content)
        storage.write(storage.join(config.output, files.MASK_FOLDER, f"{entry['id']}.png"), png)
        photo, masks = visualize.layers_for_report(preview, {"prediction": png})
        item = GalleryItem(
            id=entry["id"],
            photo=photo,
            masks=masks,
            score=entry["unsure"],
            classes=[name for name, share in zip(prediction.class_names, shares[row], strict=True) if share],
            link=f"{files.PHOTO_FOLDER}/{name}",
        )
        copied[row] = _Copied(row, name, item)
    return [copied[row] for row in chosen.tolist() if row in copied]


def _write_labels(config: SelectConfig, prediction: FinishedPrediction, copied: list[_Copied]) -> None:
    """Write the description of the classes, and the masks as the labels of --tool."""
    classes = ClassesConfig(
        classes=prediction.class_names,
        label_map=",".join(f"{class_id}:{class_id}" for class_id in range(len(prediction.class_names))),
        ignore_label=str(IGNORE_ID),
        palette=prediction.palette,
    )
    write_classes(storage.join(config.output, files.MASK_FOLDER), classes)
    if config.tool is None:
        return
    in_order = sorted(copied, key=lambda one: one.row)
    masks = read_masks(prediction, [one.row for one in in_order])
    photos = (MaskedPhoto(one.name, mask) for one, mask in zip(in_order, masks, strict=True))
    unlabelled = prediction.class_names.index(config.unlabelled) if config.unlabelled else None
    # labelme expects its files beside the photos.
    folder = storage.join(config.output, files.PHOTO_FOLDER) if config.tool == "labelme" else config.output
    for name, content in _WRITERS[config.tool](photos, prediction.class_names, unlabelled, prediction.palette):
        storage.write(storage.join(folder, name), content)


def _write_table(config: SelectConfig, prediction: FinishedPrediction, copied: list[_Copied]) -> None:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("id", "uri", "original", "unsure"))
    for one in copied:
        original = prediction.rows["image"][one.row].as_py()
        rows.writerow((one.item.id, f"{files.PHOTO_FOLDER}/{one.name}", original, f"{one.item.score:.4f}"))
    storage.write(storage.join(config.output, files.PHOTOS), table.getvalue().encode())


def _print_summary(config: SelectConfig, copied: list[_Copied], chosen: int) -> None:
    print(f"{len(copied)} photos with their masks: {config.output}")
    if len(copied) < config.count and len(copied) == chosen:
        print(f"note: {config.count} were asked for, but no others are without a label")
    print(f"look at them: {storage.join(config.output, files.REPORT)}")
    if config.tool is not None:
        words = ["masks", "--from", config.tool, "--images", "PHOTOS", "--labels", "LABELS"]
        words += ["--unlabelled", config.unlabelled or "CLASS", "--output", config.labelled or "MASKS", "--merge"]
        print(f"next, with the corrected labels: {command_line('prepare', words)}")
