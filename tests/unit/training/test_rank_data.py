"""Batches of each rank, from blocks without Ray."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from petseg.errors import UnavailableError
from petseg.pipelines import datasets
from petseg.pipelines.decode import Decoded
from petseg.training import rank_data
from petseg.training.rank_data import Batch, RankData

SIZE = (2, 3)
CPU = torch.device("cpu")
EVERYTHING, NOTHING = 1e9, 0.0


@pytest.fixture
def blocks_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks stand for object references, so that no Ray is needed."""
    monkeypatch.setattr(ray, "get", lambda block: block)


def make_decoded(*rows: int) -> Decoded:
    """Return blocks with these numbers of rows. Every pixel of a row and its mask has the row's number."""
    numbers = iter(range(sum(rows)))
    blocks = []
    for count in rows:
        values = [next(numbers) for _ in range(count)]
        columns = {"image": [bytes([v]) * 18 for v in values], "mask": [bytes([v]) * 6 for v in values]}
        schema = pa.schema([("image", pa.binary(18)), ("mask", pa.binary(6))])
        blocks.append(pa.table(columns, schema=schema))
    return Decoded(blocks, tuple(rows), SIZE, (1, 1, 1))


def row_numbers(batch: Batch) -> list[int]:
    """Return the row numbers of a batch, after checking that photo and mask belong together."""
    photos, masks = batch
    assert photos.dtype == masks.dtype == torch.uint8
    assert photos.shape[1:] == (3, *SIZE) and masks.shape[1:] == SIZE
    assert (photos.flatten(1) == photos[:, :1, 0, 0]).all() and (masks == photos[:, 0]).all()
    return masks[:, 0, 0].tolist()


def epoch_rows(share: RankData, batch_size: int, epoch: int, seed: int = 5) -> list[list[int]]:
    return [row_numbers(batch) for batch in share.train_batches(batch_size, seed, epoch)]


pytestmark_share = pytest.mark.usefixtures("blocks_at_hand")


@pytestmark_share
@pytest.mark.parametrize("budget", [EVERYTHING, NOTHING], ids=["resident", "streamed"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_eval_batches_every_row_is_on_exactly_one_rank(world_size: int, budget: float) -> None:
    decoded = make_decoded(5, 5, 5, 2)
    seen = []
    for rank in range(world_size):
        batches = [row_numbers(b) for b in RankData(decoded, rank, world_size, CPU, budget).eval_batches(4)]
        assert all(len(batch) == 4 for batch in batches[:-1])
        seen += itertools.chain.from_iterable(batches)
    assert seen == list(range(17))


@pytestmark_share
def test_rank_data_block_with_storage_error_raises_it() -> None:
    def away() -> pa.Table:
        raise UnavailableError("s3://bucket/a: no answer")

    decoded = make_decoded(3, 3)
    decoded.blocks[1] = datasets.catch_unavailable(away)
    with pytest.raises(UnavailableError, match="s3://bucket/a: no answer"):
        RankData(decoded, 0, 1, CPU, EVERYTHING)


@pytestmark_share
def test_eval_batches_rank_without_rows_is_empty() -> None:
    shares = [RankData(make_decoded(2), rank, 3, CPU, budget) for rank in range(3) for budget in (EVERYTHING, NOTHING)]
    assert sum(len(list(share.eval_batches(4))) for share in shares) == 4


@pytestmark_share
@pytest.mark.parametrize("budget", [EVERYTHING, NOTHING], ids=["resident", "streamed"])
def test_train_batches_ranks_have_equal_steps_and_distinct_rows(budget: float) -> None:
    shares = [RankData(make_decoded(5, 5, 5, 2), rank, 3, CPU, budget) for rank in range(3)]
    epochs = [epoch_rows(share, 2, epoch=1) for share in shares]
    assert [list(map(len, batches)) for batches in epochs] == [[2, 2]] * 3  # the smallest rank has 5 rows
    rows = [row for batches in epochs for batch in batches for row in batch]
    assert len(set(rows)) == len(rows)


@pytestmark_share
def test_train_batches_order_depends_only_on_epoch_and_seed() -> None:
    decoded = make_decoded(8, 8, 8)
    share, again = (RankData(decoded, 0, 1, CPU, EVERYTHING) for _ in range(2))
    first = epoch_rows(share, 4, epoch=1)
    assert first == epoch_rows(again, 4, epoch=1)
    others = [epoch_rows(share, 4, epoch=2), epoch_rows(share, 4, epoch=1, seed=6)]
    assert all(first != other for other in others) and others[0] != others[1]
    assert sorted(row for batch in first for row in batch) == list(range(24))


@pytestmark_share
def test_train_batches_skipped_rows_differ_by_epoch() -> None:
    share = RankData(make_decoded(8, 3), 0, 1, CPU, EVERYTHING)
    left_out = [set(range(11)) - {r for batch in epoch_rows(share, 4, e) for r in batch} for e in range(1, 9)]
    assert all(len(rows) == 3 for rows in left_out)
    assert len(set.union(*left_out)) > 6


@pytestmark_share
@pytest.mark.parametrize("window_rows", [1, 4, 10, 100])
def test_train_batches_streamed_order_equals_resident(window_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_data, "WINDOW_BYTES", window_rows * 24)
    decoded = make_decoded(3, 3, 3, 3, 3, 3, 2)
    for rank in range(2):
        resident, streamed = (RankData(decoded, rank, 2, CPU, budget) for budget in (EVERYTHING, NOTHING))
        for epoch in (1, 2):
            assert epoch_rows(resident, 4, epoch) == epoch_rows(streamed, 4, epoch)
            batches = [list(map(row_numbers, share.eval_batches(4))) for share in (resident, streamed)]
            assert batches[0] == batches[1]


@pytestmark_share
def test_train_batches_streaming_holds_two_windows_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_data, "WINDOW_BYTES", 6 * 24)
    loaded = []
    share = RankData(make_decoded(*[3] * 20), 0, 1, CPU, NOTHING)
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
def test_train_batches_skip_and_fixed_batches_keep_the_order(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_data, "WINDOW_BYTES", 9 * 24)  # nine rows
    share = RankData(make_decoded(5, 5, 5, 3), 0, 1, CPU, budget)

    def batches(epoch: int, skip: int = 0, fixed_batches: bool = False) -> list[list[int]]:
        found = share.train_batches(4, 1, epoch, skip=skip, fixed_batches=fixed_batches)
        return [row_numbers(batch) for batch in found]

    whole, kept = batches(1), batches(1, fixed_batches=True)
    assert [batches(1, skip) for skip in range(5)] == [whole[skip:] for skip in range(5)]
    assert [batches(1, skip, True) for skip in range(5)] == [kept[skip:] for skip in range(5)]
    in_order = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert sorted(kept) == in_order and len({str(batches(epoch, fixed_batches=True)) for epoch in range(9)}) > 3
    assert sorted(whole) != in_order
