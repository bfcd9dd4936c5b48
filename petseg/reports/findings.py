"""Findings of a check: what the user should know of the data set, each with its remedy."""

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from petseg.config.prepare import CheckConfig
from petseg.data import check, duplicates, listing, orientation
from petseg.data.check import Row
from petseg.data.labels import IGNORE_ID, LOSSY_REMEDY
from petseg.data.mask_values import Labels, suggest
from petseg.data.notes import count_notes, note_lines
from petseg.reports.checked import Checked

_NAMED = 5
"""Maximum number of likely label errors that are named."""

_TRAIN_FLAGS = ("image_suffix", "mask_suffix", "masks_upright", "split_file", "val_fraction", "val_count", "seed")
"""Settings that a check shares with training, beside the folders and the classes."""


@dataclass(frozen=True)
class Finding:
    """A problem in the data set that the user should know of."""

    what: str
    remedy: str
    blocks_training: bool
    """True if training would refuse to start."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def find_problems(checked: Checked) -> list[Finding]:
    """Return the findings. Those that make training refuse to start come first."""
    candidates = [
        _unpaired(checked.unpaired_photos, "photo", "mask", checked.config.masks),
        _unpaired(checked.unpaired_masks, "mask", "photo", checked.config.images),
        _uncovered_values(checked),
        _unusable_pairs(checked),
        _unclear_masks(checked),
        *_unlabelled_splits(checked),
        _absent_classes(checked),
        _exact_duplicates(checked),
        _near_duplicates(checked),
        _cross_split_duplicates(checked),
        _near_black(checked),
        _label_errors(checked),
        _seen_by_all(checked),
        *_skipped_files(checked),
        *_notes(checked),
    ]
    return [finding for finding in candidates if finding is not None]


def _unpaired(names: Sequence[str], kind: str, missing: str, folder: str) -> Finding | None:
    """Return the finding of files of a `kind` ("photo" or "mask") whose partner is missing in `folder`."""
    if not names:
        return None
    what = f"{_count(len(names), kind)} without a {missing}, such as {names[0]}"
    return Finding(what, f"add the missing {missing}s to {folder}, or move these {kind}s away", blocks_training=True)


def _skipped_files(checked: Checked) -> list[Finding]:
    remedy = "convert or rename those that are images"
    return [Finding(line, remedy, blocks_training=False) for line in listing.skipped_lines(checked.skipped)]


def _notes(checked: Checked) -> list[Finding]:
    lines = note_lines(count_notes((row.id for row in checked.rows), (row.notes for row in checked.rows)))
    return [Finding(line, "compare them in a viewer", blocks_training=False) for line in lines]


def _near_black(checked: Checked) -> Finding | None:
    dark = [row.id for row in checked.rows if row.near_black]
    if not dark:
        return None
    what = f"{_count(len(dark), 'photo')} nearly black, such as {', '.join(dark[:3])}"
    return Finding(what, "look at them; store them with 8 or 16 bits, if a viewer shows more", blocks_training=False)


def _unclear_masks(checked: Checked) -> Finding | None:
    """Return the finding that training will ask for --masks-upright, or how it will use the unclear masks."""
    drawn = Counter(row.drawn for row in checked.rows if row.drawn is not None)
    unclear = [row.id for row in checked.rows if row.drawn == "unclear"]
    if not unclear or checked.config.masks_upright != "auto":
        return None
    decision = orientation.decision(drawn)
    what = f"{_count(len(unclear), 'mask')} of photos that EXIF turns, such as {unclear[0]}"
    if decision is None:
        what += ": the sizes do not show if they were drawn on the upright photos"
        return Finding(what, orientation.REMEDY, blocks_training=True)
    return Finding(f"{what}: {orientation.USED[decision]}", "check one in the report", blocks_training=False)


def _unlabelled_splits(checked: Checked) -> Iterator[Finding]:
    """Yield a finding for each split that training reads, if all pixels of its masks are ignored."""
    label_map = checked.classes.label_map
    for split, name in (("train", "training"), ("val", "validation")):
        rows = [row for row in checked.rows if checked.splits.get(row.id) == split]
        is_known = bool(rows) and all(row.values is not None and not row.error for row in rows)
        if is_known and {label_map.ids.get(value) for row in rows for value in row.values or ()} <= {IGNORE_ID}:
            what = f"every pixel of all masks of the {name} split is ignored, such as in {rows[0].id}"
            yield Finding(what, "check --label-map, --ignore-label and --split-file", blocks_training=True)


def _uncovered_values(checked: Checked) -> Finding | None:
    labels = checked.labels
    if not _has_uncovered_values(checked):
        return None
    values = [value_text(value, labels) for value in sorted(labels.pixels)]
    shown = ", ".join(values[:8]) + (", …" if len(values) > 8 else "")
    what = f"the masks have values that no class covers (values {shown}; label map {checked.classes.label_map})"
    return Finding(what, _remedy_for_values(checked), blocks_training=True)


def _unusable_pairs(checked: Checked) -> Finding | None:
    """Return the finding of all unusable pairs but those that `_uncovered_values` covers."""
    errors = [row.error for row in checked.rows if row.error and not _is_value_error(row, checked)]
    if not errors:
        return None
    what = f"{_count(len(errors), 'pair')} cannot be used, such as {errors[0]}"
    return Finding(what, "fix or remove them; the report lists them", blocks_training=True)


def _absent_classes(checked: Checked) -> Finding | None:
    pixels, _, unknown = check.class_pixels(checked.labels, checked.classes.label_map)
    absent = [name for name, count in zip(checked.classes.names, pixels, strict=True) if not count]
    if unknown or not absent:
        return None
    what = f"no pixel of {', '.join(absent)} in any mask"
    return Finding(what, "check --label-map, --num-classes and --classes", blocks_training=False)


def _exact_duplicates(checked: Checked) -> Finding | None:
    if not checked.exact_duplicates:
        return None
    what = _count(len(checked.exact_duplicates), "exact duplicate")
    return Finding(what, "keep one of each; check.parquet names them in the column like", blocks_training=False)


def _near_duplicates(checked: Checked) -> Finding | None:
    if not checked.near_duplicates:
        return None
    remedy = "compare them in the report; check.parquet names all in the column like"
    if len(checked.near_duplicates) >= duplicates.MOST_PAIRS:
        remedy += "; there are more, because the search stopped at this number"
    what = _count(len({other for _, other, _ in checked.near_duplicates}), "near-duplicate")
    return Finding(what, remedy, blocks_training=False)


def _cross_split_duplicates(checked: Checked) -> Finding | None:
    number = len(checked.cross_split_duplicates())
    if not number:
        return None
    crossing = f"{_count(number, 'duplicate')} {'crosses' if number == 1 else 'cross'}"
    what = f"{crossing} train/val/test: scores would be too optimistic"
    return Finding(what, "remove one of each, or put both into one split with --split-file", blocks_training=False)


def _label_errors(checked: Checked) -> Finding | None:
    ids = check.rank(checked.disagreements)[:_NAMED]
    if not ids:
        return None
    named = ", ".join(f"{row_id} ({checked.disagreements[row_id].value:.2f})" for row_id in ids)
    what = f"possible label errors, by the disagreement of the networks: {named}"
    remedy = "look at them in the report; check.parquet has all in the column disagreement"
    return Finding(what, remedy, blocks_training=False)


def _seen_by_all(checked: Checked) -> Finding | None:
    """Return the finding of pairs without a network that was not trained on them."""
    number = sum(not found.out_of_fold for found in checked.disagreements.values())
    if not number:
        return None
    what = f"{_count(number, 'pair')} that every network of --checkpoint was trained on, which may hide label errors"
    remedy = "train two runs, with --val-fold 1/2 and with --val-fold 2/2, and give both"
    return Finding(what, remedy, blocks_training=False)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def train_flags(checked: Checked) -> list[str]:
    """Return the `petseg train` flags for this data set, with the classes as given or as the masks suggest."""
    suggested = _suggest_flags(checked) if _has_uncovered_values(checked) else None
    classes = () if suggested else ("classes", "num_classes", "label_map", "ignore_label")
    flags = ["--images", checked.config.images, "--masks", checked.config.masks, *(suggested or ())]
    for field in dataclasses.fields(CheckConfig):
        value = getattr(checked.config, field.name)
        if field.name in (*_TRAIN_FLAGS, *classes) and value != field.default:
            flags += [f"--{field.name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]
    return flags


def _is_value_error(row: Row, checked: Checked) -> bool:
    """Return True if a pair is rejected only for the values of its mask. One finding covers all such pairs."""
    label_map = checked.classes.label_map
    is_other_kind = row.values is not None and row.colours == checked.labels.colours != label_map.colours
    error = row.error or ""
    return (
        (is_other_kind and "differs from its photo's" not in error)
        or "but the classes cover" in error
        or LOSSY_REMEDY in error
    )


def _suggest_flags(checked: Checked) -> list[str] | None:
    """Return flags that accept the masks. Keeps the given classes and ignore label as far as they fit."""
    config, ignored = checked.config, None
    if config.ignore_label and checked.classes.label_map.colours == checked.labels.colours:
        ignored = {raw for raw, class_id in checked.classes.label_map.ids.items() if class_id == IGNORE_ID}
    flags = None if any(row.is_lossy for row in checked.rows) else suggest(checked.labels, ignored)
    if flags and config.classes and flags[1] == str(len(checked.classes.names)):
        flags[:2] = ["--classes", config.classes]
    return [*flags, "--ignore-label", config.ignore_label] if flags and ignored is not None else flags


def _has_uncovered_values(checked: Checked) -> bool:
    _, _, unknown = check.class_pixels(checked.labels, checked.classes.label_map)
    return unknown > 0


def _remedy_for_values(checked: Checked) -> str:
    if any(row.is_lossy for row in checked.rows):
        return LOSSY_REMEDY
    flags = _suggest_flags(checked)
    if flags:
        return f"pass {shlex.join(flags)}"
    return "pass a --label-map with every value; if edges were smoothed, make the masks again without smoothing"


def value_text(value: int, labels: Labels) -> str:
    """Return a raw value as --label-map takes it."""
    return f"#{value:06x}" if labels.colours else str(value)
