"""Settings of a prediction."""

from dataclasses import dataclass

from petseg.config.base import MAX_PIXELS, LogFormat, Precision, default_batch_size, require, spaced


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Write a mask for every photo of a folder, as Parquet and PNG."""

    checkpoint: str
    """Path or URI of a run (its best checkpoint is used), or of one checkpoint in it."""

    images: str
    """Folder or URI of the photos, one photo, or a table: .csv or .parquet with the columns id and uri."""

    output: str
    """Folder or URI for the masks. Created if missing."""

    overwrite: bool = False
    """Replace the results of another job in --output (other settings, checkpoint or photo names). Results of this same
    job are kept and continued."""

    append: bool = False
    """Continue an output with the photos that are new or have changed since. Without it, other photos are refused."""

    retry_errors: bool = False
    """Predict photos that have failed again. Their rows are replaced."""

    limit: int | None = None
    """Use only this many photos, spread evenly over the sorted names. Useful for a quick trial."""

    max_errors: float | None = None
    """Stop after more than this many failed photos (1 or more), or this fraction of all (below 1). Default: never."""

    max_pixels: int = MAX_PIXELS
    """Do not decode photos with more pixels than this; their rows contain an error instead."""

    decode_timeout: float = 300.0
    """Give up a photo if decoding it takes longer than this many seconds, twice: its row contains an error instead.
    This is for decoders that hang; the slowest photos need up to 40 s on an idle core."""

    tile: tuple[int, ...] = ()
    """Cut larger photos into tiles of this height and width in pixels (one number: both). Each tile is predicted like
    a photo; overlapping parts are blended. Default: the size and scale of the crops that the network was trained on;
    no tiles if it was trained on whole photos."""

    tile_overlap: int | None = None
    """Minimum overlap of neighbouring tiles in pixels. Default: a quarter of the tile's shorter side."""

    png: bool = True
    """Write masks/<id>.png beside the Parquet files."""

    overlay: bool = False
    """Write overlays/<id>.jpg: the photo, at most 1024 pixels a side, with its mask drawn over it."""

    probabilities: bool = False
    """Save the probability of each class, times 255, as grey PNGs in the column probability_pngs."""

    coco_rle: bool = False
    """Save the mask of each class as COCO run-length encoding in the column coco_rle."""

    shard_size: int = 256
    """Photos per Parquet file. A killed job loses only its unfinished files and repeats them."""

    batch_size: int | None = None
    """Photos or tiles per forward pass. Lower it if memory runs out. Default: 8 on a CPU, 128 on a GPU."""

    precision: Precision = "auto"
    """Numeric precision of the network. auto: bf16 where the hardware supports it, else fp32."""

    num_workers: int = 1
    """Number of prediction processes, each with its own copy of the model."""

    use_gpu: bool = False
    """Use one GPU per worker."""

    wait_min: float = 30.0
    """Minutes to wait for an autoscaling cluster to reach the requested size."""

    log_format: LogFormat = "text"
    """Output of the job. json: one JSON object per line, with the numbers of each shard, for programs that collect
    logs."""

    def __post_init__(self) -> None:
        for flag in ("shard_size", "batch_size", "num_workers", "max_pixels", "limit"):
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")
        for flag, given in (("--append", self.append), ("--retry-errors", self.retry_errors)):
            require(not (given and self.overwrite), f"{flag} and --overwrite: give one of them")
        require(1 <= self.decode_timeout <= 86400, f"--decode-timeout {self.decode_timeout:g}: give 1 to 86400 seconds")
        require(0 <= self.wait_min < float("inf"), f"--wait-min {self.wait_min}: give 0 or more")
        require(
            self.max_errors is None
            or 0 <= self.max_errors < 1
            or (1 <= self.max_errors < float("inf") and self.max_errors % 1 == 0),
            f"--max-errors {self.max_errors}: give a whole number, or a fraction between 0 and 1",
        )
        require(
            len(self.tile) <= 2 and min(self.tile, default=16) >= 16,
            f"--tile {spaced(self.tile)}: give one number or two, height and width, of at least 16",
        )
        require(bool(self.tile) or self.tile_overlap is None, "--tile-overlap needs --tile, the size of a tile")
        if self.tile:
            shorter = min(self.tile)
            require(
                self.tile_overlap is None or 0 <= self.tile_overlap < shorter,
                f"--tile-overlap {self.tile_overlap}: give 0 to {shorter - 1}, less than a side of a tile",
            )

    @property
    def photos_per_pass(self) -> int:
        """Value of `batch_size`, with the default resolved."""
        return default_batch_size(self.batch_size, self.use_gpu)
