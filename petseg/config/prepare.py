"""The settings of the jobs that look at data, get it, or decode it."""

import urllib.parse
from dataclasses import dataclass

from petseg.config.base import Resize, require, require_classes, require_held_out


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
        require(
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
        require_classes(self.num_classes, self.image_size)
        require(self.shard_size is None or self.shard_size >= 1, f"--shard-size {self.shard_size}: give at least 1")

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
        require_classes(self.num_classes, (16, 16))
        require_held_out(self.val_fraction, self.val_count)
