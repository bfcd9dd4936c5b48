"""Data for training: pairs decoded, or a prepared set loaded, once on Ray."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petseg.config.prepare import ShardsConfig
from petseg.data import manifest, prepared, prepared_writer, splits
from petseg.data.classes import resolve_classes
from petseg.data.labels import LabelMap
from petseg.errors import InputError
from petseg.pipelines import decode
from petseg.pipelines.pair_rows import decode_rows
from petseg.storage import sharded_output
from petseg.training.rank_data import RankData

CPU = torch.device("cpu")
EVERYTHING, NOTHING = 1e9, 0.0


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestDecode:
    def test_decode_blocks_keep_the_manifest_order(
        self, drawn: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode, "BLOCK_BYTES", 5 * 32 * 48 * 4)
        rows = manifest.discover(*map(str, drawn))
        train, val = splits.split(rows, seed=3, val_count=7)
        decoded = decode.decode({"training": train, "validation": val}, (32, 48), LabelMap.parse("", 3))
        assert [part.block_rows for part in decoded] == [(5, 5, 5, 2), (5, 2)]
        for part, expected in zip(decoded, (train, val), strict=True):
            share = RankData(part, 0, 1, CPU, EVERYTHING)
            photos, masks = map(torch.cat, zip(*share.eval_batches(4), strict=True))
            for row, photo, mask in zip(expected.to_pylist(), photos, masks, strict=True):
                trimap = Image.open(row["mask"]).resize((48, 32), Image.Resampling.NEAREST)
                assert np.array_equal(mask.numpy() + 1, np.asarray(trimap)), row["id"]
                resized = Image.open(row["image"]).resize((48, 32), Image.Resampling.BILINEAR)
                difference = photo.permute(1, 2, 0).numpy().astype(int) - np.asarray(resized)
                assert np.abs(difference).mean() < 1.5, row["id"]

    def test_decode_all_pixels_ignored_is_refused(self, tmp_path: Path) -> None:
        for folder, value in (("images", 9), ("masks", 255)):
            (tmp_path / folder).mkdir()
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / folder / "a.png")
        rows = manifest.discover(f"{tmp_path}/images", f"{tmp_path}/masks")
        with pytest.raises(
            InputError, match=r"every pixel of all \d+ masks of the training split is ignored, such as in .*masks/a.png"
        ):
            decode.decode({"training": rows}, (16, 16), LabelMap.parse("", 3))
        [decoded] = decode.decode({"training": rows}, (16, 16), LabelMap.parse("0:0,255:1", 2))
        assert decoded.class_pixels == (0, 256)

    def test_decode_unusable_pairs_are_refused_by_name(self, drawn: tuple[Path, Path], tmp_path: Path) -> None:
        for index, name in enumerate(("a", "b", "c", "d")):
            for folder, source, ending in (("images", drawn[0], "jpg"), ("masks", drawn[1], "png")):
                (tmp_path / folder).mkdir(exist_ok=True)
                content = (source / f"pet_{index:04d}.{ending}").read_bytes()
                (tmp_path / folder / f"{name}.{ending}").write_bytes(content)
        (tmp_path / "images" / "a.jpg").write_bytes(b"text")
        Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "masks" / "b.png")
        rows = manifest.discover(f"{tmp_path}/images", f"{tmp_path}/masks")
        (tmp_path / "images" / "d.jpg").unlink()
        with pytest.raises(InputError) as caught:
            decode.decode({"training": rows}, (32, 32), LabelMap.parse("", 3))
        message = str(caught.value)
        assert message.startswith("3 pairs cannot be used: ")
        assert "images/a.jpg: not an image" in message
        assert "masks/b.png: its size 9 × 9 differs" in message
        assert "images/d.jpg: cannot be read: No such file" in message
        assert "\n" not in message


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestLoad:
    @pytest.fixture
    def dataset(self, drawn: tuple[Path, Path], tmp_path: Path) -> prepared.Prepared:
        """Prepared set of the generated pairs, 5 per file."""
        images, masks = map(str, drawn)
        config = ShardsConfig(images=images, masks=masks, output=f"{tmp_path}/set", image_size=(32, 48), shard_size=5)
        pairs, label_map = manifest.discover(images, masks), LabelMap.parse("", 3)
        target, done = prepared_writer.make_target(pairs, config, resolve_classes(config, config.masks)), {}
        for shard in range(target.num_shards):
            decoded = decode_rows(sharded_output.rows_of(pairs, shard, 5), (32, 48), label_map)
            done[shard] = prepared_writer.summarise(decoded, target)
            prepared_writer.write_shard(decoded, done[shard], shard, target)
        prepared_writer.finish(target, pairs, done)
        return prepared.open_set(config.output)

    def test_load_prepared_set_equals_decoding(
        self, dataset: prepared.Prepared, drawn: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode, "BLOCK_BYTES", 7 * 32 * 48 * 4)  # blocks do not align with the files
        pairs = manifest.discover(*map(str, drawn))
        train, val = splits.split(pairs, seed=3, val_count=7)
        from_files = decode.decode({"training": train, "validation": val}, (32, 48), LabelMap.parse("", 3))
        train, val = splits.split(dataset.manifest, seed=3, val_count=7)
        from_set = decode.load(dataset, {"training": train, "validation": val})
        for one, other in zip(from_files, from_set, strict=True):
            assert (one.block_rows, one.image_size, one.class_pixels) == (
                other.block_rows,
                other.image_size,
                other.class_pixels,
            )
            for block, loaded in zip(decode.ray.get(one.blocks), decode.ray.get(other.blocks), strict=True):
                assert block.select(["image", "mask"]) == loaded.select(["image", "mask"])
        for rank, budget in itertools.product(range(2), (EVERYTHING, NOTHING)):
            shares = [RankData(decoded, rank, 2, CPU, budget) for decoded in (from_files[0], from_set[0])]
            for epoch in (1, 2):
                batches = [list(share.train_batches(4, 5, epoch)) for share in shares]
                assert len(batches[0]) == 2
                for one, other in zip(*batches, strict=True):
                    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])

    def test_load_file_damaged_after_opening_is_refused_by_name(self, dataset: prepared.Prepared) -> None:
        file = Path(dataset.location) / dataset.settings.files[2]
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(InputError, match=rf"^{file}: cannot be read: .*; prepare the set again") as caught:
            decode.load(dataset, {"training": dataset.manifest})
        assert "\n" not in str(caught.value)

    def test_load_split_with_all_pixels_ignored_is_refused(self, tmp_path: Path, drawn: tuple[Path, Path]) -> None:
        for index, value in enumerate((255, 1)):
            for folder, content in (("images", 9), ("masks", value)):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(np.full((8, 8), content, np.uint8)).save(tmp_path / folder / f"{index}.png")
        config = ShardsConfig(
            images=f"{tmp_path}/images", masks=f"{tmp_path}/masks", output=f"{tmp_path}/set", image_size=(16, 16)
        )
        pairs, label_map = manifest.discover(config.images, config.masks), LabelMap.parse("", 3)
        target = prepared_writer.make_target(pairs, config, resolve_classes(config, config.masks))
        decoded = decode_rows(pairs, (16, 16), label_map)
        summary = prepared_writer.summarise(decoded, target)
        prepared_writer.write_shard(decoded, summary, 0, target)
        found = prepared_writer.finish(target, pairs, {0: summary})
        with pytest.raises(
            InputError,
            match=r"every pixel of all 1 masks of the training split is ignored.*0.png; prepare the set again",
        ):
            decode.load(found, {"training": found.manifest.slice(0, 1)})
