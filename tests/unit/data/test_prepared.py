"""Writing and reading a prepared set without Ray: its content, interrupted writing, and damaged files."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image

from petseg.config.prepare import ShardsConfig
from petseg.data import manifest, prepared, prepared_writer
from petseg.data.classes import resolve_classes
from petseg.data.labels import LabelMap
from petseg.data.pairs import decode_pair
from petseg.data.prepared import Prepared, Target
from petseg.errors import InputError
from petseg.pipelines.pair_rows import decode_rows
from petseg.storage import sharded_output

SIZE = (16, 24)
LABELS = LabelMap.parse("", 3)
BAD = 6


@pytest.fixture(scope="module")
def source(drawn: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images/ and masks/ of 10 pairs. One photo is invalid."""
    folder = tmp_path_factory.mktemp("source")
    for name, of_drawn in zip(("images", "masks"), drawn, strict=True):
        (folder / name).mkdir()
        for path in sorted(of_drawn.glob("pet_*"))[:10]:
            shutil.copy(path, folder / name)
    (folder / "images" / f"pet_{BAD:04d}.jpg").write_bytes(b"text")
    return folder


def begin(source: Path, output: Path, **changes: object) -> tuple[pa.Table, Target]:
    config = ShardsConfig(
        images=str(source / "images"), masks=str(source / "masks"), output=str(output), image_size=SIZE, shard_size=3
    )
    pairs = manifest.discover(config.images, config.masks)
    config = dataclasses.replace(config, **changes)
    return pairs, prepared_writer.make_target(pairs, config, resolve_classes(config, config.masks))


def do_shards(pairs: pa.Table, target: Target, *shards: int) -> dict[int, prepared_writer.Summary]:
    done = {}
    for shard in shards:
        rows = sharded_output.rows_of(pairs, shard, target.settings.shard_size)
        decoded = decode_rows(rows, target.settings.image_size, LABELS)
        done[shard] = prepared_writer.summarise(decoded, target)
        prepared_writer.write_shard(decoded, done[shard], shard, target)
    return done


def make(source: Path, output: Path, **changes: object) -> Prepared:
    pairs, target = begin(source, output, **changes)
    return prepared_writer.finish(target, pairs, do_shards(pairs, target, *range(target.num_shards)))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A finished set of 9 pairs in 4 files. Do not change it."""
    return make(source, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Prepared, tmp_path: Path) -> Path:
    """Copy of the set that a test may change."""
    return Path(shutil.copytree(whole.location, tmp_path / "copy"))


def tree(folder: str | Path) -> dict[str, bytes]:
    """Return {name: content} of the files except `config.json`, which names the folder."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "config.json"}


def test_finish_files_settings_and_rows_match_the_source(whole: Prepared, source: Path) -> None:
    names = [f"part-0000{shard}-of-00004.parquet" for shard in range(4)]
    assert sorted(tree(whole.location)) == ["_manifest.arrow", "dataset.json", *names]
    settings = json.loads((Path(whole.location) / "dataset.json").read_text())
    assert settings["rows"] == 9 and settings["resize"] == "antialias" and settings["image_size"] == [16, 24]
    assert (settings["files"], settings["file_rows"]) == (names, [3, 3, 2, 1])
    assert settings["left_out"][0].startswith(f"{source}/images/pet_0006.jpg: not an image that can be read")
    assert sum(settings["class_pixels"]) == 9 * 16 * 24

    rows = pd.concat(pd.read_parquet(Path(whole.location) / name) for name in names)
    assert list(rows.columns) == ["id", "image", "mask", "height", "width"]
    assert list(rows["id"]) == whole.manifest["id"].to_pylist() == [f"pet_{i:04d}" for i in range(10) if i != BAD]
    for row in rows.to_dict("records"):
        photo, mask = (
            source / folder / f"{row['id']}{ending}" for folder, ending in (("images", ".jpg"), ("masks", ".png"))
        )
        pair = decode_pair(photo.read_bytes(), mask.read_bytes(), SIZE, LABELS, 10**6)
        assert (row["image"], row["mask"]) == (pair.photo.pixels.tobytes(), pair.class_ids.tobytes())
        with Image.open(photo) as original:
            assert (row["width"], row["height"]) == original.size
    footer = pq.read_metadata(Path(whole.location) / names[0])
    assert footer.num_row_groups == 3 and footer.row_group(0).column(1).compression == "ZSTD"


