from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from petseg.storage import sharded_output
from petseg.storage.sharded_output import ShardedOutput


@dataclass(frozen=True)
class Target(ShardedOutput):
    job: str
    mark_key: ClassVar[bytes] = b"test.job"

    def mark(self, shard: int) -> bytes:
        return f"{self.job} {shard}".encode()


ROWS = pa.table({"id": ["a", "b", "c"]})


def test_write_shard_summary_is_read_back_only_with_its_mark(tmp_path: Path) -> None:
    target = Target(str(tmp_path), 2, "first")
    target.write_shard(1, ROWS, [3, {"b": "broken"}], compression="zstd")
    location = target.location(1)
    assert location == str(tmp_path / "part-00001-of-00002.parquet")
    assert pq.read_table(location).to_pydict() == ROWS.to_pydict()
    [footer] = sharded_output.read_footers([location])
    assert not isinstance(footer, Exception) and footer.num_rows == 3
    assert target.summary(1, footer) == [3, {"b": "broken"}]
    assert target.summary(0, footer) is None  # of another shard
    assert Target(str(tmp_path), 2, "second").summary(1, footer) is None  # of another job


def test_read_footers_missing_broken_and_foreign_files_keep_the_order(tmp_path: Path) -> None:
    target = Target(str(tmp_path), 3, "first")
    (tmp_path / target.name(0)).write_bytes(b"PAR1 broken")
    pq.write_table(ROWS, target.location(1))
    broken, foreign, missing = sharded_output.read_footers(map(target.location, range(3)))
    assert isinstance(broken, pa.ArrowInvalid)
    assert not isinstance(foreign, Exception) and target.summary(1, foreign) is None
    assert isinstance(missing, FileNotFoundError)


def test_rows_of_shards_divide_the_manifest_in_order() -> None:
    assert sharded_output.count_shards(ROWS, 2) == 2
    parts = [sharded_output.rows_of(ROWS, shard, 2)["id"].to_pylist() for shard in range(2)]
    assert parts == [["a", "b"], ["c"]]
