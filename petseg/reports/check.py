"""Build the report of a check, and the findings that the job prints, each with its remedy."""

import dataclasses
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from petseg import storage
from petseg.config.prepare import CheckConfig
from petseg.data import check, decode, duplicates, encode, visualize
from petseg.data.check import Labels, Row
from petseg.data.decode import DecodeError
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.pairs import decode_pair_and_truth
from petseg.reports import html, sections
from petseg.reports.html import Bars, Command, Picture, Section, Sheet, Table

_LISTED = 100
"""Maximum number of files that a table lists."""

_VALUES = 40
"""Maximum number of raw mask values that the table shows."""


@dataclass(frozen=True)
class Finding:
    """A problem in the data set that the user should know of."""

    what: str
    remedy: str
    refused: bool
    """True if training would refuse to start."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Complete result of a check."""

    config: CheckConfig
    """Settings of the check, with absolute locations."""
    pairs: pa.Table
    """Manifest of the pairs."""
    rows: Sequence[Row]
    """Result for each pair, in the order of `pairs`."""
    photos_alone: Sequence[str]
    """Ids of the photos without a mask."""
    masks_alone: Sequence[str]
    """Ids of the masks without a photo."""
    splits: Mapping[str, str]
    """Split (train, val or test) of each id."""
    labels: Labels
    """Raw values of all masks."""
    label_map: LabelMap
    palette: tuple[tuple[int, int, int], ...]
    """Class id of each raw value."""
    classes: tuple[str, ...]
    """Name of each class."""
    exact_duplicates: Sequence[tuple[int, int]]
    """Exact duplicates as `check.find_duplicates` returns them: indices into `rows`."""
    near_duplicates: Sequence[tuple[int, int, int]]
    """Near-duplicates as `check.find_duplicates` returns them."""

    def duplicates(self) -> list[tuple[int, int]]:
        """Return all pairs of duplicate photos: exact duplicates first, then near-duplicates."""
        return [*self.exact_duplicates, *((one, other) for one, other, _ in self.near_duplicates)]

    def cross_split_duplicates(self) -> list[tuple[int, int]]:
        """Return the duplicate photos whose two copies are in different splits (train, val, test)."""
        splits = [self.splits.get(row.id) for row in self.rows]
        return [
            (one, other)
            for one, other in self.duplicates()
            if splits[one] and splits[other] and splits[one] != splits[other]
        ]

    def duplicate_of(self) -> dict[str, str]:
        """Return {id of a duplicate: id of its other copy}, preferring a copy in another split."""
        pairs = [*reversed(self.duplicates()), *reversed(self.cross_split_duplicates())]
        return {self.rows[other].id: self.rows[one].id for one, other in pairs}


def findings(checked: Checked) -> list[Finding]:
    """Return the findings. Those that make training refuse to start come first."""
    candidates = [
        _photos_without_mask(checked),
        _masks_without_photo(checked),
        _uncovered_values(checked),
        _unusable_pairs(checked),
        _absent_classes(checked),
        _exact_duplicates(checked),
        _near_duplicates(checked),
        _cross_split_duplicates(checked),
    ]
    return [finding for finding in candidates if finding is not None]


def _photos_without_mask(checked: Checked) -> Finding | None:
    names = checked.photos_alone
    if not names:
        return None
    what = f"{_count(len(names), 'photo')} without a mask, such as {names[0]}"
    return Finding(what, f"add the missing masks to {checked.config.masks}, or move these photos away", refused=True)


def _masks_without_photo(checked: Checked) -> Finding | None:
    names = checked.masks_alone
    if not names:
        return None
    what = f"{_count(len(names), 'mask')} without a photo, such as {names[0]}"
    return Finding(what, f"add the missing photos to {checked.config.images}, or move these masks away", refused=True)


def _uncovered_values(checked: Checked) -> Finding | None:
    labels = checked.labels
    if not _has_uncovered_values(checked):
        return None
    values = [_value_text(value, labels) for value in sorted(labels.pixels)]
    shown = ", ".join(values[:8]) + (", …" if len(values) > 8 else "")
    what = f"the masks have values that no class covers (values {shown}; label map {checked.label_map})"
    return Finding(what, _remedy_for_values(checked), refused=True)


def _unusable_pairs(checked: Checked) -> Finding | None:
    """Return the finding of all unusable pairs but those that `_uncovered_values` covers."""
    errors = [row.error for row in checked.rows if row.error and not _is_value_error(row, checked)]
    if not errors:
        return None
    what = f"{_count(len(errors), 'pair')} cannot be used, such as {errors[0]}"
    return Finding(what, "fix or remove them; the report lists them", refused=True)


