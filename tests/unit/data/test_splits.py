from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("folds", [2, 5, 64])
def test_divide_folds_are_disjoint_complete_and_keep_the_seeded_order(landscapes: Path, folds: int) -> None:
    pairs = manifest.discover(str(landscapes / "photos"), str(landscapes / "masks"))
    everything, _ = splits.split(pairs, seed=3, val_count=0)
    shuffled = everything["id"].to_pylist()
    validated = []
    for fold in range(1, folds + 1):
        parts, warnings = splits.divide(
            pairs, (), seed=3, val_count=None, val_fraction=None, val_fold=f"{fold}/{folds}"
        )
        val = parts["val"]["id"].to_pylist()
        assert parts["train"]["id"].to_pylist() == [row_id for row_id in shuffled if row_id not in val]
        assert len(val) in (64 // folds, 64 // folds + 1) and warnings == [] and parts["test"].num_rows == 0
        validated += val
    assert validated == shuffled


def test_divide_last_fold_of_five_equals_a_fraction_of_a_fifth(landscapes: Path) -> None:
    pairs = manifest.discover(str(landscapes / "photos"), str(landscapes / "masks")).slice(0, 60)
    by_fold, by_fraction = (
        splits.divide(pairs, (), seed=3, val_count=None, val_fraction=fraction, val_fold=fold)[0]
        for fraction, fold in ((None, "5/5"), (0.2, ""))
    )
    assert by_fold == by_fraction and by_fold["val"].num_rows == 12


def test_divide_fold_of_too_few_pairs_or_beside_a_validation_list_is_refused(landscapes: Path) -> None:
    pairs = manifest.discover(str(landscapes / "photos"), str(landscapes / "masks"))
    settings: dict[str, Any] = {"seed": 3, "val_count": None, "val_fraction": None}
    with pytest.raises(InputError, match="--val-fold 1/65: there are only 64 training pairs; give at most 64 folds"):
        splits.divide(pairs, (), val_fold="1/65", **settings)
    (landscapes / "val.txt").write_text("a/00\n")
    lists = (f"val={landscapes}/val.txt",)
    with pytest.raises(InputError, match="--val-fold 1/2: --split-file lists validation pairs already"):
        splits.divide(pairs, lists, val_fold="1/2", **settings)
    (landscapes / "train.txt").write_text("".join(f"a/{index:02}\n" for index in range(10)))
    parts, _ = splits.divide(pairs, (f"train={landscapes}/train.txt",), val_fold="1/2", **settings)
    assert (parts["train"].num_rows, parts["val"].num_rows) == (5, 5)
