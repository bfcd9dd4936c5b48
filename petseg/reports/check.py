"""Build the report page of a check."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from petseg import storage
from petseg.config.base import MAX_PIXELS
from petseg.data import check, decode, encode, visualize
from petseg.data.image_file import DecodeError
from petseg.data.pairs import decode_pair
from petseg.reports import html, sections
from petseg.reports.checked import Checked
from petseg.reports.findings import Finding, value_text
from petseg.reports.gallery import Gallery, GalleryItem
from petseg.reports.html import Bars, Command, Picture, Sheet, Table

LABEL_ERRORS_SHOWN = 100
"""Maximum number of likely label errors that the page shows."""

_LISTED = 100
"""Maximum number of files that a table lists."""

_VALUES = 40
"""Maximum number of raw mask values that the table shows."""


def page(checked: Checked, findings: Sequence[Finding], settings: Mapping[str, Any], command: str) -> bytes:
    """Return the report page. Photos are read again for its pictures; photos deleted meanwhile are skipped."""
    shown = [
        _findings_table(findings),
        _class_shares(checked),
        _masks_by_class(checked),
        _values_table(checked),
        _sizes_table(checked),
        _gallery(checked),
        _duplicates_sheet("Duplicates across train/val/test", checked, checked.cross_split_duplicates()),
        _duplicates_sheet("Duplicates", checked, checked.duplicates()),
        _unusable_table(checked),
        _unpaired_table("Photos without a mask", checked.unpaired_photos),
        _unpaired_table("Masks without a photo", checked.unpaired_masks),
        sections.facts("Settings", settings),
        html.versions(),
        _commands(command),
    ]
    return html.page(title="Check", summary=_summary(checked), sections=shown)


def _summary(checked: Checked) -> list[tuple[str, str]]:
    splits = Counter(checked.splits.values())
    turned = sum(row.orientation not in (None, 1) for row in checked.rows)
    return [
        ("pairs", f"{checked.pairs.num_rows:,}"),
        ("cannot be used", f"{sum(bool(row.error) for row in checked.rows):,}"),
        ("without a partner", f"{len(checked.unpaired_photos) + len(checked.unpaired_masks):,}"),
        *([("turned by EXIF", f"{turned:,}")] if turned else []),
        ("duplicates", f"{len(checked.duplicates()):,}"),
        *((f"pairs, {split}", f"{splits[split]:,}") for split in ("train", "val", "test") if splits[split]),
    ]


def _findings_table(findings: Sequence[Finding]) -> Table:
    rows = [[finding.what, finding.remedy, "refuses" if finding.blocks_training else "starts"] for finding in findings]
    heads = ["finding", "remedy", "training"]
    return Table(title="Findings", heads=heads, rows=rows or [["no findings", "", "starts"]], text=True)


def _class_shares(checked: Checked) -> Bars:
    pixels, _, _ = check.class_pixels(checked.labels, checked.classes.label_map)
    return sections.class_shares(checked.classes.names, pixels, "Ignored pixels do not count.")


def _masks_by_class(checked: Checked) -> Bars:
    _, masks, _ = check.class_pixels(checked.labels, checked.classes.label_map)
    return Bars(title="Masks that contain each class", values=dict(zip(checked.classes.names, masks, strict=True)))


def _values_table(checked: Checked) -> Table:
    """Return the most frequent raw values, each with its class, its pixels and the masks that contain it."""
    labels, label_map, classes = checked.labels, checked.classes.label_map, checked.classes.names
    total, rows = max(1, sum(labels.pixels.values())), []
    for value in sorted(labels.pixels, key=lambda value: (-labels.pixels[value], value))[:_VALUES]:
        class_id = label_map.ids.get(value) if labels.colours == label_map.colours else None
        meaning = "no class" if class_id is None else classes[class_id] if class_id < len(classes) else "ignored"
        share = f"{100 * labels.pixels[value] / total:.2f} %"
        counts = (f"{labels.pixels[value]:,}", f"{labels.files[value]:,}")
        rows.append([value_text(value, labels), meaning, share, *counts])
    heads = ["value", "class", "share", "pixels", "masks"]
    note = "" if len(labels.pixels) <= _VALUES else f"The most frequent of {len(labels.pixels):,}."
    return Table(title="Raw values in the masks", heads=heads, rows=rows, note=note)


def _sizes_table(checked: Checked) -> Table:
    sizes = Counter((row.width, row.height) for row in checked.rows if row.width and row.height)
    shown = [[f"{width} × {height}", f"{count:,}"] for (width, height), count in sizes.most_common(sections.SHOWN)]
    note = f"{len(sizes):,} sizes in all." if len(sizes) > sections.SHOWN else ""
    return Table(title="Sizes of the photos", heads=["width × height", "photos"], rows=shown, note=note)


def _gallery(checked: Checked) -> Gallery | None:
    """Return the likeliest label errors or, without networks, samples of the pairs; None if no pair is usable."""
    ranked = check.rank(checked.disagreements)[:LABEL_ERRORS_SHOWN]
    if ranked:
        index_of = {row.id: index for index, row in enumerate(checked.rows)}
        chosen, title = [index_of[row_id] for row_id in ranked], "Possible label errors"
        note = "The largest disagreement of the networks first. All are in check.parquet, column disagreement."
    else:
        good = [index for index, row in enumerate(checked.rows) if not row.error]
        count, title = min(sections.SHOWN, len(good)), "Samples"
        chosen = [good[number * len(good) // count] for number in range(count)]  # spread evenly over the names
        note = "Each photo under its mask, as training reads it."
    items = [item for index in chosen if (item := _item(checked, index)) is not None]
    colours = dict(zip(checked.classes.names, checked.classes.palette, strict=True))
    note = f"{note} Ignored pixels are beige."
    gallery = Gallery(title=title, items=items, score_name="disagreement", note=note, colours=colours)
    return gallery if items else None


def _item(checked: Checked, index: int) -> GalleryItem | None:
    """Return the entry of a pair; None if it can no longer be read."""
    row_id, names = checked.rows[index].id, checked.classes.names
    preview, class_ids = _preview(checked, index), _class_ids(checked, index)
    if preview is None or class_ids is None:
        return None
    masks = {"label": encode.encode_mask(class_ids, checked.classes.palette)}
    if row_id in checked.predictions:
        masks["prediction"] = checked.predictions[row_id]
    photo, masks = visualize.layers_for_report(preview, masks)
    found = checked.disagreements.get(row_id)
    return GalleryItem(
        id=row_id,
        photo=photo,
        masks=masks,
        score=found.value if found else None,
        classes=[names[class_id] for class_id in np.unique(class_ids) if class_id < len(names)],
        caption="A network was trained on this pair." if found and not found.out_of_fold else "",
        link=checked.pairs["image"][index].as_py(),
    )


def _duplicates_sheet(title: str, checked: Checked, pairs: Sequence[tuple[int, int]]) -> Sheet | None:
    """Return the first of these pairs of duplicates, each with its splits; None if there are none to show."""
    pictures = []
    for one, other in pairs[: sections.SHOWN]:
        left, right = _preview(checked, one), _preview(checked, other)
        if left is not None and right is not None:
            ids = [checked.rows[index].id for index in (one, other)]
            splits = ", ".join(checked.splits.get(name, "no split") for name in ids)
            content, names = visualize.for_report(visualize.side_by_side(left, right)), " and ".join(ids)
            pictures.append(Picture(content=content, caption=f"{names} ({splits})", alt=names))
    more = len(pairs) > sections.SHOWN
    note = f"{sections.SHOWN} of {len(pairs):,}; all are in check.parquet, column like." if more else ""
    return Sheet(title=title, pictures=pictures, note=note) if pictures else None


def _unusable_table(checked: Checked) -> Table | None:
    failed = [[row.id, row.error] for row in checked.rows if row.error]
    if not failed:
        return None
    rows, note = failed[:_LISTED], _more_note(len(failed))
    return Table(title="Pairs that cannot be used", heads=["id", "reason"], rows=rows, note=note, text=True)


def _unpaired_table(title: str, names: Sequence[str]) -> Table | None:
    if not names:
        return None
    return Table(title=title, heads=["id"], rows=[[name] for name in names[:_LISTED]], note=_more_note(len(names)))


def _more_note(number: int) -> str:
    return "" if number <= _LISTED else f"… and {number - _LISTED:,} more: see check.parquet."


def _commands(command: str) -> Command:
    return Command(title="Repeat this job, and next steps", lines=[*html.rerun("prepare").lines, command])


def _preview(checked: Checked, index: int) -> bytes | None:
    location, limit = checked.pairs["image"][index].as_py(), MAX_PIXELS
    try:
        return visualize.preview(storage.read(location, at_most=decode.max_bytes(limit)), limit)
    except (DecodeError, FileNotFoundError):
        return None


def _class_ids(checked: Checked, index: int) -> np.ndarray | None:
    """Return the class ids of a mask, as training reads it: uint8 (H, W); None if the pair can no longer be read."""
    pair, limit = checked.pairs.slice(index, 1).to_pylist()[0], MAX_PIXELS
    try:
        photo, mask = (storage.read(pair[of], at_most=decode.max_bytes(limit)) for of in ("image", "mask"))
        label_map, upright = checked.classes.label_map, bool(checked.masks_upright())
        return decode_pair(photo, mask, (16, 16), label_map, limit, masks_upright=upright).truth_ids()
    except (DecodeError, FileNotFoundError):
        return None
