"""Decoding on Ray once, and the shares of the ranks: these need no Ray, only blocks."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from PIL import Image

from petseg.cluster import connect
from petseg.config.prepare import ShardsConfig
from petseg.data import manifest, prepared, prepared_writer, splits
from petseg.data.labels import LabelMap
from petseg.errors import InputError, UnavailableError
from petseg.pipelines import decode
from petseg.pipelines.decode import Decoded
from petseg.training import rank_data as share_module
from petseg.training.rank_data import Batch, Share

SIZE = (2, 3)
CPU = torch.device("cpu")
EVERYTHING, NOTHING = 1e9, 0.0


@pytest.fixture
def blocks_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks stand for references to them."""
    monkeypatch.setattr(ray, "get", lambda block: block)


def make_decoded(*rows: int) -> Decoded:
    """Blocks of so many rows each; every pixel of a row, and of its mask, has the row's number."""
    numbers = iter(range(sum(rows)))
    blocks = []
    for count in rows:
        values = [next(numbers) for _ in range(count)]
        columns = {"image": [bytes([v]) * 18 for v in values], "mask": [bytes([v]) * 6 for v in values]}
        schema = pa.schema([("image", pa.binary(18)), ("mask", pa.binary(6))])
        blocks.append(pa.table(columns, schema=schema))
    return Decoded(blocks, tuple(rows), SIZE, (1, 1, 1))


def numbers(batch: Batch) -> list[int]:
    """The rows of a batch, once photo and mask are seen to belong together."""
    photos, masks = batch
    assert photos.dtype == masks.dtype == torch.uint8
    assert photos.shape[1:] == (3, *SIZE) and masks.shape[1:] == SIZE
    assert (photos.flatten(1) == photos[:, :1, 0, 0]).all() and (masks == photos[:, 0]).all()
    return masks[:, 0, 0].tolist()


def epoch_rows(share: Share, batch_size: int, epoch: int, seed: int = 5) -> list[list[int]]:
    return [numbers(batch) for batch in share.train_batches(batch_size, seed, epoch)]


pytestmark_share = pytest.mark.usefixtures("blocks_at_hand")


