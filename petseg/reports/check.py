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
from petseg.data import check, decode, duplicates, visualize
from petseg.data.check import Labels, Row
from petseg.data.decode import DecodeError
from petseg.data.labels import IGNORE_ID, LabelMap, palette
from petseg.data.pairs import decode_pair_and_truth
from petseg.reports import html
from petseg.reports import jobs as reports
from petseg.reports.html import Bars, Picture, Section, Sheet, Table

_SHOWN = 12
_LISTED = 100
_VALUES = 40


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
    rows: Sequence[Row]
    photos_alone: Sequence[str]
    masks_alone: Sequence[str]
    sides: Mapping[str, str]
    """Split (train, val or test) of each id."""
    labels: Labels
    label_map: LabelMap
    classes: tuple[str, ...]
    same: Sequence[tuple[int, int]]
    alike: Sequence[tuple[int, int, int]]
    """Near-duplicates. `same` and `alike` are the results of `check.twice`."""

    def across(self) -> list[tuple[int, int]]:
        """Return the duplicate photos whose two copies are in different splits (train, val, test)."""
        side = [self.sides.get(row.id) for row in self.rows]
        return [(one, other) for one, other in self.twice() if side[one] != side[other] and side[one] and side[other]]

    def twice(self) -> list[tuple[int, int]]:
        """Return all pairs of duplicate photos: exact duplicates first, then near-duplicates."""
        return [*self.same, *((one, other) for one, other, _ in self.alike)]

    def like(self) -> dict[str, str]:
        """Return {id of a duplicate: id of its other copy}, preferring a copy in another split."""
        pairs = [*reversed(self.twice()), *reversed(self.across())]
        return {self.rows[other].id: self.rows[one].id for one, other in pairs}


def findings(found: Checked) -> list[Finding]:
    """Return the findings. Those that make training refuse to start come first."""
    said = []
    for names, what, where in (
        (found.photos_alone, "photos without a mask", found.config.masks),
        (found.masks_alone, "masks without a photo", found.config.images),
    ):
        if names:
            remedy = f"add what is missing in {where}, or move these away"
            said.append(Finding(f"{what}: {len(names):,}, such as {names[0]}", remedy, refused=True))
    failed = [row for row in found.rows if row.error]
    pixels, _, unknown = check.class_pixels(found.labels, found.label_map)
    if unknown:
        remedy = _remedy_for_values(found)
        values = _values_text(found.labels, found.label_map)
        said.append(Finding(f"the masks have values that no class covers ({values})", remedy, refused=True))
    others = [row.error for row in failed if row.error and not _is_value_error(row, found)]
    if others:
        remedy = "mend or remove them; the list is in the report"
        said.append(Finding(f"pairs that cannot be used: {len(others):,}, such as {others[0]}", remedy, refused=True))
    absent = [name for name, count in zip(found.classes, pixels, strict=True) if not count]
    if absent and not unknown:
        remedy = "see --label-map, --num-classes and --classes"
        said.append(Finding(f"no pixel of {', '.join(absent)} in any mask", remedy, refused=False))
    if found.same:
        remedy = "keep one of each; which they are is in check.parquet, column like"
        said.append(Finding(f"photos that are there twice, byte for byte: {len(found.same):,}", remedy, refused=False))
    if found.alike:
        what = f"photos that look like another: {len({other for _, other, _ in found.alike}):,}"
        remedy = "look at them in the report; all are in check.parquet, column like"
        if len(found.alike) >= duplicates.MOST_PAIRS:
            remedy += "; there are more, which were not looked for"
        said.append(Finding(what, remedy, refused=False))
    across = found.across()
    if across:
        what = f"of these, on two sides of the split, so that scores would flatter: {len(across):,}"
        said.append(Finding(what, "remove one of each, or put both on one side with --split-file", refused=False))
    return said


