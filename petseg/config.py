"""The settings: one frozen dataclass per job, one for the model, and their JSON form.

Only values and their checks live here. Nothing heavy is imported, so that `--help` is instant, and nothing is read
from the environment.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Precision = Literal["auto", "bf16", "fp32"]

Resize = Literal["antialias", "nearest"]
"""How photos are brought to the network's size; masks always by their nearest pixel."""


class InputError(ValueError):
    """What the user gave is wrong: the message is one line that names the file or flag, and the remedy.

    A job turns it, and nothing else, into that line and exit code 2. Any other exception is a defect of ours.
    """


class JobError(Exception):
    """A job that cannot go on, though what the user gave was right: one line, and exit code 1."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a network is and what its numbers mean: it travels with every checkpoint, and prediction obeys it."""

    num_classes: int
    """Number of classes."""

    image_size: tuple[int, int]
    """Height and width in pixels to which photos are resized for the network."""

    class_names: tuple[str, ...]
    """One name per class id."""

    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour, 0..255, per class id."""

    label_map: str
    """Raw mask values and their class ids, such as "1:0,2:1,3:2"."""

    input_scale: float = 1 / 127.5
    """The network sees `pixel * input_scale + input_offset`, with pixel in 0..255."""

    input_offset: float = -1.0
    """See `input_scale`; the two defaults map 0..255 to -1..1."""

    resize: Resize = "antialias"
    """How photos are resized for the network."""

    def __post_init__(self) -> None:
        _require(len(self.class_names) == self.num_classes, "class_names: one name per class is needed")
        _require(len(self.palette) == self.num_classes, "palette: one colour per class is needed")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train the U-Net on photos and their masks."""

    images: str | None = None
    """Folder or URI (s3://bucket/prefix) of the photos. Without it, generated pets are drawn under --storage."""

    masks: str | None = None
    """Folder or URI of the masks: the same names as the photos, in the same subfolders."""

    label_map: str = ""
    """Raw mask values and their class ids, such as "0:0,1:1,2:2". Default: 1 is class 0, 2 is class 1, and so on.
    The value 255 is always ignored, unless it is mapped here."""

    num_classes: int = 3
    """Number of classes."""

    image_size: tuple[int, int] = (160, 160)
    """Height and width in pixels to which photos and masks are resized."""

    val_fraction: float = 0.2
    """Share of the pairs held out for validation, between 0 and 1."""

    val_count: int | None = None
    """Number of pairs held out for validation, instead of --val-fraction."""

    epochs: int = 15
    """Passes over the training pairs."""

    batch_size: int = 16
    """Pairs per step, over all workers together: each takes an equal part."""

    learning_rate: float = 1e-3
    """Highest learning rate of the AdamW schedule (warm-up, then cosine to zero)."""

    precision: Precision = "auto"
    """Arithmetic of the network; auto is bf16 where the hardware has it, else fp32."""

    seed: int = 1337
    """Decides the split, the first weights and the order of the pairs."""

    num_workers: int = 1
    """Training processes (DDP): gloo on CPUs, nccl on GPUs."""

    use_gpu: bool = False
    """One GPU per worker instead of CPU cores."""

    cpus_per_worker: int = 0
    """CPU cores (and threads) per worker. 0: the cluster's cores shared equally, or 1 beside a GPU."""

    feed_budget_gb: float = 4.0
    """GB (10^9 bytes) of decoded pairs a worker may keep on its device; a larger share is streamed."""

    storage: str = "runs"
    """Folder or URI under which runs are kept. On several nodes it must be one that all of them reach."""

    name: str = ""
    """Name of this run, its folder below --storage. Default: the date and time."""

    resume: bool = False
    """Go on with the run --name from its last checkpoint, with the settings it was started with."""

    def __post_init__(self) -> None:
        _require(
            (self.images is None) == (self.masks is None),
            "--images and --masks belong together: give both, or neither for the generated pets",
        )
        _require(2 <= self.num_classes <= 254, f"--num-classes {self.num_classes}: give 2 to 254")
        _require(min(self.image_size) >= 16, f"--image-size {_join(self.image_size)}: both must be at least 16")
        _require(0 < self.val_fraction < 1, f"--val-fraction {self.val_fraction}: give a value between 0 and 1")
        _require(self.val_count is None or self.val_count >= 1, f"--val-count {self.val_count}: give at least 1")
        _require(self.epochs >= 1, f"--epochs {self.epochs}: give at least 1")
        _require(self.num_workers >= 1, f"--num-workers {self.num_workers}: give at least 1")
        _require(self.cpus_per_worker >= 0, f"--cpus-per-worker {self.cpus_per_worker}: give 0 or more")
        _require(
            self.batch_size >= self.num_workers and self.batch_size % self.num_workers == 0,
            f"--batch-size {self.batch_size}: it is shared equally by --num-workers {self.num_workers}, "
            "so give a multiple of that",
        )
        _require(0 <= self.seed < 2**63, f"--seed {self.seed}: give 0 to 2^63 - 1")
        _require(0 < self.learning_rate < float("inf"), f"--learning-rate {self.learning_rate}: give a value above 0")
        _require(self.feed_budget_gb >= 0, f"--feed-budget-gb {self.feed_budget_gb}: give 0 or more")
        _require(
            self.name == self.name.strip() and not set(self.name) & set("/\\\0") and self.name not in (".", ".."),
            f"--name {self.name!r}: it names one folder below --storage, so no slashes, '..' or outer spaces",
        )
        _require(bool(self.name) or not self.resume, "--resume needs --name, the run to go on with")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Write a mask for every photo of a folder, as Parquet and PNG."""

    checkpoint: str
    """A run's folder (its best checkpoint is taken) or one checkpoint in it; path or URI."""

    images: str
    """Folder or URI of the photos."""

    output: str
    """Folder or URI for the masks; made if it is not there."""

    overwrite: bool = False
    """Replace what a job with other settings, another checkpoint or other photos has left in --output."""

    limit: int | None = None
    """Only so many of the photos, spread evenly over their names: for a first look."""

    max_errors: float | None = None
    """Stop when more photos than this have failed: a count, or, below 1, a share of all. Default: never."""

    max_pixels: int = 128_000_000
    """A photo of more pixels than this becomes a row with an error instead of being decoded."""

    tile: tuple[int, ...] = ()
    """Height and width (or one number for both) in pixels of the tiles into which larger photos are cut; each is
    treated as a photo, and they are blended where they overlap. Default: no tiles, photos are resized as a whole."""

    tile_overlap: int | None = None
    """Pixels by which neighbouring tiles overlap at least. Default: a quarter of the tile's shorter side."""

    png: bool = True
    """Write masks/<id>.png beside the Parquet files."""

    overlay: bool = False
    """Write overlays/<id>.jpg: the photo, at most 1024 pixels a side, under its mask, for looking at."""

    probabilities: bool = False
    """Keep the probability of each class, times 255, as grey PNGs in the column probability_pngs."""

    coco_rle: bool = False
    """Keep the mask of each class as COCO run-length encoding in the column coco_rle."""

    shard_size: int = 256
    """Photos per Parquet file, the unit of work: a job that was killed loses those that it was at."""

    batch_size: int | None = None
    """Photos or tiles per forward pass; bounds the memory of the device. Default: 8 on a CPU, 128 on a GPU."""

    precision: Precision = "auto"
    """Arithmetic of the network; auto is bf16 where the hardware has it, else fp32."""

    num_workers: int = 1
    """Processes that hold the model."""

    use_gpu: bool = False
    """One GPU per worker."""

    def __post_init__(self) -> None:
        for flag in ("shard_size", "batch_size", "num_workers", "max_pixels", "limit"):
            value = getattr(self, flag)
            _require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")
        _require(
            self.max_errors is None
            or 0 <= self.max_errors < 1
            or (1 <= self.max_errors < float("inf") and self.max_errors % 1 == 0),
            f"--max-errors {self.max_errors}: give a whole number, or a share between 0 and 1",
        )
        _require(
            len(self.tile) <= 2 and min(self.tile, default=16) >= 16,
            f"--tile {_join(self.tile)}: give one number or two, height and width, of at least 16",
        )
        _require(bool(self.tile) or self.tile_overlap is None, "--tile-overlap needs --tile, the size of a tile")
        if self.tile:
            shorter = min(self.tile)
            _require(
                self.tile_overlap is None or 0 <= self.tile_overlap < shorter,
                f"--tile-overlap {self.tile_overlap}: give 0 to {shorter - 1}, less than a side of a tile",
            )

    @property
    def tile_hw(self) -> tuple[int, int] | None:
        """Height and width of a tile, where there are tiles."""
        return (self.tile[0], self.tile[-1]) if self.tile else None

    @property
    def overlap(self) -> int:
        """Pixels by which tiles overlap, resolved."""
        return self.tile_overlap if self.tile_overlap is not None else min(self.tile, default=0) // 4

    @property
    def photos_per_pass(self) -> int:
        """`batch_size`, resolved. A CPU core is slower with 32, which outgrow its caches, and no faster with 16."""
        return self.batch_size or (128 if self.use_gpu else 8)