@pytestmark_share
@pytest.mark.parametrize("budget", [EVERYTHING, NOTHING], ids=["resident", "streamed"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_row_is_validated_once_on_one_rank(world_size: int, budget: float) -> None:
    decoded = make_decoded(5, 5, 5, 2)
    seen = []
    for rank in range(world_size):
        batches = [numbers(b) for b in Share(decoded, rank, world_size, CPU, budget).eval_batches(4)]
        assert all(len(batch) == 4 for batch in batches[:-1])
        seen += itertools.chain.from_iterable(batches)
    assert seen == list(range(17))


@pytestmark_share
def test_a_block_that_was_made_anew_while_storage_was_away_is_known() -> None:
    def away() -> pa.Table:
        raise UnavailableError("s3://bucket/a: no answer")

    decoded = make_decoded(3, 3)
    decoded.blocks[1] = connect.or_refusal(away)
    with pytest.raises(UnavailableError, match="s3://bucket/a: no answer"):
        Share(decoded, 0, 1, CPU, EVERYTHING)


@pytestmark_share
def test_a_rank_without_rows_validates_none() -> None:
    shares = [Share(make_decoded(2), rank, 3, CPU, budget) for rank in range(3) for budget in (EVERYTHING, NOTHING)]
    assert sum(len(list(share.eval_batches(4))) for share in shares) == 4


@pytestmark_share
@pytest.mark.parametrize("budget", [EVERYTHING, NOTHING], ids=["resident", "streamed"])
def test_ranks_take_equal_steps_over_different_rows(budget: float) -> None:
    shares = [Share(make_decoded(5, 5, 5, 2), rank, 3, CPU, budget) for rank in range(3)]
    epochs = [epoch_rows(share, 2, epoch=1) for share in shares]
    assert [list(map(len, batches)) for batches in epochs] == [[2, 2]] * 3  # the smallest share has 5 rows
    rows = [row for batches in epochs for batch in batches for row in batch]
    assert len(set(rows)) == len(rows)


@pytestmark_share
def test_the_order_differs_by_epoch_rank_and_seed_and_is_otherwise_the_same() -> None:
    decoded = make_decoded(8, 8, 8)
    share, again = (Share(decoded, 0, 1, CPU, EVERYTHING) for _ in range(2))
    first = epoch_rows(share, 4, epoch=1)
    assert first == epoch_rows(again, 4, epoch=1)
    others = [epoch_rows(share, 4, epoch=2), epoch_rows(share, 4, epoch=1, seed=6)]
    assert all(first != other for other in others) and others[0] != others[1]
    assert sorted(row for batch in first for row in batch) == list(range(24))


@pytestmark_share
def test_the_rows_left_out_differ_by_epoch() -> None:
    share = Share(make_decoded(8, 3), 0, 1, CPU, EVERYTHING)
    left_out = [set(range(11)) - {r for batch in epoch_rows(share, 4, e) for r in batch} for e in range(1, 9)]
    assert all(len(rows) == 3 for rows in left_out)
    assert len(set.union(*left_out)) > 6


@pytestmark_share
@pytest.mark.parametrize("window_rows", [1, 4, 10, 100])
def test_memory_does_not_change_the_order(window_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_module, "WINDOW_BYTES", window_rows * 24)
    decoded = make_decoded(3, 3, 3, 3, 3, 3, 2)
    for rank in range(2):
        resident, streamed = (Share(decoded, rank, 2, CPU, budget) for budget in (EVERYTHING, NOTHING))
        for epoch in (1, 2):
            assert epoch_rows(resident, 4, epoch) == epoch_rows(streamed, 4, epoch)
            batches = [list(map(numbers, share.eval_batches(4))) for share in (resident, streamed)]
            assert batches[0] == batches[1]


@pytestmark_share
def test_streaming_holds_two_windows_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_module, "WINDOW_BYTES", 6 * 24)
    loaded = []
    share = Share(make_decoded(*[3] * 20), 0, 1, CPU, NOTHING)
    load = share._load

    def counted(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        loaded.append(len(rows))
        return load(rows)

    monkeypatch.setattr(share, "_load", counted)
    for number, _ in enumerate(share.train_batches(6, 5, 1)):
        assert sum(loaded) <= (number + 2) * 6
    assert max(loaded) <= 6 and sum(loaded) == 60


@pytestmark_share
@pytest.mark.parametrize("budget", [EVERYTHING, NOTHING], ids=["resident", "streamed"])
def test_batches_can_be_skipped_and_kept(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_module, "WINDOW_BYTES", 9 * 24)  # nine rows
    share = Share(make_decoded(5, 5, 5, 3), 0, 1, CPU, budget)

    def batches(epoch: int, skip: int = 0, keep_batches: bool = False) -> list[list[int]]:
        found = share.train_batches(4, 1, epoch, skip=skip, keep_batches=keep_batches)
        return [numbers(batch) for batch in found]

    whole, kept = batches(1), batches(1, keep_batches=True)
    assert [batches(1, skip) for skip in range(5)] == [whole[skip:] for skip in range(5)]
    assert [batches(1, skip, True) for skip in range(5)] == [kept[skip:] for skip in range(5)]
    in_order = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert sorted(kept) == in_order and len({str(batches(epoch, keep_batches=True)) for epoch in range(9)}) > 3
    assert sorted(whole) != in_order


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestDecode:
    def test_blocks_hold_the_manifest_s_rows_in_its_order(
        self, drawn: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode, "BLOCK_BYTES", 5 * 32 * 48 * 4)
        rows = manifest.discover(*map(str, drawn))
        train, val = splits.split(rows, seed=3, val_count=7)
        decoded = decode.decode([train, val], (32, 48), LabelMap.parse("", 3))
        assert [part.rows for part in decoded] == [(5, 5, 5, 2), (5, 2)]
        for part, expected in zip(decoded, (train, val), strict=True):
            share = Share(part, 0, 1, CPU, EVERYTHING)
            photos, masks = map(torch.cat, zip(*share.eval_batches(4), strict=True))
            for row, photo, mask in zip(expected.to_pylist(), photos, masks, strict=True):
                trimap = Image.open(row["mask"]).resize((48, 32), Image.Resampling.NEAREST)
                assert np.array_equal(mask.numpy() + 1, np.asarray(trimap)), row["id"]
                resized = Image.open(row["image"]).resize((48, 32), Image.Resampling.BILINEAR)
                difference = photo.permute(1, 2, 0).numpy().astype(int) - np.asarray(resized)
                assert np.abs(difference).mean() < 1.5, row["id"]

    def test_masks_that_say_nothing_are_refused_and_missing_classes_counted(self, tmp_path: Path) -> None:
        for folder, value in (("images", 9), ("masks", 255)):
            (tmp_path / folder).mkdir()
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / folder / "a.png")
        rows = manifest.discover(f"{tmp_path}/images", f"{tmp_path}/masks")
        with pytest.raises(InputError, match=r"every pixel is ignored in .*masks/a.png and all the others"):
            decode.decode([rows], (16, 16), LabelMap.parse("", 3))
        [decoded] = decode.decode([rows], (16, 16), LabelMap.parse("0:0,255:1", 2))
        assert decoded.class_pixels == (0, 256)

    def test_bad_pairs_are_refused_by_name(self, drawn: tuple[Path, Path], tmp_path: Path) -> None:
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
            decode.decode([rows], (32, 32), LabelMap.parse("", 3))
        message = str(caught.value)
        assert message.startswith("pairs that cannot be used (3): ")
        assert "images/a.jpg: not an image" in message
        assert "masks/b.png: its size 9 × 9 differs" in message
        assert "images/d.jpg: cannot be read: No such file" in message
        assert "\n" not in message


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
class TestLoad:
    @pytest.fixture
    def dataset(self, drawn: tuple[Path, Path], tmp_path: Path) -> prepared.Prepared:
        """A prepared set of the drawn pairs in files of 5."""
        images, masks = map(str, drawn)
        config = ShardsConfig(images=images, masks=masks, output=f"{tmp_path}/set", image_size=(32, 48), shard_size=5)
        pairs, label_map = manifest.discover(images, masks), LabelMap.parse("", 3)
        target, done = prepared_writer.make_target(pairs, config, label_map), {}
        for shard in range(target.num_shards):
            decoded = decode.decode_rows(prepared_writer.rows_of(pairs, shard, 5), (32, 48), label_map)
            done[shard] = prepared_writer.summarise(decoded, target)
            prepared_writer.write_shard(decoded, done[shard], shard, target)
        prepared_writer.finish(target, pairs, done)
        return prepared.open_set(config.output)

    def test_it_gives_what_decoding_gives(
        self, dataset: prepared.Prepared, drawn: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode, "BLOCK_BYTES", 7 * 32 * 48 * 4)  # blocks that cut across the files
        pairs = manifest.discover(*map(str, drawn))
        from_files = decode.decode(list(splits.split(pairs, seed=3, val_count=7)), (32, 48), LabelMap.parse("", 3))
        from_set = decode.load(dataset, list(splits.split(dataset.manifest, seed=3, val_count=7)))
        for one, other in zip(from_files, from_set, strict=True):
            assert (one.rows, one.image_size, one.class_pixels) == (other.rows, other.image_size, other.class_pixels)
            for block, loaded in zip(decode.ray.get(one.blocks), decode.ray.get(other.blocks), strict=True):
                assert block.select(["image", "mask"]) == loaded.select(["image", "mask"])
        for rank, budget in itertools.product(range(2), (EVERYTHING, NOTHING)):
            shares = [Share(decoded, rank, 2, CPU, budget) for decoded in (from_files[0], from_set[0])]
            for epoch in (1, 2):
                batches = [list(share.train_batches(4, 5, epoch)) for share in shares]
                assert len(batches[0]) == 2
                for one, other in zip(*batches, strict=True):
                    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])

    def test_a_file_that_breaks_meanwhile_is_refused_by_name(self, dataset: prepared.Prepared) -> None:
        file = Path(dataset.location) / dataset.settings.files[2]
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(InputError, match=rf"^{file}: cannot be read: .*; prepare the set again") as caught:
            decode.load(dataset, [dataset.manifest])
        assert "\n" not in str(caught.value)

    def test_a_part_of_it_that_says_nothing_is_refused(self, tmp_path: Path, drawn: tuple[Path, Path]) -> None:
        for index, value in enumerate((255, 1)):
            for folder, content in (("images", 9), ("masks", value)):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(np.full((8, 8), content, np.uint8)).save(tmp_path / folder / f"{index}.png")
        config = ShardsConfig(
            images=f"{tmp_path}/images", masks=f"{tmp_path}/masks", output=f"{tmp_path}/set", image_size=(16, 16)
        )
        pairs, label_map = manifest.discover(config.images, config.masks), LabelMap.parse("", 3)
        target = prepared_writer.make_target(pairs, config, label_map)
        decoded = decode.decode_rows(pairs, (16, 16), label_map)
        summary = prepared_writer.summarise(decoded, target)
        prepared_writer.write_shard(decoded, summary, 0, target)
        found = prepared_writer.finish(target, pairs, {0: summary})
        with pytest.raises(
            InputError, match=r"every pixel is ignored in .*masks/0.png and all the others; prepare them"
        ):
            decode.load(found, [found.manifest.slice(0, 1)])
