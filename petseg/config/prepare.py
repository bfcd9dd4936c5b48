"""Settings of the jobs that download, check or decode data."""

import urllib.parse
from dataclasses import dataclass

from petseg.config.base import LogFormat, MasksUpright, Resize, require, require_classes, require_held_out


@dataclass(frozen=True, kw_only=True)
class OxfordConfig:
    """Download the Oxford-IIIT Pet dataset (800 MB) and unpack it into images/ and masks/."""

    output: str
    """Folder or URI for the photos, the masks and the official split lists. Created if missing."""

    url: str = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
    """Address of the folder that holds images.tar.gz and annotations.tar.gz."""

    cache: str = "~/.cache/petseg"
    """Local folder for the downloaded archives. An interrupted download resumes from it."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        require(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            f"--url {self.url}: give an address that begins with https:// or http://",
        )


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Decode photos and their masks once and for all, into Parquet files that training reads."""

    images: str
    """Folder or URI of the photos, or a table: .csv or .parquet with the columns id and uri."""

    masks: str
    """Folder or URI of the masks, which have the same names and subfolders as the photos; or a table of them."""

    output: str
    """Folder or URI for the prepared set. Created if missing."""

    image_suffix: str = ""
    """Ending of photos' names that masks lack, such as _0000. Photos without it are skipped. Default: an ending of all
    names is found."""

    mask_suffix: str = ""
    """Ending of masks' names that photos lack, such as _mask. Masks without it are skipped. Default: an ending of all
    names is found."""

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

    image_size: tuple[int, int] = (160, 160)
    """Height and width in pixels to which photos and masks are resized."""

    resize: Resize = "antialias"
    """Method that resizes photos. Choose nearest for the keras recipe, which resizes by nearest pixel."""

    shard_size: int | None = None
    """Pairs per Parquet file. Each file is prepared as one task. Default: as many pairs as fill 32 MiB of pixels."""

    skip_bad: bool = False
    """Skip and list pairs that cannot be used, instead of stopping with an error."""

    log_format: LogFormat = "text"
    """Output of the job. json: one JSON object per line, with the numbers of each shard, for programs that collect
    logs."""

    def __post_init__(self) -> None:
        require_classes(self.num_classes, self.image_size)
        require(self.shard_size is None or self.shard_size >= 1, f"--shard-size {self.shard_size}: give at least 1")

    @property
    def pairs_per_shard(self) -> int:
        """Value of `shard_size`, with the default resolved. It determines the memory that a task needs."""
        return self.shard_size or max(1, 2**25 // (self.image_size[0] * self.image_size[1] * 4))


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Check photos and their masks before training: report their contents, files that training would reject,
    duplicates and, with --checkpoint, label errors."""

    images: str
    """Folder or URI of the photos, or a table: .csv or .parquet with the columns id and uri."""

    masks: str
    """Folder or URI of the masks, which have the same names and subfolders as the photos; or a table of them."""

    output: str
    """Folder or URI for the report. Created if missing."""

    overwrite: bool = False
    """Replace the report in --output."""

    image_suffix: str = ""
    """Ending of photos' names that masks lack, such as _0000. Photos without it are skipped. Default: an ending of all
    names is found."""

    mask_suffix: str = ""
    """Ending of masks' names that photos lack, such as _mask. Masks without it are skipped. Default: an ending of all
    names is found."""

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

    split_file: tuple[str, ...] = ()
    """Files that assign pairs to train, val and test, in the same form as for training."""

    val_fraction: float | None = None
    """Fraction of the pairs that training would hold out for validation, between 0 and 1. Not used if --split-file
    lists validation pairs. Default: 0.2."""

    val_count: int | None = None
    """Number of pairs that training would hold out for validation, instead of --val-fraction."""

    seed: int = 1337
    """Random seed of the split, as in training."""

    checkpoint: tuple[str, ...] = ()
    """Runs or checkpoints, to find label errors: masks are ranked by how much the networks disagree with them. A pair
    is scored by the networks that were not trained on it, so give the runs of all folds of `petseg train --val-fold`.
    """

    use_gpu: bool = False
    """Run the networks of --checkpoint on a GPU."""

    def __post_init__(self) -> None:
        require(bool(self.checkpoint) or not self.use_gpu, "--use-gpu needs --checkpoint, whose networks would use it")
        require_classes(self.num_classes, (16, 16))  # any valid size: this job has no --image-size
        require_held_out(self.val_fraction, self.val_count)