def test_docs_example_reads_a_prepared_set(whole: Prepared) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    names: dict[str, np.ndarray] = {}
    here = example.replace("/data/pets-160", whole.location).replace("-of-00023", "-of-00004")
    exec(here, names)  # noqa: S102 - ours
    assert (names["photo"].shape, names["mask"].shape) == ((*SIZE, 3), SIZE)
    assert set(np.unique(names["mask"])) <= {0, 1, 2}


def test_open_set_copied_folder_has_the_same_settings_and_manifest(whole: Prepared, copy: Path, source: Path) -> None:
    for location in (whole.location, str(copy)):
        found = prepared.open_set(location)
        assert (found.location, found.settings, found.manifest) == (location, whole.settings, whole.manifest)
    discovered = manifest.discover(f"{source}/images", f"{source}/masks")
    assert whole.manifest == discovered.take([i for i in range(10) if i != BAD])
    assert whole.manifest.schema == discovered.schema
    _, target = begin(source, copy)
    finished = prepared_writer.find_finished(target)
    assert finished is not None and finished.settings == whole.settings


def test_write_shard_same_pairs_same_bytes(whole: Prepared, source: Path, tmp_path: Path) -> None:
    make(source, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(whole.location)


@pytest.mark.parametrize("begun", [(), (2,), (0, 3), (0, 1, 2, 3)], ids=str)
def test_find_done_interrupted_set_finishes_with_the_same_bytes(
    begun: tuple[int, ...], whole: Prepared, source: Path, tmp_path: Path
) -> None:
    pairs, target = begin(source, tmp_path)
    do_shards(pairs, target, *begun)
    (tmp_path / ".petseg-tmp-of-a-kill").write_bytes(b"half")
    assert prepared_writer.find_finished(target) is None
    done = prepared_writer.find_done(target)
    assert sorted(done) == list(begun)
    done |= do_shards(pairs, target, *set(range(4)) - set(begun))
    found = prepared_writer.finish(target, pairs, done)
    assert found.settings == whole.settings
    assert tree(tmp_path) == tree(whole.location)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (32, 24)}, r"image_size \(was \(16, 24\), now \(32, 24\)\)"),
        ({"shard_size": 4}, r"shard_size \(was 3, now 4\)"),
        ({"num_classes": 4}, r"class_names \(was .*, palette \(was"),
    ],
)
def test_find_finished_other_settings_in_the_folder_are_refused(
    changes: dict[str, object], message: str, copy: Path, source: Path
) -> None:
    _, target = begin(source, copy, **changes)
    with pytest.raises(
        InputError, match=rf"--output {copy}: it holds a set with other settings: .*{message}.*; choose"
    ):
        prepared_writer.find_finished(target)
    (copy / "dataset.json").unlink()
    assert prepared_writer.find_finished(target) is None
    with pytest.raises(InputError, match=rf"--output {copy}: its part-0000\d-of-00004.parquet is of other pairs or"):
        prepared_writer.find_done(target)


