import os
from pathlib import Path

import pyarrow as pa
import pytest

from petseg import storage
from petseg.data import listing, manifest, splits
from petseg.errors import InputError
from petseg.storage import checks


def touch(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return str(folder)


def test_discover_subfolders_photos_and_masks_are_paired_by_path(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "b/x.y.JPG", "a.jpg", "notes.txt")
    masks = touch(tmp_path / "masks", "a.png", "b/x.y.png", "._a.png")
    assert manifest.discover(images, masks).to_pylist() == [
        {"id": "a", "image": f"{images}/a.jpg", "mask": f"{masks}/a.png"},
        {"id": "b/x.y", "image": f"{images}/b/x.y.JPG", "mask": f"{masks}/b/x.y.png"},
    ]


def test_discover_photos_alone_have_a_version_that_changes_with_the_file(tmp_path: Path) -> None:
    folder = touch(tmp_path, "b.webp", "a.tif")
    (tmp_path / "link.png").symlink_to("nowhere")
    before = manifest.discover(folder)
    assert before.column_names == ["id", "image", "version"]
    assert before["id"].to_pylist() == ["a", "b", "link"]
    assert before["version"][2].as_py() == listing.UNKNOWN_VERSION
    assert manifest.discover(folder) == before
    (tmp_path / "a.tif").write_bytes(b"longer")
    os.utime(tmp_path / "b.webp", ns=(1, 1))
    after = manifest.discover(folder)
    assert after["version"][0] != before["version"][0] and after["version"][1] != before["version"][1]


def test_discover_table_local_files_have_versions_and_objects_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "require_readable", lambda *_: None)
    folder = touch(tmp_path / "photos", "a.jpg")
    (tmp_path / "photos.csv").write_text("id,uri\na,photos/a.jpg\nb,s3://bucket/b.jpg\n")
    found = manifest.discover(str(tmp_path / "photos.csv"))
    assert found["version"].to_pylist() == [
        *manifest.discover(folder)["version"].to_pylist(),
        listing.UNKNOWN_VERSION,
    ]


def test_discover_mask_folder_inside_photo_folder_masks_are_skipped(tmp_path: Path) -> None:
    images = touch(tmp_path, "a.jpg", "masks/a.png")
    found = manifest.discover(images, f"{images}/masks")
    assert found["image"].to_pylist() == [f"{images}/a.jpg"]


def test_discover_photo_folder_inside_mask_folder_photos_are_skipped(tmp_path: Path) -> None:
    masks = touch(tmp_path, "a.png", "photos/a.jpg")
    found = manifest.discover(f"{masks}/photos", masks)
    assert found["mask"].to_pylist() == [f"{masks}/a.png"]


