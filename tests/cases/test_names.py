"""Names of files as users have them, in folders and in lists."""

import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest

from petseg.data import listing, manifest, splits
from petseg.errors import InputError

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


def touch(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return str(folder)


def test_photo_and_mask_in_two_unicode_forms_are_a_pair(tmp_path: Path) -> None:
    names = ["Müller", "café", "Ångström", "naïve", "plain"]
    composed, decomposed = ([unicodedata.normalize(form, name) for name in names] for form in ("NFC", "NFD"))
    images = touch(tmp_path / "photos", *(f"{name}.jpg" for name in decomposed))
    masks = touch(tmp_path / "masks", *(f"{name}.png" for name in composed))
    found = manifest.discover(images, masks)
    assert found["id"].to_pylist() == sorted(composed)
    assert all(Path(path).exists() for column in ("image", "mask") for path in found[column].to_pylist())
    (tmp_path / "list.txt").write_text("\n".join(decomposed), encoding="utf-8")
    assert assign(found, f"train={tmp_path}/list.txt")["train"] == set(composed)


def test_two_names_of_one_unicode_form_are_refused(tmp_path: Path) -> None:
    images = touch(tmp_path, *(unicodedata.normalize(form, "é") + ".jpg" for form in ("NFC", "NFD")))
    with pytest.raises(InputError, match="two files with the same id"):
        manifest.discover(images)


def test_every_file_that_is_no_photo_is_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [f"{i}{ending}" for i, ending in enumerate([".jpg", ".JFIF", ".jpe", ".mpo", ".avif", ".jp2"])]
    others = ["a.mov", "b.MOV", "c.dng", "d", "sub.dir/e", ".f.jpg", "g.jpg.part"]
    images = touch(tmp_path, *photos, *others)
    skipped: listing.Skipped = {}
    assert manifest.discover(images, skipped=skipped).num_rows == len(photos)
    assert skipped == {"--images": {".mov": 2, ".dng": 1, "without extension": 2, "hidden": 1, ".part": 1}}
    assert sum(skipped["--images"].values()) == len(others)
    line = "--images: skipped 2 .mov, 2 without extension, 1 .dng, 1 .part, 1 hidden"
    assert listing.skipped_lines(skipped) == [line]
    assert not capsys.readouterr().out
    manifest.discover(images)
    assert capsys.readouterr().out == f"note: --images {images}: {line.removeprefix('--images: ')}\n"


def test_classes_file_beside_the_masks_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = touch(tmp_path / "photos", "a.jpg"), touch(tmp_path / "masks", "a.png", "classes.json")
    manifest.discover(images, masks)
    assert not capsys.readouterr().out
    touch(tmp_path / "photos", "classes.json")
    manifest.discover(images, masks)
    assert capsys.readouterr().out == f"note: --images {images}: skipped 1 .json\n"


SUFFIXES = {
    "masks": ("{}", "{}_mask", "--mask-suffix _mask"),
    "photos": ("{}_0000", "{}", "--image-suffix _0000"),
    "both": ("{}_sat", "{}_mask", "--image-suffix _sat --mask-suffix _mask"),
    "dots": ("v1.2_{}_high", "v1.2_{}_high_mask", "--mask-suffix _mask"),
    "folders": ("{}/image", "{}/label", "--image-suffix /image --mask-suffix /label"),
    "spaces": ("{}", "{} (mask)", "--mask-suffix  (mask)"),
}


@pytest.mark.parametrize("case", SUFFIXES)
def test_names_that_end_differently_are_paired(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_photo, of_mask, flags = SUFFIXES[case]
    stems = ["a", "a1", "b_2", "B", "10", "2"]
    images = touch(tmp_path / "photos", *(of_photo.format(stem) + ".jpg" for stem in stems))
    masks = touch(tmp_path / "masks", *(of_mask.format(stem) + ".png" for stem in stems))
    found = manifest.discover(images, masks)
    assert found["id"].to_pylist() == sorted(of_photo.format(stem) for stem in stems)
    by_photo = {of_photo.format(stem): f"{masks}/{of_mask.format(stem)}.png" for stem in stems}
    assert dict(zip(found["id"].to_pylist(), found["mask"].to_pylist(), strict=True)) == by_photo
    assert f"paired as by {flags}\n" in capsys.readouterr().out


def test_suffix_flag_takes_one_of_several_files_per_photo(tmp_path: Path) -> None:
    images = touch(tmp_path / "photos", "a_0000.png", "a_0001.png", "b_0000.png", "b_0001.png")
    masks = touch(tmp_path / "masks", "a.png", "b.png")
    skipped: listing.Skipped = {}
    found = manifest.discover(images, masks, suffixes=("_0000", ""), skipped=skipped)
    assert found["id"].to_pylist() == ["a_0000", "b_0000"]
    assert skipped == {"--images": {"without --image-suffix _0000": 2}, "--masks": {}}
    with pytest.raises(InputError, match="--mask-suffix _m: no name has it, such as "):
        manifest.discover(images, masks, suffixes=("_0000", "_m"))


def test_unequal_names_without_a_common_suffix_are_not_paired(tmp_path: Path) -> None:
    images, masks = touch(tmp_path / "photos", "x1.jpg", "y1.jpg"), touch(tmp_path / "masks", "x2.png", "y2.png")
    with pytest.raises(InputError, match="2 photos without a mask: x1, y1"):
        manifest.discover(images, masks)


def test_photos_without_a_mask_are_named_though_names_end_differently(tmp_path: Path) -> None:
    images = touch(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    masks = touch(tmp_path / "masks", "a_mask.png", "c_mask.png")
    with pytest.raises(InputError, match="1 photo without a mask: b"):
        manifest.discover(images, masks)
