"""Description of a prepared set, saved with it."""

from dataclasses import dataclass

from petseg.config.base import MasksUpright, Resize


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Description of a prepared set and of its values, stored as its `dataset.json`."""

    format: int
    """Version of the format. It is increased when the same settings would give different bytes than before."""

    images: str
    """Absolute location of the source folder of the photos."""

    masks: str
    """Absolute location of the source folder of the masks."""

    source_sha256: str
    """SHA-256 of the names of all pairs found in the source folders."""

    image_size: tuple[int, int]
    """Height and width in pixels of the prepared photos and masks."""

    resize: Resize
    """Method that resized the photos to `image_size`."""

    label_map: str
    """Mapping from raw mask values to class ids, such as "1:0,2:1,3:2"."""

    masks_upright: MasksUpright
    """Flag --masks-upright that the set was prepared with."""

    class_names: tuple[str, ...]
    """One name per class id."""

    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour, 0..255, per class id."""

    shard_size: int
    """Pairs per Parquet file, counted before unusable pairs were skipped."""

    rows: int = 0
    """Pairs in all Parquet files together. This field and those below it are set once the files are written."""

    class_pixels: tuple[int, ...] = ()
    """Number of pixels of each class in all masks together."""

    left_out: tuple[str, ...] = ()
    """Skipped pairs: the file of each, and the reason."""

    files: tuple[str, ...] = ()
    """Names of the Parquet files, in order."""

    file_rows: tuple[int, ...] = ()
    """Number of pairs in each of `files`."""

    manifest_sha256: str = ""
    """SHA-256 of the file that lists the pairs."""
