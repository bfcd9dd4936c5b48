"""Plan a prediction job: assign photos to shards and choose the outputs. This module reads and writes no files.

The photos that one start adds to an output are a generation. The first start begins with generation 0. With --append, a
later start adds the photos that are new since, as another generation with shards of its own. So finished shards keep
their names and their bytes.
"""

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from petseg.data.manifest import digest
from petseg.data.notes import Notes
from petseg.files import MASK_FOLDER, OVERLAY_FOLDER
from petseg.storage.sharded_output import ShardedOutput

FORMAT = 7
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
        ("notes", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
    if outputs.probabilities:
        fields.append(("probability_pngs", pa.list_(pa.binary())))
    if outputs.coco_rle:
        rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
        fields.append(("coco_rle", pa.list_(rle)))
    return pa.schema(fields)


@dataclass(frozen=True)
class Generation:
    """Photos and shards that one start has added to an output."""

    first_row: int
    """Number of photos in the generations before it."""
    num_rows: int
    first_shard: int
    """Number of shards of the generations before it."""
    num_shards: int
    fingerprint: str
    """SHA-256 of the settings and of the generation's photos. It marks its shards, so that others are recognized."""


@dataclass(frozen=True)
class Target(ShardedOutput):
    """Output folder, shards, and optional outputs of a prediction job. Shards are numbered over all generations."""

    fingerprint: str
    """SHA-256 of the plan's description. It tells whether another job has taken over the output."""
    outputs: Outputs
    generations: tuple[Generation, ...]

    mark_key: ClassVar[bytes] = b"petseg.plan"

    def name(self, shard: int) -> str:
        """Return the file name of a shard: that of its generation and its number in it."""
        number, generation = self.generation_of(shard)
        prefix = f"part-g{number:04d}-" if number else "part-"
        return f"{prefix}{shard - generation.first_shard:05d}-of-{generation.num_shards:05d}.parquet"

    def mark(self, shard: int) -> bytes:
        """Return the fingerprint of a shard's generation. The file names tell its shards apart."""
        return self.generation_of(shard)[1].fingerprint.encode()

    def generation_of(self, shard: int) -> tuple[int, Generation]:
        """Return (number of the generation that has a shard, the generation)."""
        number = bisect.bisect_right(self.generations, shard, key=lambda generation: generation.first_shard) - 1
        return number, self.generations[number]


@dataclass(frozen=True)
class Plan:
    """Assignment of photos to the shards of an output."""

    manifest: pa.Table
    """Columns `id`, `image` and `version` of all photos, one generation after the other."""
    shard_size: int
    description: dict[str, Any]
    """All settings that determine the bytes of the output, as JSON values: the content of `_plan.json`."""
    target: Target

    def first_row(self, shard: int) -> int:
        """Return the row of the manifest at which a shard begins."""
        _, generation = self.target.generation_of(shard)
        return generation.first_row + (shard - generation.first_shard) * self.shard_size

    def num_rows(self, shard: int) -> int:
        """Return the number of photos of a shard. The last shard of a generation may have fewer."""
        _, generation = self.target.generation_of(shard)
        return min(self.shard_size, generation.first_row + generation.num_rows - self.first_row(shard))

    def rows(self, shard: int) -> pa.Table:
        """Return the columns `id`, `image` and `shard` of a shard's photos."""
        rows = self.manifest.select(["id", "image"]).slice(self.first_row(shard), self.num_rows(shard))
        return rows.append_column("shard", pa.array([shard] * rows.num_rows, pa.int64()))

    def places(self, rows: Iterable[int]) -> dict[int, list[int]]:
        """Return {shard: indices of these rows of the manifest within it}."""
        places: dict[int, list[int]] = {}
        for row in rows:
            number = bisect.bisect_right(self.target.generations, row, key=lambda generation: generation.first_row) - 1
            generation = self.target.generations[number]
            shard, index = divmod(row - generation.first_row, self.shard_size)
            places.setdefault(generation.first_shard + shard, []).append(index)
        return places


@dataclass(frozen=True)
class Work:
    """Photos that a start predicts: all photos of some shards, and some photos of finished shards."""

    plan: Plan
    missing: list[int]
    """Shards that are not finished."""
    again: Mapping[int, list[int]]
    """Indices of photos within finished shards, by shard. Their rows are replaced."""

    @cached_property
    def shards(self) -> list[int]:
        """Shards to be written, in order."""
        return sorted([*self.missing, *self.again])

    def rows(self, shard: int) -> pa.Table:
        """Return the columns `id`, `image` and `shard` of the photos to predict."""
        rows = self.plan.rows(shard)
        return rows.take(self.again[shard]) if shard in self.again else rows

    def num_rows(self, shard: int) -> int:
        """Return the number of photos to predict."""
        return len(self.again[shard]) if shard in self.again else self.plan.num_rows(shard)


@dataclass(frozen=True)
class Summary:
    """Counts and first errors of one shard, or of several together."""

    rows: int
    failed: int
    first_errors: list[str]
    """Entries "id: reason" of the first failed photos."""
    notes: Notes = dataclasses.field(default_factory=dict)


def make_plan(manifest: pa.Table, output: str, *, shard_size: int, outputs: Outputs, settings: dict[str, Any]) -> Plan:
    """Return the plan of a new output. `settings` holds all other values that affect the bytes of the output."""
    description = {
        "format": FORMAT,
        **_describe(manifest),
        "shard_size": shard_size,
        **dataclasses.asdict(outputs),
        **settings,
    }
    return _plan(manifest, output, outputs, description)


def continue_plan(plan: Plan, manifest: pa.Table, generations: list[dict[str, Any]], num_new: int) -> Plan:
    """Return the plan of an output that holds more than `plan`, which has its settings.

    `manifest` has the photos of all generations, of which the last `num_new` are to become another generation.
    `generations` are the descriptions of the existing ones: their `images` and `manifest_sha256`.
    """
    if num_new:
        generations = [*generations, _describe(manifest.slice(manifest.num_rows - num_new))]
    description = plan.description | generations[0]
    if len(generations) > 1:
        description["generations"] = generations[1:]
    return _plan(manifest, plan.target.output, plan.target.outputs, description)


def generations_of(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return `images` and `manifest_sha256` of each generation in a plan's description."""
    first = {name: description.get(name) for name in ("images", "manifest_sha256")}
    return [first, *description.get("generations", ())]


def settings_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan's description without the photos."""
    of_photos = ("images", "manifest_sha256", "generations")
    return {name: value for name, value in description.items() if name not in of_photos}


def fingerprint(description: Any) -> str:
    """Return the SHA-256 of a plan's description, in hexadecimal."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _describe(photos: pa.Table) -> dict[str, Any]:
    return {"images": photos.num_rows, "manifest_sha256": digest(photos, ("id", "image"))}


def _plan(manifest: pa.Table, output: str, outputs: Outputs, description: dict[str, Any]) -> Plan:
    generations: list[Generation] = []
    row = shard = 0
    for photos in generations_of(description):
        of_generation = settings_of(description) | photos
        num_shards = -(-photos["images"] // description["shard_size"])
        generations.append(Generation(row, photos["images"], shard, num_shards, fingerprint(of_generation)))
        row, shard = row + photos["images"], shard + num_shards
    assert row == manifest.num_rows
    target = Target(output, shard, fingerprint(description), outputs, tuple(generations))
    return Plan(manifest, description["shard_size"], description, target)
