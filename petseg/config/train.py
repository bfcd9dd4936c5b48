"""The settings of a training run."""

from dataclasses import dataclass
from typing import Literal

from petseg.config.base import Precision, require, require_classes, require_held_out, spaced

Switch = Literal["auto", "on", "off"]


RecipeName = Literal["best", "keras"]


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
    """Folder or URI of prepared shards (`petseg prepare shards`), instead of --images and --masks."""

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
        require(
            (self.images is None) == (self.masks is None),
            "--images and --masks belong together: give both, or neither for the generated pets",
        )
        require(self.data is None or self.images is None, "--data is instead of --images and --masks: give either")
        require_classes(self.num_classes, self.image_size)
        require_held_out(self.val_fraction, self.val_count)
        for flag in ("epochs", "accumulate", "batch_size"):
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")
        for flag in ("cpus_per_worker", "max_failures", "clip_norm", "feed_budget_gb", "wait_min"):
            value = getattr(self, flag)
            require(0 <= value < float("inf"), f"--{flag.replace('_', '-')} {value}: give 0 or more")
        require(
            len(self.num_workers) in (1, 2) and 1 <= self.min_workers <= self.max_workers,
            f"--num-workers {spaced(self.num_workers)}: give one number, or the least and the most",
        )
        require(
            self.batch_size is None
            or (self.batch_size >= self.max_workers and (self.elastic or self.batch_size % self.max_workers == 0)),
            f"--batch-size {self.batch_size}: it is shared equally by --num-workers {self.max_workers}, "
            "so give a multiple of that",
        )
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: give 0 to 2^63 - 1")
        require(
            self.learning_rate is None or 0 < self.learning_rate < float("inf"),
            f"--learning-rate {self.learning_rate}: give a value above 0",
        )
        require(
            self.name == self.name.strip() and not set(self.name) & set("/\\\0") and self.name not in (".", ".."),
            f"--name {self.name!r}: it names one folder below --storage, so no slashes, '..' or outer spaces",
        )
        require(bool(self.name) or not self.resume, "--resume needs --name, the run to go on with")

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
