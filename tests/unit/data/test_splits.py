from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from petseg.config.base import SPLITS
from petseg.data import manifest, splits
from petseg.errors import InputError


@pytest.fixture
def landscapes(tmp_path: Path) -> Path:
    """Folder with 64 empty photos and masks, and a list of 12 of them for validation."""
    for name, ending in (("photos", "jpg"), ("masks", "png")):
        (tmp_path / name / "a").mkdir(parents=True)
        for index in range(64):
            (tmp_path / name / "a" / f"{index:02}.{ending}").touch()
    (tmp_path / "val.csv").write_text("id,split\n" + "".join(f"a/{i:02}.jpg,val\n" for i in range(40, 52)))
    return tmp_path


def test_assign_list_without_any_pair_is_refused(landscapes: Path) -> None:
    pairs = manifest.discover(str(landscapes / "photos"), str(landscapes / "masks"))
    (landscapes / "other.txt").write_text("b/77 train\n")
    with pytest.raises(InputError, match=r"no id in it matches a pair, such as a/00; ids are paths"):
        splits.assign(pairs, (str(landscapes / "other.txt"),))


def test_assign_ids_with_spaces_work_and_unknown_ids_are_named(tmp_path: Path) -> None:
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
        for stem in ("my cat 1", "dog"):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{stem}.png")
    pairs = manifest.discover(str(tmp_path / "photos"), str(tmp_path / "masks"))
    (tmp_path / "train.txt").write_text("\ufeffmy cat 1.png\ndog 3 4\ncow 5 6\n", encoding="utf-8")
    sides, unknown = splits.assign(pairs, (f"train={tmp_path}/train.txt",))
    assert sides["train"]["id"].to_pylist() == ["dog", "my cat 1"] and unknown == ["cow"]
    (tmp_path / "val.txt").write_text("horse\n")
    with pytest.raises(InputError, match=r"val.txt: no id in it matches a pair, such as dog"):
        splits.assign(pairs, (f"train={tmp_path}/train.txt", f"val={tmp_path}/val.txt"))
    pq.write_table(pairs.select(["id"]), tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match=r"manifest.parquet: no Parquet file with columns id and split"):
        splits.assign(pairs, (str(tmp_path / "manifest.parquet"),))


def test_assign_manifest_of_a_run_is_accepted(landscapes: Path, tmp_path: Path) -> None:
    pairs = manifest.discover(str(landscapes / "photos"), str(landscapes / "masks"))
    sides, unknown = splits.assign(pairs, tuple(str(landscapes / name) for name in ("val.csv",)))
    assert [sides[side].num_rows for side in SPLITS] == [0, 12, 0] and unknown == []
    listed = pairs.slice(3, 2).append_column("split", [["train", "test"]])
    pq.write_table(listed, tmp_path / "manifest.parquet")
    sides, _ = splits.assign(pairs, (str(tmp_path / "manifest.parquet"),))
    assert (sides["train"]["id"].to_pylist(), sides["test"]["id"].to_pylist()) == (["a/03"], ["a/04"])
