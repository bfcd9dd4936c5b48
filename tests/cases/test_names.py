"""Names of files as users have them, in folders and in lists."""

from pathlib import Path

import pyarrow as pa
import pytest

from petseg.data import splits

NAMES = [
    "plain",
    "#hash",
    "with, comma",
    "my photo 1",
    "dots.in.name",
    "привет мир",
    "two  spaces",
    "train",
    "1",
    "a\u2028b",
]


@pytest.fixture
def pairs() -> pa.Table:
    return pa.table({"id": sorted(NAMES)})


def assign(pairs: pa.Table, *files: str) -> dict[str, set[str]]:
    parts, unknown = splits.assign(pairs, files)
    assert unknown == []
    return {split: set(rows["id"].to_pylist()) for split, rows in parts.items()}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_split_file_of_one_split_every_name_is_found(end: str, pairs: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(("\ufeff# a comment\n" + end.join(NAMES[:5])).encode())
    (tmp_path / "val.txt").write_bytes(end.join(f"{name}.jpg" for name in NAMES[5:]).encode() + b"\n\n")
    found = assign(pairs, f"train={tmp_path}/train.txt", f"val={tmp_path}/val.txt")
    assert (found["train"], found["val"]) == (set(NAMES[:5]), set(NAMES[5:]))


@pytest.mark.parametrize("separator", [",", ", ", "\t", " "])
def test_split_file_with_a_split_per_line_every_name_is_found(separator: str, pairs: pa.Table, tmp_path: Path) -> None:
    lines = [f"{name}{separator}{split}" for name, split in zip(NAMES, ["train", "val", "test"] * 4, strict=False)]
    (tmp_path / "lists.csv").write_text("\n".join([f"id{separator}split", *lines]))
    found = assign(pairs, f"{tmp_path}/lists.csv")
    assert [found[split] for split in ("train", "val", "test")] == [set(NAMES[start::3]) for start in range(3)]


def test_split_file_quoted_csv_is_read(pairs: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text('id,split\n"with, comma",train\nplain,val\n"my photo 1","test"\n')
    found = assign(pairs, f"{tmp_path}/lists.csv")
    assert found == {"train": {"with, comma"}, "val": {"plain"}, "test": {"my photo 1"}}