def test_find_finished_other_pairs_are_refused(copy: Path, source: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    for path in other.glob("*/pet_0001.*"):
        path.rename(path.with_stem("pet_0100"))
    _, target = begin(other, copy)
    with pytest.raises(InputError, match=r"other settings: images .* source_sha256 "):
        prepared_writer.find_finished(target)


def test_finish_no_labelled_pixel_is_refused(tmp_path: Path) -> None:
    for folder, value in (("images", 9), ("masks", 255)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / folder / "a.png")
    with pytest.raises(InputError, match=r"--masks .*/masks: every pixel is ignored, or no pair can be used; see"):
        make(tmp_path, tmp_path / "set")
    (tmp_path / "masks" / "a.png").write_bytes(b"text")
    with pytest.raises(InputError, match="or no pair can be used"):
        make(tmp_path, tmp_path / "other")
    assert not list(tmp_path.glob("*/dataset.json"))


def edit(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def shorten(folder: Path) -> None:
    file = folder / "part-00001-of-00004.parquet"
    file.write_bytes(file.read_bytes()[:-100])


def replace_rows(folder: Path) -> None:
    file = folder / "part-00001-of-00004.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.slice(1), file, row_group_size=1)


def replace_columns(folder: Path) -> None:
    file = folder / "part-00001-of-00004.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.drop_columns("mask"), file, row_group_size=1)


def swap(folder: Path) -> None:
    one, other = folder / "part-00000-of-00004.parquet", folder / "part-00001-of-00004.parquet"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


MANIFEST, PART_1 = "_manifest.arrow", "part-00001-of-00004.parquet"
SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "dataset.json").unlink(), r": no dataset.json in it; `petseg prepare shards`"),
    (lambda folder: (folder / "dataset.json").write_text("{"), r"/dataset.json: not JSON"),
    (edit(depth=3), r"/dataset.json: unknown setting depth"),
    (edit(rows="nine"), r"/dataset.json: rows: 'nine' is not a valid value"),
    (edit(rows=8), r"/dataset.json: its numbers of rows do not agree; was it edited\?"),
    (edit(rows=0, files=[], file_rows=[]), r"/dataset.json: it says 0 rows of 9; was it edited\?"),
    (edit(format=0), r"/dataset.json: made by another version"),
    (edit(format=1), r"/dataset.json: made by another version"),  # it cut 16 bits to the upper 8
    (edit(format=2, masks_upright=None), r"/dataset.json: made by another version"),  # it had no --masks-upright
    (edit(resize="other"), r"/dataset.json: resize: 'other' is not a valid value"),
    (edit(file_rows=[3, 3, 1, 2]), r"/part-00002-of-00004.parquet: it has 2 rows, not 1; prepare the set again"),
    (edit(files=["/etc/passwd", "b", "c", "d"]), r"/dataset.json: it names a file '/etc/passwd'; was it edited"),
    (edit(image_size=[24, 16]), r"/part-00000-of-00004.parquet: not written for this dataset.json; was that edited"),
    (edit(class_names=["a", "b", "c"]), r"/part-00000-of-00004.parquet: not written for this dataset.json"),
    (lambda folder: (folder / PART_1).unlink(), rf"/{PART_1}: cannot be read: .*; prepare the set again, in another"),
    (shorten, rf"/{PART_1}: cannot be read: "),
    (replace_rows, rf"/{PART_1}: it has 2 rows, not 3"),
    (replace_columns, rf"/{PART_1}: its columns are not those of a prepared set"),
    (swap, r"/part-00000-of-00004.parquet: not written for this dataset.json; was that edited, or the file replaced"),
    (lambda folder: (folder / MANIFEST).unlink(), rf"/{MANIFEST}: cannot be read: No such file"),
    (lambda folder: (folder / MANIFEST).write_bytes(b""), rf"/{MANIFEST}: not the one that .*dataset.json was written"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=range(len(SPOILT)))
def test_open_set_damaged_set_is_refused_by_file_name(
    spoil: Callable[[Path], object], message: str, copy: Path
) -> None:
    spoil(copy)
    with pytest.raises(InputError, match=f"^{re.escape(str(copy))}{message}") as caught:
        prepared.open_set(str(copy))
    assert "\n" not in str(caught.value)


def test_read_rows_any_order_equals_decoding(whole: Prepared) -> None:
    for order in ([8, 0, 3, 7, 6, 1], [5], list(range(9)), []):
        rows = whole.manifest.take(pa.array(order, pa.int64()))
        read = prepared.read_rows(prepared.locate(whole, rows), SIZE)
        assert read.column_names == ["image", "mask", "error"] and read["error"].null_count == len(order)
        expected = decode_rows(rows, SIZE, LABELS)
        assert read == expected.select(["image", "mask", "error"])


def test_read_rows_corrupt_file_error_is_in_each_of_its_rows(copy: Path) -> None:
    found = prepared.open_set(str(copy))
    file = copy / PART_1
    content = bytearray(file.read_bytes())
    offset = pq.read_metadata(file).row_group(0).column(1).data_page_offset
    content[offset + 100] ^= 1  # in the pixels, which only a checksum detects
    file.write_bytes(content)
    read = prepared.read_rows(prepared.locate(found, found.manifest), SIZE)
    assert read["image"].null_count == 9
    assert {error.split(": ")[0] for error in read["error"].to_pylist()} == {str(file)}
    assert "checksum" in read["error"][0].as_py()