def _absent_classes(checked: Checked) -> Finding | None:
    pixels, _, unknown = check.class_pixels(checked.labels, checked.label_map)
    absent = [name for name, count in zip(checked.classes, pixels, strict=True) if not count]
    if unknown or not absent:
        return None
    what = f"no pixel of {', '.join(absent)} in any mask"
    return Finding(what, "check --label-map, --num-classes and --classes", refused=False)


def _exact_duplicates(checked: Checked) -> Finding | None:
    if not checked.exact_duplicates:
        return None
    what = _count(len(checked.exact_duplicates), "exact duplicate")
    return Finding(what, "keep one of each; check.parquet names them in the column like", refused=False)


def _near_duplicates(checked: Checked) -> Finding | None:
    if not checked.near_duplicates:
        return None
    remedy = "compare them in the report; check.parquet names all in the column like"
    if len(checked.near_duplicates) >= duplicates.MOST_PAIRS:
        remedy += "; there are more, because the search stopped at this number"
    what = _count(len({other for _, other, _ in checked.near_duplicates}), "near-duplicate")
    return Finding(what, remedy, refused=False)


def _cross_split_duplicates(checked: Checked) -> Finding | None:
    number = len(checked.cross_split_duplicates())
    if not number:
        return None
    crossing = f"{_count(number, 'duplicate')} {'crosses' if number == 1 else 'cross'}"
    what = f"{crossing} train/val/test: scores would be too optimistic"
    return Finding(what, "remove one of each, or put both into one split with --split-file", refused=False)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def train_flags(checked: Checked) -> list[str]:
    """Return the `petseg train` flags for this data set, with the classes as given or as the masks suggest."""
    suggested = _suggest_flags(checked) if _has_uncovered_values(checked) else None
    classes = () if suggested else ("classes", "num_classes", "label_map", "ignore_label")
    flags = ["--images", checked.config.images, "--masks", checked.config.masks, *(suggested or ())]
    for field in dataclasses.fields(CheckConfig):
        value = getattr(checked.config, field.name)
        if field.name in (*classes, "split_file", "val_fraction", "val_count", "seed") and value != field.default:
            flags += [f"--{field.name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]
    return flags


def page(checked: Checked, findings: Sequence[Finding], settings: Mapping[str, Any], command: str) -> bytes:
    """Return the report page. Photos are read again for its pictures; photos deleted meanwhile are skipped."""
    shown: list[Section | None] = [
        _findings_table(findings),
        _class_shares(checked),
        _masks_by_class(checked),
        _values_table(checked),
        _sizes_table(checked),
        _samples_sheet(checked),
        _duplicates_sheet("Duplicates across train/val/test", checked, checked.cross_split_duplicates()),
        _duplicates_sheet("Duplicates", checked, checked.duplicates()),
        _unusable_table(checked),
        _unpaired_table("Photos without a mask", checked.photos_alone),
        _unpaired_table("Masks without a photo", checked.masks_alone),
        sections.facts("Settings", settings),
        html.versions(),
        _commands(command),
    ]
    return html.page(
        title="Check", summary=_summary(checked), sections=[section for section in shown if section is not None]
    )


def _summary(checked: Checked) -> list[tuple[str, str]]:
    splits = Counter(checked.splits.values())
    turned = sum(row.orientation not in (None, 1) for row in checked.rows)
    return [
        ("pairs", f"{checked.pairs.num_rows:,}"),
        ("cannot be used", f"{sum(bool(row.error) for row in checked.rows):,}"),
        ("without a partner", f"{len(checked.photos_alone) + len(checked.masks_alone):,}"),
        *([("turned by EXIF", f"{turned:,}")] if turned else []),
        ("duplicates", f"{len(checked.duplicates()):,}"),
        *((f"pairs, {split}", f"{splits[split]:,}") for split in ("train", "val", "test") if splits[split]),
    ]


def _findings_table(findings: Sequence[Finding]) -> Table:
    rows = [[finding.what, finding.remedy, "refuses" if finding.refused else "starts"] for finding in findings]
    heads = ["finding", "remedy", "training"]
    return Table(title="Findings", heads=heads, rows=rows or [["no findings", "", "starts"]], text=True)


def _class_shares(checked: Checked) -> Bars:
    pixels, _, _ = check.class_pixels(checked.labels, checked.label_map)
    return sections.class_shares(checked.classes, pixels, "Ignored pixels do not count.")


def _masks_by_class(checked: Checked) -> Bars:
    _, masks, _ = check.class_pixels(checked.labels, checked.label_map)
    return Bars(title="Masks that contain each class", values=dict(zip(checked.classes, masks, strict=True)))


def _values_table(checked: Checked) -> Table:
    """Return the most frequent raw values, each with its class, its pixels and the masks that contain it."""
    labels, label_map, classes = checked.labels, checked.label_map, checked.classes
    total, rows = max(1, sum(labels.pixels.values())), []
    for value in sorted(labels.pixels, key=lambda value: (-labels.pixels[value], value))[:_VALUES]:
        class_id = label_map.ids.get(value) if labels.colours == label_map.colours else None
        meaning = "no class" if class_id is None else classes[class_id] if class_id < len(classes) else "ignored"
        share = f"{100 * labels.pixels[value] / total:.2f} %"
        counts = (f"{labels.pixels[value]:,}", f"{labels.files[value]:,}")
        rows.append([_value_text(value, labels), meaning, share, *counts])
    heads = ["value", "class", "share", "pixels", "masks"]
    note = "" if len(labels.pixels) <= _VALUES else f"The most frequent of {len(labels.pixels):,}."
    return Table(title="Raw values in the masks", heads=heads, rows=rows, note=note)


def _sizes_table(checked: Checked) -> Table:
    sizes = Counter((row.width, row.height) for row in checked.rows if row.width and row.height)
    shown = [[f"{width} × {height}", f"{count:,}"] for (width, height), count in sizes.most_common(sections.SHOWN)]
    note = f"{len(sizes):,} sizes in all." if len(sizes) > sections.SHOWN else ""
    return Table(title="Sizes of the photos", heads=["width × height", "photos"], rows=shown, note=note)


def _samples_sheet(checked: Checked) -> Sheet | None:
    """Return sample photos with their overlays, spread evenly over the names; None if there is no usable pair."""
    good = [index for index, row in enumerate(checked.rows) if not row.error]
    count, pictures = min(sections.SHOWN, len(good)), []
    for index in [good[number * len(good) // count] for number in range(count)]:
        preview, mask = _preview(checked, index), _mask_png(checked, index)
        if preview is not None and mask is not None:
            picture = visualize.side_by_side(preview, visualize.overlay(preview, mask))
            name = checked.rows[index].id
            content = visualize.for_report(picture)
            pictures.append(Picture(content=content, caption=name, alt=f"{name}: photo, and the photo under its mask"))
    note = "The photo, and the photo under its mask, as training reads it."
    return Sheet(title="Samples", pictures=pictures, note=note) if pictures else None


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
    return Command(title="The same again, and on from here", lines=[*html.rerun("prepare").lines, command])


def _preview(checked: Checked, index: int) -> bytes | None:
    location, limit = checked.pairs["image"][index].as_py(), decode.MAX_TRAINING_PIXELS
    try:
        return visualize.preview(storage.read(location, at_most=decode.max_bytes(limit)), limit)
    except (DecodeError, FileNotFoundError):
        return None


def _mask_png(checked: Checked, index: int) -> bytes | None:
    pair, limit = checked.pairs.slice(index, 1).to_pylist()[0], decode.MAX_TRAINING_PIXELS
    try:
        photo, mask = (storage.read(pair[of], at_most=decode.max_bytes(limit)) for of in ("image", "mask"))
        _, _, truth = decode_pair_and_truth(photo, mask, (16, 16), checked.label_map, limit)
    except (DecodeError, FileNotFoundError):
        return None
    return encode.encode_mask(truth, checked.palette)


def _is_value_error(row: Row, checked: Checked) -> bool:
    """Return True if a pair is refused only for the values of its mask. One finding covers all such pairs."""
    is_other_kind = row.values is not None and row.colours == checked.labels.colours != checked.label_map.colours
    error = row.error or ""
    return (is_other_kind and "differs from its photo's" not in error) or "but the classes cover" in error


def _has_jpeg_masks(checked: Checked) -> bool:
    return any(mask.lower().endswith((".jpg", ".jpeg")) for mask in checked.pairs["mask"].to_pylist())


def _suggest_flags(checked: Checked) -> list[str] | None:
    """Return flags that accept the masks. Keeps the given classes and ignore label as far as they fit."""
    config, ignored = checked.config, None
    if config.ignore_label and checked.label_map.colours == checked.labels.colours:
        ignored = {raw for raw, class_id in checked.label_map.ids.items() if class_id == IGNORE_ID}
    flags = None if _has_jpeg_masks(checked) else check.suggest(checked.labels, ignored)
    if flags and config.classes and flags[1] == str(len(checked.classes)):
        flags[:2] = ["--classes", config.classes]
    return [*flags, "--ignore-label", config.ignore_label] if flags and ignored is not None else flags


def _has_uncovered_values(checked: Checked) -> bool:
    _, _, unknown = check.class_pixels(checked.labels, checked.label_map)
    return unknown > 0


def _remedy_for_values(checked: Checked) -> str:
    if _has_jpeg_masks(checked):
        return "some masks are JPEG, which changes values; save them again as PNG, from the originals"
    flags = _suggest_flags(checked)
    if flags:
        return f"pass {shlex.join(flags)}"
    return "pass a --label-map with every value; if edges were smoothed, make the masks again without smoothing"


def _value_text(value: int, labels: Labels) -> str:
    return f"#{value:06x}" if labels.colours else str(value)
