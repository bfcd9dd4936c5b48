"""Which pairs are for what: to train on, to validate on, kept for a test. Manifests in and out; only lists are read."""

import random
from collections.abc import Iterator

import pyarrow as pa

from petseg import storage
from petseg.config.base import InputError
from petseg.data.manifest import IMAGE_ENDINGS
from petseg.errors import UnavailableError

SIDES = ("train", "val", "test")
"""What a pair may be for."""

_LIST_SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string())])


def split(manifest: pa.Table, *, seed: int, val_count: int) -> tuple[pa.Table, pa.Table]:
    """Shuffle the rows and hold the last `val_count` out: (training, validation).

    The shuffle is that of the Keras example: `random.Random(seed).shuffle` on the sorted list.
    """
    order = list(range(manifest.num_rows))
    random.Random(seed).shuffle(order)
    first_val = manifest.num_rows - val_count
    rows = pa.array(order, pa.int64())  # typed, since either part may be empty
    return manifest.take(rows[:first_val]), manifest.take(rows[first_val:])


def assign(manifest: pa.Table, files: tuple[str, ...]) -> tuple[dict[str, pa.Table], list[str]]:
    """The rows that lists give to "train", "val" and "test", in the manifest's order, and listed ids that no row has.

    `files` are "train=FILE", "val=FILE", "test=FILE", each with an id at the start of every line, or one FILE with an
    id and one of these words in every line, or with columns `id` and `split` in Parquet. An id may have its ending.

    Raises `InputError` where a file cannot be read as that, or has none of the ids, or an id is on two sides.
    """
    ids = set(manifest["id"].to_pylist())
    side_of: dict[str, str] = {}
    unknown = []
    for entry in files:
        side, _, location = entry.partition("=")
        if side not in SIDES or not location:
            side, location = "", entry
        listed = dict(_listed(location, side, ids))
        if not listed.keys() & ids:
            raise InputError(
                f"--split-file {location}: none of the ids in it is that of a pair, such as {manifest['id'][0]}; ids "
                "are paths below the folder without an ending"
            )
        for row_id, found in listed.items():
            if side_of.setdefault(row_id, found) != found:
                raise InputError(f"--split-file {location}: {row_id} is listed for {found} and for {side_of[row_id]}")
        unknown += sorted(listed.keys() - ids)
    sides = [side_of.get(row_id) for row_id in manifest["id"].to_pylist()]
    return {side: manifest.filter(pa.array([of == side for of in sides])) for side in SIDES}, unknown


def divide(
    pairs: pa.Table, split_file: tuple[str, ...], *, seed: int, val_count: int | None, val_fraction: float | None
) -> tuple[dict[str, pa.Table], list[str]]:
    """The pairs by what they are for, those to train on in the seeded order, and what there is to say of it.

    Where lists name none to validate on, `val_count`, or the share `val_fraction`, of those to train on are held out.
    Raises `InputError` as `assign` does.
    """
    sides, notes = {"train": pairs, "val": pairs.slice(0, 0), "test": pairs.slice(0, 0)}, []
    if split_file:
        sides, unknown = assign(pairs, split_file)
        if unknown:
            notes.append(f"{len(unknown)} ids in --split-file are those of no pair: {', '.join(unknown[:5])}")
        left = pairs.num_rows - sum(side.num_rows for side in sides.values())
        if left:
            notes.append(f"{left} of {pairs.num_rows} pairs are in no list of --split-file, and left out")
    listed, held_out = sides["train"].num_rows, 0
    if not sides["val"].num_rows:
        held_out = min(listed, val_count or max(1, round((val_fraction or 0) * listed)))
    to_train, to_validate = split(sides["train"], seed=seed, val_count=held_out)
    return sides | {"train": to_train} | ({"val": to_validate} if held_out else {}), notes


def _listed(location: str, side: str, ids: set[str]) -> Iterator[tuple[str, str]]:
    """The ids in a list, each with its side; `side` where the list is all of one."""
    try:
        content = storage.read(storage.absolute(location))
    except UnavailableError:
        raise
    except OSError as error:
        raise InputError(f"--split-file {location}: cannot be read: {error.strerror or error}") from error
    if content.startswith(b"PAR1"):
        try:
            rows = storage.parse_parquet(content, ["id", "split"]).cast(_LIST_SCHEMA).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--split-file {location}: no Parquet file with columns id and split: {reason}") from error
        lines = [[row["id"], row["split"]] for row in rows]
    else:
        lines = [_words(line, ids) for line in content.decode("utf-8-sig", errors="replace").splitlines()]
    for number, words in enumerate(lines, 1):
        if not words or words[0].startswith("#") or words[1:] == ["split"]:
            continue
        found = side or (words[1] if len(words) > 1 else "")
        if found not in SIDES:
            raise InputError(
                f"--split-file {location}, line {number}: an id and one of {', '.join(SIDES)} are expected; for a "
                "list that is all of one, give train=FILE"
            )
        yield _without_ending(words[0]), found


def _words(line: str, ids: set[str]) -> list[str]:
    """The parts of a line: between commas or tabs where there are any, else the whole if it is an id, else between
    spaces.
    """
    for separator in (",", "\t"):
        if separator in line:
            return [part.strip() for part in line.split(separator)]
    return [line.strip()] if _without_ending(line.strip()) in ids else line.split()


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot + ending.lower() in IMAGE_ENDINGS else name
