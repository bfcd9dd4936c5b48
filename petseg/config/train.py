"""Settings of a training run."""

import re
from dataclasses import dataclass
from typing import Literal

from petseg.config.base import LogFormat, MasksUpright, Precision, require, require_classes, require_held_out, spaced

Switch = Literal["auto", "on", "off"]

Loss = Literal["ce", "ce+dice"]

RecipeName = Literal["best", "keras", "pretrained"]

Resume = bool | Literal["auto"]
"""Value of --resume. `run_folder.resolve` replaces "auto" by True if the run exists, else by False."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train the U-Net on photos and their masks."""

    recipe: RecipeName = "best"
    """Training recipe. best: AdamW, a cosine schedule, augmentation and averaged weights. keras: that of the Keras
    example, including its split and its resizing. pretrained: as best, with a network whose encoder was trained on
    ImageNet; it needs far fewer pairs."""

    images: str | None = None
    """Folder or URI (s3://bucket/prefix) of the photos, or a table: .csv or .parquet with the columns id and uri.
    Default: synthetic pets, generated under --storage."""

    masks: str | None = None
    """Folder or URI of the masks, which have the same names and subfolders as the photos; or a table of them."""

    image_suffix: str = ""
    """Ending of photos' names that masks lack, such as _0000. Photos without it are skipped. Default: an ending of all
    names is found."""

    mask_suffix: str = ""
    """Ending of masks' names that photos lack, such as _mask. Masks without it are skipped. Default: an ending of all
    names is found."""

    data: str | None = None
    """Folder or URI of prepared shards (`petseg prepare shards`), instead of --images and --masks."""

    classes: str = ""
    """Names of the classes in order of their ids, such as "cat,dog,background". Default: those of classes.json in
    --masks, else class_0, class_1, …"""

    num_classes: int | None = None
    """Number of classes, if --classes does not name them. Default: as in classes.json, else 3."""

    label_map: str = ""
    """Class of each raw mask value, such as "0:0,1:1,2:2", or of each colour, such as "#ff0000:cat,#000000:dog".
    Default: that of classes.json, else 1 is class 0, 2 is class 1, and so on. If --classes, --num-classes or
    --label-map is given, classes.json is not used."""

    ignore_label: str = ""
    """Raw mask values (or colours) to ignore in the loss and in the scores, such as "0,254". Default: those of
    classes.json, else 255 (none if the masks are colours)."""

    masks_upright: MasksUpright = "auto"
    """Masks of photos that EXIF turns: yes if they were drawn on the upright photos, no if on the photos as they
    are stored. auto: decide from the sizes of the masks."""

    class_weights: str = ""
    """Weight of each class in the loss, such as "1,1,3"; or "balanced", which weights rare classes more. Default: all
    pixels have the same weight."""

    loss: Loss = "ce"
    """ce: cross-entropy. ce+dice: the sum of cross-entropy and Dice loss, in which each class counts alike, for rare
    classes."""

    image_size: tuple[int, int] = (160, 160)
    """Height and width in pixels to which photos and masks are resized."""

    crop: tuple[int, ...] = ()
    """Train on crops of this height and width in pixels (one number: both) instead of whole photos, for large photos
    with small objects. Prediction then cuts photos into tiles of the same size."""

    scale: float = 1.0
    """Scale of the crops: 0.5 halves the photos' height and width before they are cut."""

    split_file: tuple[str, ...] = ()
    """Files that assign pairs to a split: train=FILE val=FILE [test=FILE], with an id at the start of each line; or one
    FILE with an id and train, val or test on each line. Pairs that are not listed are skipped."""

    val_fraction: float | None = None
    """Fraction of the pairs held out for validation, between 0 and 1. Not used if --split-file lists validation pairs.
    Default: 0.2."""

    val_count: int | None = None
    """Number of pairs held out for validation, instead of --val-fraction. The keras recipe's default is 1000."""

    val_fold: str = ""
    """Hold out one of several equal parts for validation, instead of --val-fraction: 1/5 is the first of five. Runs
    with 1/5, 2/5, … 5/5 and the same --seed validate each pair once."""

    epochs: int = 15
    """Number of passes over the training pairs."""

    batch_size: int | None = None
    """Pairs (or crops) per step over all workers, divided equally among them (rounded down while --num-workers is a
    range). Default: 32 for keras, else 8."""

    accumulate: int = 1
    """Gradient accumulation: split each worker's batch into this many parts, for batches that do not fit its device."""

    learning_rate: float | None = None
    """Learning rate. In the best recipe it is the peak of the schedule. Default: 0.001 for keras, else 0.002."""

    clip_norm: float = 0.0
    """Clip the gradient norm to this value. 0: no clipping."""

    augment: Switch = "auto"
    """Flip, zoom, rotate and recolour the training pairs at random. auto: on for best, off for keras."""

    network: str = ""
    """Network: unet, that of the Keras example; or the name of an encoder of timm, for a U-Net on it. Default: unet, or
    tf_efficientnet_lite0 for pretrained."""

    encoder_weights: str = ""
    """File (path or URI) of weights for the encoder, in timm's names; or none, for random ones. Default: the ImageNet
    weights of tf_efficientnet_lite0 that are installed with petseg."""

    keep_best_by: str = "val_loss"
    """Value that chooses the best checkpoint, of the validation pairs: val_loss, miou, or iou:NAME for a class."""

    init_from: str = ""
    """Run or checkpoint whose weights to start from, instead of random weights."""

    precision: Precision = "auto"
    """Numeric precision of the network. auto: bf16 where the hardware supports it, else fp32."""

    compile: Switch = "auto"
    """Compile the network with torch.compile. auto: on when training on a GPU."""

    seed: int = 1337
    """Random seed of the split, the initial weights, the order of the pairs, their crops and the augmentation."""

    num_workers: tuple[int, ...] = (1,)
    """Number of training processes (DDP): gloo on CPUs, nccl on GPUs. Two numbers: the minimum and the maximum, on a
    cluster whose nodes come and go."""

    use_gpu: bool = False
    """Train on one GPU per worker instead of on CPU cores."""

    cpus_per_worker: int = 0
    """CPU cores (and threads) per worker. 0: an equal part of the cluster's cores, or 1 with --use-gpu."""

    max_failures: int = 3
    """Restart the workers after a failure, at most this many times in a row without a new checkpoint."""

    wait_min: float = 30.0
    """Minutes to wait for an autoscaling cluster to reach the requested size."""

    feed_budget_gb: float = 4.0
    """GB (10^9 bytes) of decoded pairs that a worker may keep on its device. A worker with more data streams it."""

    storage: str = "runs"
    """Folder or URI that holds the runs. On a cluster, all nodes must be able to reach it."""

    name: str = ""
    """Name of this run and of its folder in --storage. Default: the date and time."""

    resume: Resume = False
    """Continue the run --name from its last checkpoint. Its settings are used; --epochs and those about the machine may
    be given again. auto: begin the run if it does not exist. A finished run stays as it is."""

    log_format: LogFormat = "text"
    """Output of the job. json: one JSON object per line, with the numbers of each epoch, for programs that collect
    logs."""

    mlflow: bool = False
    """Also log to MLflow, to the tracking server in MLFLOW_TRACKING_URI."""

    wandb: bool = False
    """Also log to Weights & Biases. Its own environment variables set the key and the project."""

    def __post_init__(self) -> None:
        require(
            (self.images is None) == (self.masks is None),
            "--images and --masks belong together: give both, or neither for the generated pets",
        )
        require(
            self.data is None or self.images is None,
            "--data replaces --images and --masks: give --data alone, or the other two",
        )
        require_classes(self.num_classes, self.image_size)
        require_held_out(self.val_fraction, self.val_count, self.val_fold)
        self._require_crop()
        for flag in ("epochs", "accumulate", "batch_size"):
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")
        for flag in ("cpus_per_worker", "max_failures", "clip_norm", "feed_budget_gb", "wait_min"):
            value = getattr(self, flag)
            require(0 <= value < float("inf"), f"--{flag.replace('_', '-')} {value}: give 0 or more")
        self._require_batches()
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: give 0 to 2^63 - 1")
        require(
            self.learning_rate is None or 0 < self.learning_rate < float("inf"),
            f"--learning-rate {self.learning_rate}: give a value above 0",
        )
        require(
            self.name == self.name.strip() and not set(self.name) & set("/\\\0") and self.name not in (".", ".."),
            f"--name {self.name!r}: it names one folder below --storage, so no slashes, '..' or outer spaces",
        )
        require(
            bool(re.fullmatch(r"val_loss|miou|iou:.+", self.keep_best_by)),
            f"--keep-best-by {self.keep_best_by}: give val_loss, miou, or iou:NAME with the name of a class",
        )
        require(
            not (self.init_from and self.encoder_weights),
            "--init-from, --encoder-weights: both give the weights to start from; give one of them",
        )
        require(bool(self.name) or not self.resume, "--resume needs --name, the run to continue")

    def _require_batches(self) -> None:
        require(
            len(self.num_workers) in (1, 2) and 1 <= self.min_workers <= self.max_workers,
            f"--num-workers {spaced(self.num_workers)}: give one number, or the minimum and the maximum",
        )
        require(
            self.batch_size is None or self.batch_size >= self.max_workers,
            f"--batch-size {self.batch_size}: give at least {self.max_workers}, the (maximum) number of --num-workers",
        )
        require(
            self.batch_size is None or self.elastic or self.batch_size % self.max_workers == 0,
            f"--batch-size {self.batch_size}: it is divided equally among --num-workers {self.max_workers}, "
            "so give a multiple of that",
        )
        parts, size = self.max_workers * self.accumulate, self.crop_hw or self.image_size
        require(
            max(size) > 16 or self.batch_size is None or self.batch_size // parts >= 2,
            f"--{'crop' if self.crop else 'image-size'} {spaced(size)}, --batch-size {self.batch_size}: at this size "
            "batch norm needs 2 pairs per worker and part of --accumulate; raise one of them",
        )

    def _require_crop(self) -> None:
        require(
            len(self.crop) <= 2 and min(self.crop, default=16) >= 16,
            f"--crop {spaced(self.crop)}: give one number or two, height and width, of at least 16",
        )
        require(0.05 <= self.scale <= 8, f"--scale {self.scale:g}: give 0.05 to 8")
        require(bool(self.crop) or self.scale == 1, "--scale needs --crop, the size of the crops")
        require(
            not self.crop or self.recipe != "keras",
            "--crop, --recipe keras: this recipe trains on whole photos; leave --crop out, or give another recipe",
        )
        require(
            not self.crop or self.data is None,
            "--crop, --data: a prepared set has whole photos, already resized; give --images and --masks",
        )
        require(
            not self.crop or self.image_size == TrainConfig.image_size,
            "--crop, --image-size: both give the size of the network's input; give one of them",
        )

    @property
    def crop_hw(self) -> tuple[int, int] | None:
        """Height and width of a crop in pixels, or None for whole photos."""
        return (self.crop[0], self.crop[-1]) if self.crop else None

    @property
    def min_workers(self) -> int:
        """Minimum number of workers."""
        return self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Maximum number of workers."""
        return self.num_workers[-1]

    @property
    def elastic(self) -> bool:
        """True if the number of workers may change during the run."""
        return self.min_workers < self.max_workers
