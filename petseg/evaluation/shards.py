"""Score the pairs of an evaluation in shards. Each is committed as a file, so a second start does the missing ones.

A shard has its rows, and in its footer the sums over its pairs. All scores follow from the sums, added up in the order
of the shards. So they do not depend on the number of workers, nor on the kills in between. No Ray.
"""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import torch

from petseg import files, storage
from petseg.data.notes import Notes, add_notes, count_notes
from petseg.errors import JobError, UnavailableError
from petseg.evaluation.evaluator import ROWS, Result
from petseg.evaluation.scores import Counts, View
from petseg.inference import crash_guard
from petseg.storage import checks, sharded_output
from petseg.storage.sharded_output import ShardedOutput

SHARD_SIZE = 128
"""Number of pairs of a shard. It fills one forward pass on a GPU."""

_ERRORS_KEPT = 100


class Scorer(Protocol):
    """An `Evaluator`, or `GivenMasks`."""

    masks_upright: bool | None

    @property
    def views(self) -> list[View]: ...  # noqa: D102
    def results(self, pairs: pa.Table, *, in_subprocess: bool = False) -> Iterator[Result]: ...  # noqa: D102
    def pictures(self, pairs: pa.Table) -> Iterator[bytes | None]: ...  # noqa: D102


@dataclass(frozen=True)
class Target(ShardedOutput):
    """Folder and number of the shards of an evaluation."""

    fingerprint: str
    """SHA-256 of the plan, which marks the shards."""
    shard_size: int

    mark_key: ClassVar[bytes] = b"petseg.evaluation"

    def name(self, shard: int) -> str:
        """Return the path of a shard's file in the output."""
        return f"{files.EVALUATION_SHARDS}/{super().name(shard)}"

    def mark(self, shard: int) -> bytes:
        """Return the fingerprint. The file names tell the shards apart."""
        return self.fingerprint.encode()


@dataclass(frozen=True)
class Summary:
    """Sums over the pairs of a shard, as JSON values."""

    rows: int
    failed: int
    first_errors: list[list[str]]
    """(id, reason) of the first failed pairs."""
    drawn: dict[str, int]
    """Number of masks by `orientation.Drawn`."""
    unclear: list[int]
    """Indices of the pairs that are not scored yet, because it is not decided how their masks were drawn."""
    notes: Notes
    counts: list[list[Any]]
    """Sums of `Counts` by view: confusion, boundary, cross-entropy (None if there is none). Empty without a pair."""


@dataclass(frozen=True)
class Work:
    """Shards that a start scores: whole ones, or the unclear pairs of finished ones."""

    pairs: pa.Table
    target: Target
    masks_upright: bool | None
    """Decision for unclear masks; None if they are left for later."""
    missing: list[int]
    """Shards that are not finished."""
    unclear: Mapping[int, Summary] = dataclasses.field(default_factory=dict)
    """Finished shards with unclear pairs, which are scored now."""

    @property
    def shards(self) -> list[int]:
        """Shards to be written."""
        return [*self.missing, *self.unclear]

    def num_rows(self, shard: int) -> int:
        """Return the number of pairs to be scored in a shard."""
        if shard in self.unclear:
            return len(self.unclear[shard].unclear)
        return sharded_output.rows_of(self.pairs, shard, self.target.shard_size).num_rows

    def score(self, scorer: Scorer, shard: int) -> Summary:
        """Score and write a shard. Raises `JobError` if it cannot be written, or storage does not answer."""
        with checks.translate_write_errors(self.target.output):
            try:
                return self._score(scorer, shard)
            except UnavailableError as error:
                raise JobError(f"{error}; {checks.RERUN}") from error

    def _score(self, scorer: Scorer, shard: int) -> Summary:
        before = self.unclear.get(shard)
        pairs = sharded_output.rows_of(self.pairs, shard, self.target.shard_size)
        if before is not None:
            pairs = pairs.take(pa.array(before.unclear, pa.int64()))
        scorer.masks_upright = self.masks_upright
        job = hashlib.sha256(f"{self.target.output}\n{self.target.fingerprint}".encode()).hexdigest()[:16]
        with crash_guard.crash_marker(f"{job}-{shard}-score") as died_before:
            results = list(scorer.results(pairs, in_subprocess=died_before))
        rows = [result.row for result in results]
        summary = _summarise(results, scorer.views)
        if before is not None:
            all_rows = read_rows(self.target, [shard]).to_pylist()
            for index, row in zip(before.unclear, rows, strict=True):
                all_rows[index] = row
            rows, summary = all_rows, _merge(before, summary)
        values = list(dataclasses.asdict(summary).values())[1:]  # the number of rows stands in the footer
        self.target.write_shard(shard, pa.Table.from_pylist(rows, ROWS), values)
        return summary


