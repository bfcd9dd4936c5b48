import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from petseg.data import manifest
from petseg.data.classes import read_classes, write_classes
from petseg.data.oxford_pets import CLASSES
from petseg.data.photo_table import is_table, place_to_share, read_table
from petseg.errors import InputError


def write(folder: Path, text: str, name: str = "photos.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_read_table_keeps_order_and_makes_locations_absolute(tmp_path: Path) -> None:
    text = f'id,score,uri\nb,1,photos/b.jpg\n"a, 1",,{tmp_path}/x/a.jpg\nc/d,2,s3://bucket/c d.png\ne,,file:///y/e%20f.jpg\n'
    found = read_table(write(tmp_path, text), "--images").to_pylist()
    assert found == [
        {"id": "b", "image": f"{tmp_path}/photos/b.jpg"},
        {"id": "a, 1", "image": f"{tmp_path}/x/a.jpg"},
        {"id": "c/d", "image": "s3://bucket/c d.png"},
        {"id": "e", "image": "/y/e f.jpg"},
    ]


def test_read_table_parquet_of_a_run_is_taken_for_photos_and_masks(tmp_path: Path) -> None:
    columns = {
        "id": ["b", "a"],
        "image": ["/p/b.jpg", "/p/a.jpg"],
        "mask": ["/m/b.png", "/m/a.png"],
        "split": ["val"] * 2,
    }
    location = str(tmp_path / "manifest.parquet")
    pq.write_table(pa.table(columns), location)
    pairs = manifest.discover(location, location)
    assert pairs.to_pylist() == [
        {"id": "b", "image": "/p/b.jpg", "mask": "/m/b.png"},
        {"id": "a", "image": "/p/a.jpg", "mask": "/m/a.png"},
    ]
    pq.write_table(pa.table({"id": [7], "uri": pa.array(["x.jpg"], pa.large_string())}), location)
    assert read_table(location, "--images").to_pylist() == [{"id": "7", "image": f"{tmp_path}/x.jpg"}]


def test_discover_table_of_photos_beside_a_folder_of_masks(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        Image.new("L", (4, 4)).save(tmp_path / "masks" / f"{name}.png")
    table = write(tmp_path, "﻿id,uri\r\nb,b.jpg\r\na,a.jpg\r\n", "photos.CSV")
    pairs = manifest.discover(table, str(tmp_path / "masks"))
    assert pairs["id"].to_pylist() == ["b", "a"]
    assert pairs["mask"].to_pylist() == [f"{tmp_path}/masks/b.png", f"{tmp_path}/masks/a.png"]


def test_read_classes_beside_a_table_of_masks(tmp_path: Path) -> None:
    table = write(tmp_path, "id,uri\na,a.png\n")
    write_classes(str(tmp_path), CLASSES)
    assert read_classes(table) == CLASSES


def test_place_to_share_is_where_the_files_are(tmp_path: Path) -> None:
    table = write(tmp_path, "id,uri\na,s3://bucket/a.jpg\n")
    assert place_to_share(table, read_table(table, "--images")["image"]) == "s3://bucket/a.jpg"
    table = write(tmp_path, f"id,uri\na,s3://bucket/a.jpg\nb,{tmp_path}/missing.jpg\n")
    assert place_to_share(table, read_table(table, "--images")["image"]) == str(tmp_path)
    assert place_to_share(table, pa.chunked_array([["/nowhere/a.jpg"]])) == table
    assert place_to_share(str(tmp_path), pa.chunked_array([["/x"]])) == str(tmp_path)


def test_is_table_only_if_it_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").mkdir()
    assert not is_table(str(tmp_path / "photos.csv")) and not is_table(str(tmp_path / "none.parquet"))
    assert is_table(write(tmp_path, "", "list.CSV"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its columns are ; id and uri are needed once, with a comma between"),
        ("id;uri\na;b\n", "its columns are 'id;uri'; id and uri are needed once"),
        ("id,mask\na,b\n", "its columns are 'id', 'mask'; id and uri are needed once"),
        ("id,uri,uri\na,b,c\n", "id and uri are needed once"),
        ("id,uri\na,s3://[x/y.jpg\n", "row 1: Invalid IPv6 URL"),
        ("id,uri\n", "it has no rows; give a table with a row for each file"),
        ("id,uri\na,x.jpg\n,y.jpg\n", "row 2 has no id; fill it, or remove the row"),
        ("id,uri\na,\n", "row 1 has no uri; fill it"),
        ("id,uri\na,x\nb,y\na,z\nb,w\n", "the id a is in several rows (also b); an id must be unique"),
        ("id,uri\na,x,y\n", "not a table that can be read: .*Expected 2 columns, got 3"),
        (
            "id,uri\na,s3://key:secret@bucket/x\n",
            r"row 1: s3://…: scheme://bucket/prefix is expected, without credentials",
        ),
        ("id,uri\na,x\na.png/b,y\n", "a folder in this path has the same name as an output of a"),
    ],
)
def test_read_table_invalid_content_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    location = write(tmp_path, text)
    with pytest.raises(
        InputError, match=message if ".*" in message or r"…" in message else re.escape(message)
    ) as caught:
        read_table(location, "--images")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_read_table_with_line_ends_of_old_macs(tmp_path: Path) -> None:
    location = tmp_path / "photos.csv"
    location.write_bytes(b"id,uri\ra,x.jpg\rb,y.jpg\r")
    assert read_table(str(location), "--images")["id"].to_pylist() == ["a", "b"]


def test_read_table_escapes_ids_that_would_leave_the_output(tmp_path: Path) -> None:
    found = read_table(write(tmp_path, "id,uri\n../a,x.jpg\n/b,y.jpg\n"), "--images")
    assert found["id"].to_pylist() == ["%2E%2E/a", "%2Fb"]


def test_read_table_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    location = write(tmp_path, "id,uri\n", "photos.parquet")
    with pytest.raises(InputError, match=r"--images .*photos.parquet: not a table that can be read"):
        read_table(location, "--images")
