"""Description of the classes in a folder of masks, stored there as `classes.json`."""

from dataclasses import dataclass

from petseg.config.base import require


@dataclass(frozen=True, kw_only=True)
class ClassesConfig:
    """What the raw values of masks mean. Jobs that read the masks take it as the default of the flags."""

    classes: tuple[str, ...]
    """One name per class id."""

    label_map: str
    """Class of each raw value, as --label-map takes it, such as "1:0,2:1,3:2"."""

    ignore_label: str = ""
    """Raw values to ignore, as --ignore-label takes them."""

    palette: tuple[tuple[int, int, int], ...] = ()
    """One RGB colour, 0..255, per class id. Default: colours that are easy to tell apart."""

    def __post_init__(self) -> None:
        require(len(self.palette) in (0, len(self.classes)), "palette: one colour per class is needed")
        require(all(0 <= c <= 255 for colour in self.palette for c in colour), "palette: give values from 0 to 255")
