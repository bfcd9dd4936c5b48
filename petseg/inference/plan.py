"""Plan a prediction job: assign photos to shards and choose the outputs. This module reads and writes no files."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from petseg.data.manifest import digest
from petseg.data.notes import Notes
from petseg.files import MASK_FOLDER, OVERLAY_FOLDER
from petseg.storage import sharded_output
from petseg.storage.sharded_output import ShardedOutput

FORMAT = 6
"""Version of the output format. Increase it when the same settings would give different bytes than before.

It is part of the plan, so a job does not continue the output of an incompatible version.
"""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Optional outputs for each photo: files, and extra columns of its row in the shard."""

    png: bool = True
    """Write a PNG file to `MASK_FOLDER`."""
    overlay: bool = False
    """Write a JPEG file to `OVERLAY_FOLDER`."""
    probabilities: bool = False
    """Add the column `probability_pngs`."""
    coco_rle: bool = False
    """Add the column `coco_rle`."""

    def files(self) -> dict[str, str]:
        """Return {folder: file extension} for the outputs that have one file per mask."""
        return ({MASK_FOLDER: ".png"} if self.png else {}) | ({OVERLAY_FOLDER: ".jpg"} if self.overlay else {})


def schema(outputs: Outputs) -> pa.Schema:
    """Return the schema of a shard's file: one row per photo, including failed ones.

    For a failed photo `error` holds the reason, and all other columns except `id` and `image` are null.
    """
    fields = [
        ("id", pa.string()),
        ("image", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mask_png", pa.binary()),
        ("class_pixels", pa.list_(pa.int64())),
        ("confidence", pa.float32()),
        ("unsure", pa.float32()),
        ("error", pa.string()),
    ]
    if outputs.probabilities:
        fields.append(("probability_pngs", pa.list_(pa.binary())))
    if outputs.coco_rle:
        rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
        fields.append(("coco_rle", pa.list_(rle)))
    return pa.schema(fields)


@dataclass(frozen=True)
class Target(ShardedOutput):
    """Output folder, number of shards, and optional outputs of a prediction job."""

    fingerprint: str
    """SHA-256 of the plan. It is stored in every shard, so that shards of another job are recognized."""
    outputs: Outputs

    mark_key: ClassVar[bytes] = b"petseg.plan"

    def mark(self, shard: int) -> bytes:
        """Return the fingerprint. All shards of a job share it; their file names tell them apart."""
        return self.fingerprint.encode()


@dataclass(frozen=True)
class Plan:
    """Assignment of photos to the shards of an output."""

    manifest: pa.Table
    shard_size: int
    description: dict[str, Any]
    """All settings that determine the bytes of the output, as JSON values: the content of `_plan.json`."""
    target: Target


@dataclass(frozen=True)
class Summary:
    """Counts and first errors of one shard, or of several together."""

    rows: int
    failed: int
    first_errors: list[str]
    """Entries "id: reason" of the first failed photos."""
    notes: Notes = dataclasses.field(default_factory=dict)


def shard_rows(manifest: pa.Table, shard: int, shard_size: int) -> pa.Table:
    """Return the manifest rows of a shard, with the column `shard` added."""
    rows = sharded_output.rows_of(manifest, shard, shard_size)
    return rows.append_column("shard", pa.array([shard] * rows.num_rows, pa.int64()))


def make_plan(manifest: pa.Table, output: str, *, shard_size: int, outputs: Outputs, settings: dict[str, Any]) -> Plan:
    """Return the plan of a job. `settings` holds all other values that affect the bytes of the output."""
    description = {
        "format": FORMAT,
        "images": manifest.num_rows,
        "manifest_sha256": digest(manifest, ("id", "image")),
        "shard_size": shard_size,
        **dataclasses.asdict(outputs),
        **settings,
    }
    num_shards = sharded_output.count_shards(manifest, shard_size)
    target = Target(output, num_shards, fingerprint(description), outputs)
    return Plan(manifest, shard_size, description, target)


def fingerprint(description: Any) -> str:
    """Return the SHA-256 of a plan's description, in hexadecimal."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
