"""Description of the classes in a folder of masks, stored there as `classes.json`."""

from dataclasses import dataclass

from petseg.config.base import require


@dataclass(frozen=True, kw_only=True)
class ClassesConfig:
    """Names, raw values and colours of the classes in a folder of masks.

    Jobs use it unless --classes, --num-classes or --label-map is given. --ignore-label replaces `ignore_label` only.
    """

    classes: tuple[str, ...]
    """One name per class id."""

    label_map: str
    """Class id of each raw mask value, in the format of --label-map, such as "1:0,2:1,3:2"."""

    ignore_label: str = ""
    """Raw mask values to ignore, in the format of --ignore-label."""

    palette: tuple[tuple[int, int, int], ...] = ()
    """One RGB colour, 0..255, per class id. Default: colours that are easy to tell apart."""

    def __post_init__(self) -> None:
        require(len(self.palette) in (0, len(self.classes)), "palette: give one colour per class")
        require(
            all(0 <= c <= 255 for colour in self.palette for c in colour),
            "palette: colour values must be from 0 to 255",
        )
