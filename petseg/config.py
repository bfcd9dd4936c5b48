"""The settings: one frozen dataclass per job, one for the model, and their JSON form.

Only values and their checks live here. Nothing heavy is imported, so that `--help` is instant, and nothing is read
from the environment.
"""

import dataclasses
import json
import types
import typing
import urllib.parse
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Precision = Literal["auto", "bf16", "fp32"]

Switch = Literal["auto", "on", "off"]

RecipeName = Literal["best", "keras"]

ExportFormat = Literal["onnx", "torch"]

Resize = Literal["antialias", "nearest"]
"""How photos are brought to the network's size; masks always by their nearest pixel."""


class InputError(ValueError):
    """What the user gave is wrong: the message is one line that names the file or flag, and the remedy.

    A job turns it, and nothing else, into that line and exit code 2. Any other exception is a defect of ours.
    """


class JobError(Exception):
    """A job that cannot go on, though what the user gave was right: one line, and exit code 1."""


class UnavailableError(OSError):
    """Storage that does not answer, or refuses everything: no fault of the one file that was asked for, so it says
    nothing of that. The message is one line that names the place, and the remedy where there is one.
    """


class NoSuchPlaceError(UnavailableError, InputError):
    """Storage that refuses everything until the user mends what he gave: the bucket, the credentials, the region."""


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

    recipe: RecipeName = "best"
    """How to train. keras: as the Keras example does, its split and its resizing included."""

    images: str | None = None
    """Folder or URI (s3://bucket/prefix) of the photos. Without it, generated pets are drawn under --storage."""

    masks: str | None = None
    """Folder or URI of the masks: the same names as the photos, in the same subfolders."""

    data: str | None = None
    """Folder or URI of prepared shards (`jobs/prepare.py shards`), instead of --images and --masks."""

    classes: str = ""
    """Names of the classes in the order of their ids, such as "cat,dog,background"."""

    num_classes: int | None = None
    """Number of classes, where --classes does not name them. Default: 3."""

    label_map: str = ""
    """Raw mask values and their classes, such as "0:0,1:1,2:2", or for masks of colours "#ff0000:cat,#000000:dog".
    Default: 1 is class 0, 2 is class 1, and so on."""

    ignore_label: str = ""
    """Raw mask values (or colours) that count neither in the loss nor in a score, such as "0,254". Default: 255."""

    class_weights: str = ""
    """Weight of each class in the loss, such as "1,1,3"; or "balanced", which gives rare classes the weight that their
    pixels lack. Default: every pixel counts alike."""

    image_size: tuple[int, int] = (160, 160)
    """Height and width in pixels to which photos and masks are resized."""

    split_file: tuple[str, ...] = ()
    """Which pairs are for what: train=FILE val=FILE (test=FILE), each with an id at the start of every line; or one
    file with an id and one of these words in every line. Pairs that are in none of them are left out."""

    val_fraction: float | None = None
    """Share of the pairs held out for validation, between 0 and 1. Default: 0.2."""

    val_count: int | None = None
    """Number of pairs held out for validation, instead of --val-fraction. Default of the keras recipe: 1000."""

    epochs: int = 15
    """Passes over the training pairs."""

    batch_size: int | None = None
    """Pairs per step, over all workers together: each takes an equal part. Default: the recipe's, 8 or 32."""

    accumulate: int = 1
    """Parts into which a worker cuts its batch, adding up their gradients: for batches that its device cannot hold."""

    learning_rate: float | None = None
    """Learning rate; of the best recipe, the highest of its schedule. Default: the recipe's."""

    clip_norm: float = 0.0
    """Gradients are scaled down to this norm where theirs is larger. 0: never."""

    augment: Switch = "auto"
    """Flip, zoom, turn and recolour the training pairs at random. auto: as the recipe does; best does."""

    init_from: str = ""
    """A run or checkpoint whose weights to begin with, instead of random ones."""

    precision: Precision = "auto"
    """Arithmetic of the network; auto is bf16 where the hardware has it, else fp32."""

    compile: Switch = "auto"
    """Compile the network (torch.compile). auto: on a GPU."""

    seed: int = 1337
    """Decides the split, the first weights, the order of the pairs and what is done to them."""

    num_workers: tuple[int, ...] = (1,)
    """Training processes (DDP): gloo on CPUs, nccl on GPUs. Two numbers: at least and at most so many, as nodes come
    and go."""

    use_gpu: bool = False
    """One GPU per worker instead of CPU cores."""

    cpus_per_worker: int = 0
    """CPU cores (and threads) per worker. 0: the cluster's cores shared equally, or 1 beside a GPU."""

    max_failures: int = 3
    """So many deaths of a worker or node in a row, without a new epoch between them, are made good."""

    wait_min: float = 30.0
    """Minutes to wait for a cluster that has too little, but may grow."""

    feed_budget_gb: float = 4.0
    """GB (10^9 bytes) of decoded pairs a worker may keep on its device; a larger share is streamed."""

    storage: str = "runs"
    """Folder or URI under which runs are kept. On several nodes it must be one that all of them reach."""

    name: str = ""
    """Name of this run, its folder below --storage. Default: the date and time."""

    resume: bool = False
    """Go on with the run --name from its last checkpoint, with the settings it was started with."""

    mlflow: bool = False
    """Log to MLflow, too; its tracking server is the one in MLFLOW_TRACKING_URI."""

    wandb: bool = False
    """Log to Weights & Biases, too; key and project come from its own variables."""

    def __post_init__(self) -> None:
        _require(
            (self.images is None) == (self.masks is None),
            "--images and --masks belong together: give both, or neither for the generated pets",
        )
        _require(self.data is None or self.images is None, "--data is instead of --images and --masks: give either")
        _require_classes(self.num_classes, self.image_size)
        _require_held_out(self.val_fraction, self.val_count)
        for flag in ("epochs", "accumulate", "batch_size"):
            value = getattr(self, flag)
            _require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")
        for flag in ("cpus_per_worker", "max_failures", "clip_norm", "feed_budget_gb", "wait_min"):
            value = getattr(self, flag)
            _require(0 <= value < float("inf"), f"--{flag.replace('_', '-')} {value}: give 0 or more")
        _require(
            len(self.num_workers) in (1, 2) and 1 <= self.min_workers <= self.max_workers,
            f"--num-workers {_join(self.num_workers)}: give one number, or the least and the most",
        )
        _require(
            self.batch_size is None
            or (self.batch_size >= self.max_workers and (self.elastic or self.batch_size % self.max_workers == 0)),
            f"--batch-size {self.batch_size}: it is shared equally by --num-workers {self.max_workers}, "
            "so give a multiple of that",
        )
        _require(0 <= self.seed < 2**63, f"--seed {self.seed}: give 0 to 2^63 - 1")
        _require(
            self.learning_rate is None or 0 < self.learning_rate < float("inf"),
            f"--learning-rate {self.learning_rate}: give a value above 0",
        )
        _require(
            self.name == self.name.strip() and not set(self.name) & set("/\\\0") and self.name not in (".", ".."),
            f"--name {self.name!r}: it names one folder below --storage, so no slashes, '..' or outer spaces",
        )
        _require(bool(self.name) or not self.resume, "--resume needs --name, the run to go on with")

    @property
    def min_workers(self) -> int:
        """The fewest workers it may have."""
        return self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers it may have."""
        return self.num_workers[-1]

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.min_workers < self.max_workers


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

    wait_min: float = 30.0
    """Minutes to wait for a cluster that has too little, but may grow."""

    def __post_init__(self) -> None:
        for flag in ("shard_size", "batch_size", "num_workers", "max_pixels", "limit"):
            value = getattr(self, flag)
            _require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")
        _require(0 <= self.wait_min < float("inf"), f"--wait-min {self.wait_min}: give 0 or more")
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
        """`batch_size`, resolved."""
        return _photos_per_pass(self.batch_size, self.use_gpu)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a network on photos and their masks, and show where it is worst."""

    checkpoint: str
    """A run's folder (its best checkpoint is taken) or one checkpoint in it; path or URI."""

    images: str
    """Folder or URI of the photos."""

    masks: str
    """Folder or URI of the masks: the same names as the photos, in the same subfolders."""

    output: str
    """Folder or URI for the scores and the pictures; made if it is not there."""

    overwrite: bool = False
    """Replace the scores and the pictures that are in --output."""

    label_map: str = ""
    """Raw mask values and their class ids, such as "0:0,1:1,2:2". Default: the one the network was trained with.
    The value 255 is always ignored, unless it is mapped here."""

    limit: int | None = None
    """Only so many of the pairs, spread evenly over their names: for a first look."""

    max_pixels: int = 128_000_000
    """A pair of more pixels than this becomes a row with an error instead of being decoded."""

    batch_size: int | None = None
    """Photos per forward pass; bounds the memory of the device. Default: 8 on a CPU, 128 on a GPU."""

    precision: Precision = "auto"
    """Arithmetic of the network; auto is bf16 where the hardware has it, else fp32."""

    use_gpu: bool = False
    """Run the network on a GPU."""

    def __post_init__(self) -> None:
        for flag in ("batch_size", "max_pixels", "limit"):
            value = getattr(self, flag)
            _require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")

    @property
    def photos_per_pass(self) -> int:
        """`batch_size`, resolved."""
        return _photos_per_pass(self.batch_size, self.use_gpu)


