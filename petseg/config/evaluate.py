"""Settings of an evaluation."""

from dataclasses import dataclass

from petseg.config.base import MAX_PIXELS, LogFormat, MasksUpright, Precision, default_batch_size, require


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a network, or masks that it has predicted, on photos and their masks, and show the worst pairs."""

    checkpoint: str = ""
    """Path or URI of a run (its best checkpoint is used), or of one checkpoint in it."""

    from_: str = ""
    """Score these masks instead of a network: the output of a prediction, or a folder of masks with the names of the
    photos, also from another program."""

    images: str
    """Folder or URI of the photos, or a table: .csv or .parquet with the columns id and uri."""

    masks: str
    """Folder or URI of the masks, which have the same names and subfolders as the photos; or a table of them."""

    output: str
    """Folder or URI for the scores and the pictures. Created if missing."""

    overwrite: bool = False
    """Replace the scores and the pictures in --output."""

    image_suffix: str = ""
    """Ending of photos' names that masks lack, such as _0000. Photos without it are skipped. Default: an ending of all
    names is found."""

    mask_suffix: str = ""
    """Ending of masks' names that photos lack, such as _mask. Masks without it are skipped. Default: an ending of all
    names is found."""

    label_map: str = ""
    """Class id of each raw mask value, such as "0:0,1:1,2:2". Default: the map the network was trained with. The value
    255 is ignored unless it is mapped here."""

    masks_upright: MasksUpright = "auto"
    """Masks of photos that EXIF turns: yes if they were drawn on the upright photos, no if on the photos as they
    are stored. auto: decide from the sizes of the masks."""

    exclude_class: str = ""
    """Report a second set of scores without this class. Its pixels are ignored, and each other pixel gets the most
    probable of the remaining classes."""

    limit: int | None = None
    """Use only this many pairs, spread evenly over the sorted names. Useful for a quick trial."""

    max_pixels: int = MAX_PIXELS
    """Do not decode photos or masks with more pixels than this. The pair is listed with an error instead."""

    batch_size: int | None = None
    """Photos per forward pass. Lower it if memory runs out. Default: 8 on a CPU, 128 on a GPU."""

    precision: Precision = "auto"
    """Numeric precision of the network. auto: bf16 where the hardware supports it, else fp32."""

    num_workers: int = 1
    """Number of processes that score, each with its own copy of the model. With several, or with RAY_ADDRESS, the job
    runs on Ray."""

    use_gpu: bool = False
    """Use one GPU per worker."""

    wait_min: float = 30.0
    """Minutes to wait for an autoscaling cluster to reach the requested size."""

    log_format: LogFormat = "text"
    """Output of the job. json: one JSON object per line, with the numbers of each shard, for programs that collect
    logs."""

    def __post_init__(self) -> None:
        for flag in ("batch_size", "max_pixels", "limit", "num_workers"):
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")
        require(0 <= self.wait_min < float("inf"), f"--wait-min {self.wait_min}: give 0 or more")
        require(bool(self.checkpoint) != bool(self.from_), "--checkpoint and --from: give one of them")
        for flag, value in (("--exclude-class", self.exclude_class), ("--use-gpu", self.use_gpu)):
            require(not (value and self.from_), f"{flag} needs a network: leave it out, or give --checkpoint")

    @property
    def photos_per_pass(self) -> int:
        """Photos per forward pass: `batch_size`, or the default for the device."""
        return default_batch_size(self.batch_size, self.use_gpu)
