"""What all settings share, those that travel with results, and their JSON form.

Only values and their checks live here and in `*_config`: one frozen dataclass per job. Nothing heavy is imported, so
that `--help` is instant, and nothing is read from the environment.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from petseg.errors import InputError

Precision = Literal["auto", "bf16", "fp32"]


Resize = Literal["antialias", "nearest"]
"""How photos are brought to the network's size; masks always by their nearest pixel."""


def require(condition: bool, message: str) -> None:
    """Raise `InputError` with the message, unless the condition holds."""
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a network is and what its numbers mean: it travels with every checkpoint, and prediction obeys it."""

    num_classes: int
    """Number of classes."""

    image_size: tuple[int, int]
    """Height and width in pixels to which photos are resized for the network."""

    class_names: tuple[str, ...]
    """One name per class id."""

    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour, 0..255, per class id."""

    label_map: str
    """Raw mask values and their class ids, such as "1:0,2:1,3:2"."""

    input_scale: float = 1 / 127.5
    """The network sees `pixel * input_scale + input_offset`, with pixel in 0..255."""

    input_offset: float = -1.0
    """See `input_scale`; the two defaults map 0..255 to -1..1."""

    resize: Resize = "antialias"
    """How photos are resized for the network."""

    def __post_init__(self) -> None:
        require(len(self.class_names) == self.num_classes, "class_names: one name per class is needed")
        require(len(self.palette) == self.num_classes, "palette: one colour per class is needed")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What a prepared set is and what its numbers mean: its `dataset.json`."""

    format: int
    """Raised when the same settings would give other bytes than before."""

    images: str
    """Absolute location of the folder that the photos came from."""

    masks: str
    """Absolute location of the folder that the masks came from."""

    source_sha256: str
    """Of the names of all pairs that were found there."""

    image_size: tuple[int, int]
    """Height and width in pixels."""

    resize: Resize
    """How photos were brought to that size."""

    label_map: str
    """Raw mask values and their class ids, such as "1:0,2:1,3:2"."""

    class_names: tuple[str, ...]
    """One name per class id."""

    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour, 0..255, per class id."""

    shard_size: int
    """Pairs per Parquet file, before bad ones were left out."""

    rows: int = 0
    """Pairs in all files. This and all that follows is known once they are written."""

    class_pixels: tuple[int, ...] = ()
    """Pixels of each class in all masks."""

    left_out: tuple[str, ...] = ()
    """Pairs that could not be used: which file, and why."""

    files: tuple[str, ...] = ()
    """Names of the Parquet files, in order."""

    file_rows: tuple[int, ...] = ()
    """Pairs in each of them."""

    manifest_sha256: str = ""
    """Of the file that names the pairs."""


class Config(Protocol):
    """Any of the settings: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


ConfigT = TypeVar("ConfigT", bound=Config)


def to_json(config: Config) -> str:
    """The settings as indented JSON text, one key per field."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(cls: type[ConfigT], text: str | bytes, source: str) -> ConfigT:
    """The settings that `to_json` wrote.

    Raises `InputError`, naming `source`, where the text is not JSON, a key is unknown or a value has another type.
    """
    try:
        values = json.loads(text)
    except ValueError as error:  # also bytes that are not UTF-8
        raise InputError(f"{source}: not JSON ({error}); was it edited, or cut short?") from error
    settings = typed_values(cls, values, source)
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    missing = sorted(required - set(settings))
    require(not missing, f"{source}: the setting {', '.join(missing)} is missing")
    return cls(**settings)


def typed_values(cls: type[Config], values: Any, source: str) -> dict[str, Any]:
    """Some or all of the settings of a class, by name, from the object that a JSON file holds.

    Raises `InputError`, naming `source`, where it is no object, a key is unknown or a value has another type.
    """
    require(isinstance(values, dict), f"{source}: an object with one key per setting is expected")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    some = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
    require(not unknown, f"{source}: unknown setting {some}; was it written by another job, or a newer petseg?")
    return {key: _typed(value, hints[key], f"{source}: {key}") for key, value in values.items()}


def _typed(value: Any, hint: Any, source: str) -> Any:
    """A JSON value as the field's type: lists become tuples, all else must already fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(_typed(v, kind, source) for v, kind in zip(value, kinds, strict=True))
    elif origin is Literal:
        if value in args:
            return value
    elif origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _typed(value, args[0], source)
    elif type(value) is hint or (hint is float and type(value) is int):
        return hint(value)
    raise InputError(f"{source}: {value!r} is not a value this setting can have")


def require_held_out(val_fraction: float | None, val_count: int | None) -> None:
    """Refuse a share or a number of pairs that cannot be held out, or both."""
    require(
        val_fraction is None or 0 < val_fraction < 1, f"--val-fraction {val_fraction}: give a value between 0 and 1"
    )
    require(
        val_fraction is None or val_count is None,
        f"--val-fraction {val_fraction}, --val-count {val_count}: give one of them",
    )
    require(val_count is None or val_count >= 1, f"--val-count {val_count}: give at least 1")


def require_classes(num_classes: int | None, image_size: tuple[int, int]) -> None:
    """Refuse a number of classes, or an image size in pixels, that no network can have."""
    require(num_classes is None or 2 <= num_classes <= 254, f"--num-classes {num_classes}: give 2 to 254")
    require(min(image_size) >= 16, f"--image-size {spaced(image_size)}: both must be at least 16")


def spaced(size: tuple[int, ...]) -> str:
    """Numbers as they are given to a flag."""
    return " ".join(map(str, size))