def test_discover_same_folder_for_photos_and_masks_is_refused(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a.jpg", "a.png")
    with pytest.raises(InputError, match="--images and --masks are the same folder"):
        manifest.discover(folder, folder)


@pytest.mark.parametrize(
    ("photos", "masks", "message"),
    [
        (["a.jpg", "b.jpg"], ["a.png"], r"1 photo without a mask: b; add"),
        (["a.jpg"], ["a.png", "c.png", "d.png"], r"2 masks without a photo: c, d; add"),
        ([f"{i}.jpg" for i in range(9)], ["0.png"], r"8 photos without a mask: 1, 2, 3, 4, 5, …; add"),
        (["a.jpg", "a.png"], ["a.png"], r"images/a\.jpg and .*images/a\.png: two files with the same id \(a\)"),
        (["a.jpg", "a.png", "a.tif", "b.png", "b.gif"], ["a.png"], r"two files with the same id \(a; also b\)"),
        (["notes.txt"], ["a.png"], r"--images .*images: no images found .*, other files: 1 \.txt; check the path"),
        (["a.jpg"], ["a.npy"], r"--masks .*masks: no images found"),
        (
            ["a.jpg", "a.png/b.jpg"],
            ["a.png"],
            r"images/a\.png/b: a folder in this path has the same name as an output of a",
        ),
    ],
)
def test_discover_unpaired_or_ambiguous_files_are_refused(
    tmp_path: Path, photos: list[str], masks: list[str], message: str
) -> None:
    images_folder, masks_folder = touch(tmp_path / "images", *photos), touch(tmp_path / "masks", *masks)
    with pytest.raises(InputError, match=message):
        manifest.discover(images_folder, masks_folder)


def test_discover_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--images .*: no images found .*, other files: 0"):
        manifest.discover(str(tmp_path))


UNSAFE = {
    "a\nb": "a%0Ab",
    "a\\b": "a%5Cb",
    "a/../../b": "a/%2E%2E/%2E%2E/b",
    "a//b": "a/%2Fb",
    "/a///b/.": "%2Fa/%2F%2Fb/%2E",
    "\u2028\x9b\x7f": "%E2%80%A8%C2%9B%7F",
    "../.hidden/..a": "%2E%2E/.hidden/..a",
}


@pytest.mark.parametrize("name", UNSAFE)
def test_discover_key_that_is_no_safe_path_gets_an_escaped_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these are names of objects only."""
    monkeypatch.setattr(storage, "list_versions", lambda *_: iter([(f"{name}.jpg", "")]))
    monkeypatch.setattr(checks, "require_readable", lambda *_: None)
    [row] = manifest.discover("s3://bucket/photos").to_pylist()
    assert (row["id"], row["image"]) == (UNSAFE[name], f"s3://bucket/photos/{name}.jpg")


def test_discover_escaped_id_that_another_name_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two files with the same id"):
        manifest.discover(touch(tmp_path, "a\\b.jpg", "a%5Cb.jpg"))


def test_discover_undecodable_file_name_is_counted(tmp_path: Path) -> None:
    skipped: listing.Skipped = {}
    photos = manifest.discover(touch(tmp_path, "\udcff.jpg", "a.jpg"), skipped=skipped)
    assert photos["id"].to_pylist() == ["a"]
    assert skipped == {"--images": {"with a name that is not UTF-8": 1}}


def test_discover_single_photo_is_taken(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a.v1.JPG", "b.jpg", "c.txt")
    skipped: listing.Skipped = {}
    [row] = manifest.discover(f"{folder}/a.v1.JPG", skipped=skipped).to_pylist()
    assert skipped == {"--images": {}}
    assert (row["id"], row["image"]) == ("a.v1", f"{folder}/a.v1.JPG") and row["version"]
    with pytest.raises(InputError, match=r"c\.txt: it is a file; give the folder that contains it"):
        manifest.discover(f"{folder}/c.txt")


@pytest.mark.parametrize(
    "name", ["Screenshot 1.23.45\u202fPM", "写真\u3000一", "a\u00a0b", "👩\u200d🚀", "50% off", "Größe"]
)
def test_discover_unicode_file_name_is_kept(name: str, tmp_path: Path) -> None:
    assert manifest.discover(touch(tmp_path, f"{name}.png"))["id"].to_pylist() == [name]


def test_discover_undecodable_folder_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a path must not contain"):
        manifest.discover(touch(tmp_path / "caf\udce9", "a.jpg"))


def test_split_seed_1337_equals_the_keras_example(tmp_path: Path) -> None:
    """random.Random(1337).shuffle of 0..9 is [0, 3, 7, 2, 1, 6, 4, 5, 8, 9]. The last ones are the validation split."""
    rows = manifest.discover(touch(tmp_path, *(f"{i}.jpg" for i in range(10))))
    train, val = splits.split(rows, seed=1337, val_count=3)
    assert "".join(train["id"].to_pylist() + val["id"].to_pylist()) == SHUFFLED
    assert val.num_rows == 3
    other, _ = splits.split(rows, seed=1, val_count=3)
    assert other != train


SHUFFLED = "0372164589"


def test_sample_rows_are_evenly_spaced(tmp_path: Path) -> None:
    rows = manifest.discover(touch(tmp_path, *(f"{i}.jpg" for i in range(10))))
    assert manifest.sample(rows, 4)["id"].to_pylist() == ["0", "2", "5", "7"]
    assert manifest.sample(rows, 1)["id"].to_pylist() == ["0"]
    assert manifest.sample(rows, 10) == manifest.sample(rows, 99) == rows


def test_discover_several_chunks_rows_are_sorted_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CHUNK", 3)
    names = [f"{i % 3}/{i:02}.jpg" for i in range(20)]
    rows = manifest.discover(touch(tmp_path, *names))
    assert rows["image"].to_pylist() == sorted(f"{tmp_path}/{name}" for name in names)
    assert rows["id"].to_pylist() == sorted(name[:-4] for name in names)


def test_read_pairs_order_is_kept_and_unreadable_files_are_named(tmp_path: Path) -> None:
    rows = [{"id": str(n), "image": str(tmp_path / f"{n}.jpg"), "mask": str(tmp_path / f"{n}.png")} for n in range(4)]
    for row in rows:
        Path(row["image"]).write_text(f"photo {row['id']}")
        Path(row["mask"]).write_text(f"mask {row['id']}")
    Path(rows[1]["mask"]).unlink()
    Path(rows[2]["image"]).unlink()
    found = list(manifest.read_pairs(pa.Table.from_pylist(rows, manifest.SCHEMA)))
    assert [row for row, *_ in found] == rows
    assert found[0][1:] == (b"photo 0", b"mask 0", "") and found[3][1:] == (b"photo 3", b"mask 3", "")
    assert found[1][1:] == (b"", b"", f"{rows[1]['mask']}: cannot be read: No such file or directory")
    assert found[2][1:] == (b"", b"", f"{rows[2]['image']}: cannot be read: No such file or directory")


def test_match_unpaired_photos_and_masks_are_listed(tmp_path: Path) -> None:
    for name in ("i/a.jpg", "i/b.jpg", "m/b.png", "m/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    pairs, photos, masks = manifest.match(str(tmp_path / "i"), str(tmp_path / "m"))
    assert (pairs["id"].to_pylist(), photos["id"].to_pylist(), masks["id"].to_pylist()) == (["b"], ["a"], ["c"])
    assert pairs["mask"].to_pylist() == [str(tmp_path / "m" / "b.png")]
