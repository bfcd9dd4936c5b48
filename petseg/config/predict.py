"""The settings of the jobs that are given a network."""

from dataclasses import dataclass
from typing import Literal

from petseg.config.base import Precision, require, spaced

ExportFormat = Literal["onnx", "torch"]


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
            require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")
        require(0 <= self.wait_min < float("inf"), f"--wait-min {self.wait_min}: give 0 or more")
        require(
            self.max_errors is None
            or 0 <= self.max_errors < 1
            or (1 <= self.max_errors < float("inf") and self.max_errors % 1 == 0),
            f"--max-errors {self.max_errors}: give a whole number, or a share between 0 and 1",
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
            require(value is None or value >= 1, f"--{flag.replace('_', '-')} {value}: give at least 1")

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
        require(
            0 < len(self.formats) == len(set(self.formats)),
            f"--formats {' '.join(self.formats)}: give onnx, torch or both",
        )