def make_target(output: str, num_pairs: int, plan: Mapping[str, Any]) -> Target:
    """Return the target of an evaluation with this plan, a dictionary of JSON values."""
    fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    return Target(output, -(-num_pairs // SHARD_SIZE), fingerprint, SHARD_SIZE)


def find_done(target: Target) -> dict[int, Summary]:
    """Return the summaries of the finished shards, by shard. Those of another evaluation are left out."""
    folder, done = files.EVALUATION_SHARDS, {}
    names = {f"{folder}/{name}" for name in storage.list_names(storage.join(target.output, folder))}
    there = [shard for shard in range(target.num_shards) if target.name(shard) in names]
    for shard, footer in zip(there, sharded_output.read_footers(map(target.location, there)), strict=True):
        summary = None if isinstance(footer, Exception) else target.summary(shard, footer)
        if summary is not None and not isinstance(footer, Exception):
            done[shard] = Summary(footer.num_rows, *summary)
    return done


def read_rows(target: Target, shards: Iterable[int]) -> pa.Table:
    """Return the rows of these shards, in order. Raises `OSError` if one cannot be read."""
    tables = []
    for content in storage.read_each(map(target.location, shards)):
        if isinstance(content, OSError):
            raise content
        tables.append(sharded_output.parse_parquet(content).replace_schema_metadata(None).cast(ROWS))
    return pa.concat_tables(tables)


def total(done: Mapping[int, Summary], views: Sequence[View]) -> dict[View, Counts]:
    """Return the sums over all shards by view; empty if no pair was scored."""
    counts = _add([done[shard].counts for shard in sorted(done)])
    return dict(zip(views, map(_from_json, counts), strict=True)) if counts else {}


def _summarise(results: Sequence[Result], views: Sequence[View]) -> Summary:
    unclear = [index for index, result in enumerate(results) if result.drawn == "unclear" and not result.counts]
    failed = [result.row for index, result in enumerate(results) if not result.counts and index not in unclear]
    return Summary(
        rows=len(results),
        failed=len(failed),
        first_errors=[[row["id"], row["error"]] for row in failed[:_ERRORS_KEPT]],
        drawn=dict(Counter(result.drawn for result in results if result.drawn is not None)),
        unclear=unclear,
        notes=count_notes([result.row["id"] for result in results], [result.notes for result in results]),
        counts=_add([[_to_json(result.counts[view]) for view in views] for result in results if result.counts]),
    )


def _merge(before: Summary, added: Summary) -> Summary:
    """Return the sums of a shard whose unclear pairs have been scored: `added` are theirs."""
    return dataclasses.replace(
        before,
        failed=before.failed + added.failed,
        first_errors=[*before.first_errors, *added.first_errors][:_ERRORS_KEPT],
        unclear=[],
        notes=add_notes([before.notes, added.notes]),
        counts=_add([before.counts, added.counts]),
    )


def _add(parts: Iterable[Sequence[Any]]) -> list[Any]:
    """Return the sums by view of several lists of counts, added up in order. Lists without counts are left out."""
    sums: list[Counts] = []
    for part in filter(None, parts):
        counts = list(map(_from_json, part))
        sums = [one + other for one, other in zip(sums, counts, strict=True)] if sums else counts
    return list(map(_to_json, sums))


def _to_json(counts: Counts) -> list[Any]:
    cross_entropy = None if math.isnan(counts.cross_entropy) else counts.cross_entropy
    return [counts.confusion.tolist(), counts.boundary.tolist(), cross_entropy]


def _from_json(values: Sequence[Any]) -> Counts:
    confusion, boundary, cross_entropy = values
    return Counts(
        torch.tensor(confusion, dtype=torch.int64),
        torch.tensor(boundary, dtype=torch.int64),
        math.nan if cross_entropy is None else cross_entropy,
    )
