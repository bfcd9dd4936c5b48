"""The plan of a prediction job: which photo is in which shard, and what is written of it. No files are touched here."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from petseg import storage
from petseg.data.manifest import digest

MANIFEST_FILE = "_manifest.parquet"
PLAN_FILE = "_plan.json"
SUCCESS_FILE = "_SUCCESS.json"
MASK_FOLDER = "masks"
OVERLAY_FOLDER = "overlays"

_FORMAT = 3
"""Raised when the same settings would give other bytes than before, so that one output is not made by two versions."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is written of a mask, beside its row."""

    png: bool = True
    """A file in `MASK_FOLDER`."""
    overlay: bool = False
    """A file in `OVERLAY_FOLDER`."""
    probabilities: bool = False
    """The column `probability_pngs`."""
    coco_rle: bool = False
    """The column `coco_rle`."""

    def files(self) -> dict[str, str]:
        """The folders with a file per mask, and what ends the files' names."""
        return ({MASK_FOLDER: ".png"} if self.png else {}) | ({OVERLAY_FOLDER: ".jpg"} if self.overlay else {})


def schema(outputs: Outputs) -> pa.Schema:
    """One row per photo, also for one that failed: then `error` says why, and all but `id` and `image` is null."""
    fields = [
        ("id", pa.string()),
        ("image", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mask_png", pa.binary()),
        ("class_pixels", pa.list_(pa.int64())),
        ("confidence", pa.float32()),
        ("error", pa.string()),
    ]
    if outputs.probabilities:
        fields.append(("probability_pngs", pa.list_(pa.binary())))
    if outputs.coco_rle:
        rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
        fields.append(("coco_rle", pa.list_(rle)))
    return pa.schema(fields)


@dataclass(frozen=True)
class Target:
    """Where the shards of a job go; small, so that every task can be told."""

    output: str
    num_shards: int
    fingerprint: str
    """SHA-256 of the plan; every shard carries it, so that another job's is never taken for this one's."""
    outputs: Outputs

    def name(self, shard: int) -> str:
        """The name of the Parquet file of a shard."""
        return f"part-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def location(self, shard: int) -> str:
        """Where it is."""
        return storage.join(self.output, self.name(shard))


@dataclass(frozen=True)
class Plan:
    """Which photo is in which shard of which output."""

    manifest: pa.Table
    shard_size: int
    description: dict[str, Any]
    """All that the output's bytes follow from, as JSON values: what `_plan.json` holds."""
    target: Target


@dataclass(frozen=True)
class Summary:
    """How a shard went."""

    rows: int
    failed: int
    first_errors: list[str]
    """"id: reason" of some of those that failed."""


def rows_of(manifest: pa.Table, shard: int, shard_size: int) -> pa.Table:
    """The part of the manifest that is in a shard, with the column `shard`."""
    rows = manifest.slice(shard * shard_size, shard_size)
    return rows.append_column("shard", pa.array([shard] * rows.num_rows, pa.int64()))


def make_plan(manifest: pa.Table, output: str, *, shard_size: int, outputs: Outputs, settings: dict[str, Any]) -> Plan:
    """The plan of a job; `settings` is whatever, beside the photos' names, decides what is written."""
    description = {
        "format": _FORMAT,
        "images": manifest.num_rows,
        "manifest_sha256": digest(manifest, ("id", "image")),
        "shard_size": shard_size,
        **dataclasses.asdict(outputs),
        **settings,
    }
    target = Target(output, -(-manifest.num_rows // shard_size), fingerprint(description), outputs)
    return Plan(manifest, shard_size, description, target)


def fingerprint(description: Any) -> str:
    """SHA-256 of a plan's description, in hexadecimal."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
