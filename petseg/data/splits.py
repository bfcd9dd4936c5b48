"""Split pairs into training, validation and test. Manifests in and out; only the lists of --split-file are read."""

import csv
import random
import re
import unicodedata
from collections.abc import Iterator

import pyarrow as pa

from petseg import storage
from petseg.config.base import SPLITS, parse_fold
from petseg.data.listing import IMAGE_EXTENSIONS
from petseg.errors import InputError
from petseg.storage import sharded_output

_LIST_SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string())])


def split(manifest: pa.Table, *, seed: int, val_count: int) -> tuple[pa.Table, pa.Table]:
    """Shuffle the rows and hold out the last `val_count`: (training, validation).

    The shuffle is the Keras example's: `random.Random(seed).shuffle` on the sorted list.
    """
    return _hold_out(manifest, seed, manifest.num_rows - val_count, manifest.num_rows)


def split_fold(manifest: pa.Table, *, seed: int, val_fold: str) -> tuple[pa.Table, pa.Table]:
    """Shuffle the rows as `split` does and hold out a fold, such as "1/5": (training, validation).

    The folds are neighbouring parts of the shuffled rows. Together they are all rows, and their sizes differ by at most
    one. Raises `InputError` if there are fewer rows than folds.
    """
    (fold, folds), total = parse_fold(val_fold), manifest.num_rows
    if folds > total:
        raise InputError(f"--val-fold {val_fold}: there are only {total} training pairs; give at most {total} folds")
    return _hold_out(manifest, seed, total * (fold - 1) // folds, total * fold // folds)


def _hold_out(manifest: pa.Table, seed: int, start: int, end: int) -> tuple[pa.Table, pa.Table]:
    """Return (the other rows, the rows from `start` to `end`) of the shuffled manifest."""
    order = list(range(manifest.num_rows))
    random.Random(seed).shuffle(order)
    kept, held_out = order[:start] + order[end:], order[start:end]
    # The type is given because either part may be empty.
    return manifest.take(pa.array(kept, pa.int64())), manifest.take(pa.array(held_out, pa.int64()))


def assign(manifest: pa.Table, files: tuple[str, ...]) -> tuple[dict[str, pa.Table], list[str]]:
    """Return ({split: its rows, in the manifest's order}, listed ids that no row has).

    The splits are "train", "val" and "test". Each entry of `files` is "train=FILE", "val=FILE" or "test=FILE", where
    every line starts with an id; or FILE alone, where every line has an id and a split, or which is Parquet with the
    columns `id` and `split`. An id may have its file's ending.

    Raises `InputError` if a file cannot be read like this, if it has no id of the manifest, or if an id is in two
    splits.
    """
    ids = set(manifest["id"].to_pylist())
    split_of: dict[str, str] = {}
    unknown = []
    for entry in files:
        name, _, location = entry.partition("=")
        if name not in SPLITS or not location:
            name, location = "", entry
        listed = dict(_read_list(location, name, ids))
        if not listed.keys() & ids:
            raise InputError(
                f"--split-file {location}: no id in it matches a pair, such as {manifest['id'][0]}; ids "
                "are paths below the folder without an ending"
            )
        for row_id, name in listed.items():
            if split_of.setdefault(row_id, name) != name:
                raise InputError(f"--split-file {location}: {row_id} is listed for {name} and for {split_of[row_id]}")
        unknown += sorted(listed.keys() - ids)
    assigned = [split_of.get(row_id) for row_id in manifest["id"].to_pylist()]
    parts = {split: manifest.filter(pa.array([given == split for given in assigned])) for split in SPLITS}
    return parts, unknown


def divide(
    pairs: pa.Table,
    split_file: tuple[str, ...],
    *,
    seed: int,
    val_count: int | None,
    val_fraction: float | None,
    val_fold: str = "",
) -> tuple[dict[str, pa.Table], list[str]]:
    """Return ({split: manifest}, warnings). Training pairs are shuffled by `seed`.

    Without validation pairs in the lists, some training pairs are held out: the fold `val_fold`, `val_count` of them,
    or the fraction `val_fraction`. Raises `InputError` as `assign` and `split_fold` do, and if the lists have
    validation pairs beside a fold.
    """
    parts, warnings = {"train": pairs, "val": pairs.slice(0, 0), "test": pairs.slice(0, 0)}, []
    if split_file:
        parts, unknown = assign(pairs, split_file)
        if unknown:
            warnings.append(f"{len(unknown)} ids in --split-file match no pair: {', '.join(unknown[:5])}")
        left = pairs.num_rows - sum(part.num_rows for part in parts.values())
        if left:
            warnings.append(f"{left} of {pairs.num_rows} pairs are not listed in --split-file and are skipped")
    if val_fold:
        if parts["val"].num_rows:
            raise InputError(
                f"--val-fold {val_fold}: --split-file lists validation pairs already; leave one of the two out"
            )
        to_train, to_validate = split_fold(parts["train"], seed=seed, val_fold=val_fold)
        return parts | {"train": to_train, "val": to_validate}, warnings
    listed, held_out = parts["train"].num_rows, 0
    if not parts["val"].num_rows:
        held_out = min(listed, val_count or max(1, round((val_fraction or 0) * listed)))
    to_train, to_validate = split(parts["train"], seed=seed, val_count=held_out)
    return parts | {"train": to_train} | ({"val": to_validate} if held_out else {}), warnings


def _read_list(location: str, split_name: str, ids: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (id, split) for each line of a list.

    `split_name` is the split of all lines; "" if each line names its own.
    """
    content = storage.read_input(storage.absolute(location), f"--split-file {location}")
    if content.startswith(b"PAR1"):
        try:
            rows = sharded_output.parse_parquet(content, ["id", "split"]).cast(_LIST_SCHEMA).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--split-file {location}: no Parquet file with columns id and split: {reason}") from error
        lines = [[row["id"], row["split"]] for row in rows]
    else:
        # Not `splitlines`: it also splits at characters that may be part of a name.
        text = unicodedata.normalize("NFC", content.decode("utf-8-sig", errors="replace"))  # as ids are
        lines = [_split_line(line, ids) for line in re.split("\r?\n", text)]
    for number, words in enumerate(lines, 1):
        if not words or words[1:] == ["split"]:
            continue
        name = split_name or (words[1] if len(words) > 1 else "")
        if name not in SPLITS:
            raise InputError(
                f"--split-file {location}, line {number}: an id and one of {', '.join(SPLITS)} are expected; for a "
                "list of a single split, give train=FILE"
            )
        yield _without_ending(words[0]), name


def _split_line(line: str, ids: set[str]) -> list[str]:
    """Return the id and the other fields of a line; nothing for a comment, which starts with #.

    A name may contain any separator, and #. So first look for a name in `ids` that is the whole line, or all of it
    but the last field. Otherwise split at commas, as CSV; without commas, at tabs; without either, at spaces.
    """
    line = line.strip()
    if _without_ending(line) in ids:
        return [line]
    for separator in (",", "\t", " "):
        name, _, last = line.rpartition(separator)
        if _without_ending(name.strip()) in ids:
            return [name.strip(), last.strip()]
    if line.startswith("#"):
        return []
    if "," in line:
        return [field.strip() for field in next(csv.reader([line], skipinitialspace=True))]
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending.lower() in IMAGE_EXTENSIONS else name
