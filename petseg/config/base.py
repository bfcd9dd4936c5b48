"""Code that all settings share: checks of their values, and their JSON form.

This package holds only values and their checks: one frozen dataclass per job. It imports nothing heavy, so that
`--help` is instant. It reads nothing from the environment.
"""

import dataclasses
import json
import re
import types
import typing
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from petseg.errors import InputError

MAX_PIXELS = 128_000_000
"""Default limit on the pixels of a photo or a mask: 128 megapixels, 400 MB once decoded."""

SPLITS = ("train", "val", "test")
"""Names of the splits."""

Precision = Literal["auto", "bf16", "fp32"]
"""Numeric precision of the network; "auto" is resolved by `models.precision`."""

LogFormat = Literal["text", "json"]
"""Value of --log-format."""

MasksUpright = Literal["auto", "yes", "no"]
"""Value of --masks-upright. For "auto", `data.orientation` decides from the sizes of the masks."""

Resize = Literal["antialias", "nearest"]
"""Method that resizes photos to the network's input size. Masks are always resized by nearest pixel."""


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


class Config(Protocol):
    """Type of every settings class: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


ConfigT = TypeVar("ConfigT", bound=Config)


def to_json(config: Config) -> str:
    """Return the settings as indented JSON text, with one key per field."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(cls: type[ConfigT], text: str | bytes, source: str) -> ConfigT:
    """Return the settings that `to_json` wrote.

    Raises `InputError`, naming `source`, if the text is not JSON, or a key is unknown or missing, or a value has the
    wrong type.
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
    """Return the settings in `values`, the content of a JSON file, by name. Settings of `cls` may be missing.

    Raises `InputError`, naming `source`, if `values` is not an object, a key is unknown or a value has the wrong type.
    """
    require(isinstance(values, dict), f"{source}: an object with one key per setting is expected")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    some = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
    require(not unknown, f"{source}: unknown setting {some}; was it written by another job, or a newer petseg?")
    return {key: _typed(value, hints[key], f"{source}: {key}") for key, value in values.items()}


def _typed(value: Any, hint: Any, source: str) -> Any:
    """Return a JSON value as the field's type. Lists become tuples, ints become floats; other values must fit."""
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
    raise InputError(f"{source}: {value!r} is not a valid value")


def require_held_out(val_fraction: float | None, val_count: int | None, val_fold: str = "") -> None:
    """Raise `InputError` if one of the settings of the pairs to hold out is out of range, or if several are given."""
    require(
        val_fraction is None or 0 < val_fraction < 1, f"--val-fraction {val_fraction}: give a value between 0 and 1"
    )
    require(
        val_fraction is None or val_count is None,
        f"--val-fraction {val_fraction}, --val-count {val_count}: give one of them",
    )
    require(val_count is None or val_count >= 1, f"--val-count {val_count}: give at least 1")
    if val_fold:
        parse_fold(val_fold)
        require(
            val_fraction is None and val_count is None,
            f"--val-fold {val_fold}: it replaces --val-fraction and --val-count; leave them out",
        )


def parse_fold(val_fold: str) -> tuple[int, int]:
    """Return (number of the fold from 1, number of folds) from text such as "1/5". Raises `InputError`."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", val_fold)
    fold, folds = (int(found[1]), int(found[2])) if found else (0, 0)
    require(
        1 <= fold <= folds and folds >= 2,
        f"--val-fold {val_fold}: give a fold and the number of folds, such as 1/5 to 5/5",
    )
    return fold, folds


def require_classes(num_classes: int | None, image_size: tuple[int, int]) -> None:
    """Raise `InputError` unless there are 2 to 254 classes (or None) and both sides have at least 16 pixels."""
    require(num_classes is None or 2 <= num_classes <= 254, f"--num-classes {num_classes}: give 2 to 254")
    require(min(image_size) >= 16, f"--image-size {spaced(image_size)}: give at least 16 for both")


def spaced(size: tuple[int, ...]) -> str:
    """Return the numbers separated by spaces, as they are typed after a flag."""
    return " ".join(map(str, size))


def default_batch_size(batch_size: int | None, use_gpu: bool) -> int:
    """Return the photos per forward pass: the given number, or the default: 128 on a GPU, 8 on a CPU.

    On a CPU core, 16 is no faster than 8, and 32 is slower, because such a batch no longer fits its caches.
    """
    return batch_size or (128 if use_gpu else 8)