Config = ModelConfig | TrainConfig | PredictConfig
ConfigT = TypeVar("ConfigT", bound=Config)


def to_json(config: Config) -> str:
    """The settings as indented JSON text, one key per field."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(cls: type[ConfigT], text: str | bytes, source: str) -> ConfigT:
    """The settings that `to_json` wrote.

    Raises `InputError`, naming `source`, where the text is not JSON, a key is unknown or a value has another type.
    """
    try:
        values = json.loads(text)
    except ValueError as error:  # also bytes that are not UTF-8
        raise InputError(f"{source}: not JSON ({error}); was it edited, or cut short?") from error
    _require(isinstance(values, dict), f"{source}: an object with one key per setting is expected")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    _require(not unknown, f"{source}: unknown setting {', '.join(unknown)}; was it written by a newer petseg?")
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    _require(not missing, f"{source}: the setting {', '.join(missing)} is missing")
    return cls(**{key: _typed(value, hints[key], f"{source}: {key}") for key, value in values.items()})


def _typed(value: Any, hint: Any, source: str) -> Any:
    """A JSON value as the field's type: lists become tuples, all else must already fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(_typed(v, kind, source) for v, kind in zip(value, kinds, strict=True))
    elif origin is Literal:
        if value in args:
            return value
    elif origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _typed(value, args[0], source)
    elif type(value) is hint or (hint is float and type(value) is int):
        return hint(value)
    raise InputError(f"{source}: {value!r} is not a value this setting can have")


def _join(size: tuple[int, ...]) -> str:
    return " ".join(map(str, size))