def _photos_per_pass(batch_size: int | None, use_gpu: bool) -> int:
    """A CPU core is slower with 32, which outgrow its caches, and no faster with 16."""
    return batch_size or (128 if use_gpu else 8)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a network as ONNX and torch.export, for programs that know neither Ray nor petseg."""

    checkpoint: str
    """A run's folder (its best checkpoint is taken) or one checkpoint in it; path or URI."""

    output: str
    """Folder or URI for the models, their settings and their card; made if it is not there."""

    formats: tuple[ExportFormat, ...] = ("onnx", "torch")
    """onnx: model.onnx. torch: model.pt2, for torch.export.load."""

    licence: str = "not stated"
    """Licence of the weights, for the card: what you say, as it depends on the photos they have learnt from."""

    overwrite: bool = False
    """Replace the export that is in --output."""

    def __post_init__(self) -> None:
        _require(
            0 < len(self.formats) == len(set(self.formats)),
            f"--formats {' '.join(self.formats)}: give onnx, torch or both",
        )


@dataclass(frozen=True, kw_only=True)
class OxfordConfig:
    """Download the Oxford-IIIT Pet dataset (800 MB) and lay it out as images/ and masks/."""

    output: str
    """Folder or URI for the photos, the masks and the official lists; made if it is not there."""

    url: str = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
    """Where images.tar.gz and annotations.tar.gz are."""

    cache: str = "~/.cache/petseg"
    """Local folder in which the archives are kept; a download that was cut off goes on there."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        _require(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            f"--url {self.url}: give an address that begins with https:// or http://",
        )


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Decode photos and their masks once and for all, into Parquet files that training reads."""

    images: str
    """Folder or URI of the photos."""

    masks: str
    """Folder or URI of the masks: the same names as the photos, in the same subfolders."""

    output: str
    """Folder or URI for the prepared set; made if it is not there."""

    classes: str = ""
    """Names of the classes in the order of their ids, such as "cat,dog,background"."""

    num_classes: int | None = None
    """Number of classes, where --classes does not name them. Default: 3."""

    label_map: str = ""
    """Raw mask values and their classes, such as "0:0,1:1,2:2", or for masks of colours "#ff0000:cat,#000000:dog".
    Default: 1 is class 0, 2 is class 1, and so on."""

    ignore_label: str = ""
    """Raw mask values (or colours) that count neither in the loss nor in a score, such as "0,254". Default: 255."""

    image_size: tuple[int, int] = (160, 160)
    """Height and width in pixels to which photos and masks are resized."""

    resize: Resize = "antialias"
    """How photos are resized; the keras recipe wants the nearest pixel."""

    shard_size: int | None = None
    """Pairs per Parquet file, the unit of work. Default: as many as make 32 MB of pixels."""

    skip_bad: bool = False
    """Leave out, by name, the pairs that cannot be used, instead of refusing them all."""

    def __post_init__(self) -> None:
        _require_classes(self.num_classes, self.image_size)
        _require(self.shard_size is None or self.shard_size >= 1, f"--shard-size {self.shard_size}: give at least 1")

    @property
    def pairs_per_shard(self) -> int:
        """`shard_size`, resolved: what a task holds in memory follows from it."""
        return self.shard_size or max(1, 2**25 // (self.image_size[0] * self.image_size[1] * 4))


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Look at photos and their masks before any training: what is in them, what training would refuse, what is there
    twice."""

    images: str
    """Folder or URI of the photos."""

    masks: str
    """Folder or URI of the masks: the same names as the photos, in the same subfolders."""

    output: str
    """Folder or URI for the report; made if it is not there."""

    overwrite: bool = False
    """Replace the report that is in --output."""

    classes: str = ""
    """Names of the classes in the order of their ids, such as "cat,dog,background"."""

    num_classes: int | None = None
    """Number of classes, where --classes does not name them. Default: 3."""

    label_map: str = ""
    """Raw mask values and their classes, such as "0:0,1:1,2:2", or for masks of colours "#ff0000:cat,#000000:dog".
    Default: 1 is class 0, 2 is class 1, and so on."""

    ignore_label: str = ""
    """Raw mask values (or colours) that count neither in the loss nor in a score, such as "0,254". Default: 255."""

    split_file: tuple[str, ...] = ()
    """Which pairs are for what, as training takes it."""

    val_fraction: float | None = None
    """Share of the pairs that training would hold out for validation, between 0 and 1. Default: 0.2."""

    val_count: int | None = None
    """Number of pairs that it would hold out, instead of --val-fraction."""

    seed: int = 1337
    """Decides the split, as in training."""

    def __post_init__(self) -> None:
        _require_classes(self.num_classes, (16, 16))
        _require_held_out(self.val_fraction, self.val_count)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What a prepared set is and what its numbers mean: its `dataset.json`."""

    format: int
    """Raised when the same settings would give other bytes than before."""

    images: str
    """Absolute location of the folder that the photos came from."""

    masks: str
    """Absolute location of the folder that the masks came from."""

    source_sha256: str
    """Of the names of all pairs that were found there."""

    image_size: tuple[int, int]
    """Height and width in pixels."""

    resize: Resize
    """How photos were brought to that size."""

    label_map: str
    """Raw mask values and their class ids, such as "1:0,2:1,3:2"."""

    class_names: tuple[str, ...]
    """One name per class id."""

    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour, 0..255, per class id."""

    shard_size: int
    """Pairs per Parquet file, before bad ones were left out."""

    rows: int = 0
    """Pairs in all files. This and all that follows is known once they are written."""

    class_pixels: tuple[int, ...] = ()
    """Pixels of each class in all masks."""

    left_out: tuple[str, ...] = ()
    """Pairs that could not be used: which file, and why."""

    files: tuple[str, ...] = ()
    """Names of the Parquet files, in order."""

    file_rows: tuple[int, ...] = ()
    """Pairs in each of them."""

    manifest_sha256: str = ""
    """Of the file that names the pairs."""


Config = (
    ModelConfig
    | TrainConfig
    | PredictConfig
    | EvaluateConfig
    | ExportConfig
    | OxfordConfig
    | ShardsConfig
    | CheckConfig
    | DatasetConfig
)
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
    settings = typed_values(cls, values, source)
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    missing = sorted(required - set(settings))
    _require(not missing, f"{source}: the setting {', '.join(missing)} is missing")
    return cls(**settings)


def typed_values(cls: type[Config], values: Any, source: str) -> dict[str, Any]:
    """Some or all of the settings of a class, by name, from the object that a JSON file holds.

    Raises `InputError`, naming `source`, where it is no object, a key is unknown or a value has another type.
    """
    _require(isinstance(values, dict), f"{source}: an object with one key per setting is expected")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    some = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
    _require(not unknown, f"{source}: unknown setting {some}; was it written by another job, or a newer petseg?")
    return {key: _typed(value, hints[key], f"{source}: {key}") for key, value in values.items()}


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


def _require_held_out(val_fraction: float | None, val_count: int | None) -> None:
    _require(
        val_fraction is None or 0 < val_fraction < 1, f"--val-fraction {val_fraction}: give a value between 0 and 1"
    )
    _require(
        val_fraction is None or val_count is None,
        f"--val-fraction {val_fraction}, --val-count {val_count}: give one of them",
    )
    _require(val_count is None or val_count >= 1, f"--val-count {val_count}: give at least 1")


def _require_classes(num_classes: int | None, image_size: tuple[int, int]) -> None:
    _require(num_classes is None or 2 <= num_classes <= 254, f"--num-classes {num_classes}: give 2 to 254")
    _require(min(image_size) >= 16, f"--image-size {_join(image_size)}: both must be at least 16")


def _join(size: tuple[int, ...]) -> str:
    return " ".join(map(str, size))