def train_flags(found: Checked) -> list[str]:
    """Return the `petseg train` flags for this data set, with the classes as given or as the masks suggest."""
    _, _, unknown = check.class_pixels(found.labels, found.label_map)
    suggested = _suggest_flags(found) if unknown else None
    classes = () if suggested else ("classes", "num_classes", "label_map", "ignore_label")
    flags = ["--images", found.config.images, "--masks", found.config.masks, *(suggested or ())]
    for field in dataclasses.fields(CheckConfig):
        value = getattr(found.config, field.name)
        if field.name in (*classes, "split_file", "val_fraction", "val_count", "seed") and value != field.default:
            flags += [f"--{field.name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]
    return flags


def page(found: Checked, said: Sequence[Finding], settings: Mapping[str, Any], command: str) -> bytes:
    """Return the report page. Photos are read again for its pictures; photos deleted meanwhile are skipped."""
    pixels, files, _ = check.class_pixels(found.labels, found.label_map)
    total = max(1, sum(pixels))
    shares = {name: round(100 * count / total, 1) for name, count in zip(found.classes, pixels, strict=True)}
    in_photos = dict(zip(found.classes, files, strict=True))
    failed = [[row.id, row.error] for row in found.rows if row.error]
    sections: list[Section] = [
        Table(
            title="Findings",
            heads=["what", "what to do", "training"],
            rows=[[finding.what, finding.remedy, "refuses" if finding.refused else "would begin"] for finding in said]
            or [["nothing", "", "would begin"]],
            text=True,
        ),
        Bars(title="Share of the pixels by class", values=shares, unit=" %", note="Ignored pixels do not count."),
        Bars(title="Masks that have the class", values=in_photos),
        _values(found.labels, found.label_map, found.classes),
        _sizes(found.rows),
        _samples(found),
        _duplicates_sheet("There twice, on two sides of the split", found, found.across()),
        _duplicates_sheet("There twice", found, found.twice()),
    ]
    if failed:
        note = "" if len(failed) <= _LISTED else f"… and {len(failed) - _LISTED:,} more: see check.parquet."
        sections.append(
            Table(title="Pairs that cannot be used", heads=["id", "why"], rows=failed[:_LISTED], note=note, text=True)
        )
    for title, names in (("Photos without a mask", found.photos_alone), ("Masks without a photo", found.masks_alone)):
        if names:
            note = "" if len(names) <= _LISTED else f"… and {len(names) - _LISTED:,} more: see check.parquet."
            sections.append(Table(title=title, heads=["id"], rows=[[name] for name in names[:_LISTED]], note=note))
    sections += [
        reports.facts("Settings", settings),
        html.versions(),
        html.Command(title="The same again, and on from here", lines=[*html.rerun("prepare").lines, command]),
    ]
    kept = [section for section in sections if not isinstance(section, Sheet) or section.pictures]
    sides = Counter(found.sides.values())
    turned = sum(row.orientation not in (None, 1) for row in found.rows)
    summary = [
        ("pairs", f"{found.pairs.num_rows:,}"),
        ("cannot be used", f"{len(failed):,}"),
        ("without a partner", f"{len(found.photos_alone) + len(found.masks_alone):,}"),
        *([("turned by EXIF", f"{turned:,}")] if turned else []),
        ("there twice", f"{len(found.same) + len(found.alike):,}"),
        *((f"would {side}", f"{sides[side]:,}") for side in ("train", "val", "test") if sides[side]),
    ]
    return html.page(title="Check", summary=summary, sections=kept)


def _is_value_error(row: Row, found: Checked) -> bool:
    """Return True if a pair is refused only for the values of its mask. One finding covers all such pairs."""
    is_other_kind = row.values is not None and row.colours == found.labels.colours != found.label_map.colours
    error = row.error or ""
    return (is_other_kind and "differs from its photo's" not in error) or "but the classes cover" in error


def _has_jpeg_masks(found: Checked) -> bool:
    return any(mask.lower().endswith((".jpg", ".jpeg")) for mask in found.pairs["mask"].to_pylist())


def _suggest_flags(found: Checked) -> list[str] | None:
    """Return flags that accept the masks. Keeps the given classes and ignore label as far as they fit."""
    config, ignored = found.config, None
    if config.ignore_label and found.label_map.colours == found.labels.colours:
        ignored = {raw for raw, class_id in found.label_map.ids.items() if class_id == IGNORE_ID}
    flags = None if _has_jpeg_masks(found) else check.suggest(found.labels, ignored)
    if flags and config.classes and flags[1] == str(len(found.classes)):
        flags[:2] = ["--classes", config.classes]
    return [*flags, "--ignore-label", config.ignore_label] if flags and ignored is not None else flags


def _remedy_for_values(found: Checked) -> str:
    if _has_jpeg_masks(found):
        return "some of them are JPEG, which changes values; make them again, as PNG"
    flags = _suggest_flags(found)
    if flags:
        return f"pass {shlex.join(flags)}"
    return "pass --label-map with every value; where their edges were smoothed, make them again without"


def _values_text(labels: Labels, label_map: LabelMap) -> str:
    values = [f"#{value:06x}" if labels.colours else str(value) for value in sorted(labels.pixels)]
    shown = ", ".join(values[:8]) + (", …" if len(values) > 8 else "")
    return f"they have {shown}; the label map is {label_map}"


def _values(labels: Labels, label_map: LabelMap, classes: Sequence[str]) -> Table:
    total, rows = max(1, sum(labels.pixels.values())), []
    for value in sorted(labels.pixels, key=lambda value: (-labels.pixels[value], value))[:_VALUES]:
        class_id = label_map.ids.get(value) if labels.colours == label_map.colours else None
        meaning = "no class" if class_id is None else classes[class_id] if class_id < len(classes) else "ignored"
        shown = f"#{value:06x}" if labels.colours else str(value)
        share = f"{100 * labels.pixels[value] / total:.2f} %"
        rows.append([shown, meaning, share, f"{labels.pixels[value]:,}", f"{labels.files[value]:,}"])
    heads = ["value", "class", "share", "pixels", "masks"]
    note = "" if len(labels.pixels) <= _VALUES else f"The most frequent of {len(labels.pixels):,}."
    return Table(title="Raw values in the masks", heads=heads, rows=rows, note=note)


def _sizes(rows: Sequence[Row]) -> Table:
    sizes = Counter((row.width, row.height) for row in rows if row.width and row.height)
    shown = [[f"{width} × {height}", f"{count:,}"] for (width, height), count in sizes.most_common(_SHOWN)]
    note = f"{len(sizes):,} sizes in all." if len(sizes) > _SHOWN else ""
    return Table(title="Sizes of the photos", heads=["width × height", "photos"], rows=shown, note=note)


def _samples(found: Checked) -> Sheet:
    """Return sample photos with their overlays, spread evenly over the names."""
    good = [index for index, row in enumerate(found.rows) if not row.error]
    count, shown = min(_SHOWN, len(good)), []
    for index in [good[number * len(good) // count] for number in range(count)]:
        preview, mask = _preview(found, index), _mask_png(found, index)
        if preview is not None and mask is not None:
            picture = visualize.side_by_side(preview, visualize.overlay(preview, mask))
            name = found.rows[index].id
            content = visualize.for_report(picture)
            shown.append(Picture(content=content, caption=name, alt=f"{name}: photo, and the photo under its mask"))
    return Sheet(title="Samples", pictures=shown, note="The photo, and the photo under its mask, as training reads it.")


def _mask_png(found: Checked, index: int) -> bytes | None:
    pair, limit = found.pairs.slice(index, 1).to_pylist()[0], decode.MAX_TRAINING_PIXELS
    try:
        photo, mask = (storage.read(pair[of], at_most=decode.max_bytes(limit)) for of in ("image", "mask"))
        _, _, truth = decode_pair_and_truth(photo, mask, (16, 16), found.label_map, limit)
    except (DecodeError, FileNotFoundError):
        return None
    return decode.encode_mask(truth, palette(found.label_map.num_classes))


def _duplicates_sheet(title: str, found: Checked, pairs: Sequence[tuple[int, int]]) -> Sheet:
    shown = []
    for one, other in pairs[:_SHOWN]:
        previews = [_preview(found, index) for index in (one, other)]
        names = f"{found.rows[one].id} and {found.rows[other].id}"
        sides = [found.sides.get(found.rows[index].id, "left out") for index in (one, other)]
        if previews[0] is not None and previews[1] is not None:
            picture = visualize.for_report(visualize.side_by_side(previews[0], previews[1]))
            shown.append(Picture(content=picture, caption=f"{names} ({sides[0]}, {sides[1]})", alt=names))
    note = f"{_SHOWN} of {len(pairs):,}; all are in check.parquet, column like." if len(pairs) > _SHOWN else ""
    return Sheet(title=title, pictures=shown, note=note)


def _preview(found: Checked, index: int) -> bytes | None:
    location, limit = found.pairs["image"][index].as_py(), decode.MAX_TRAINING_PIXELS
    try:
        return visualize.preview(storage.read(location, at_most=decode.max_bytes(limit)), limit)
    except (DecodeError, FileNotFoundError):
        return None
