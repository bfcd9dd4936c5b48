"""Make the locations in a job's settings absolute."""

import dataclasses

from petseg import storage
from petseg.config.base import SPLITS, ConfigT

LOCATIONS = {
    "images", "masks", "labels", "labelled", "data", "checkpoint", "init_from", "storage", "output", "cache",
}  # fmt: skip
"""Names of the settings that are locations: local paths or URIs."""


def absolute_locations(config: ConfigT) -> ConfigT:
    """Return the settings with absolute locations, so that they are valid in any working directory.

    Raises `InputError` as `storage.absolute` does.
    """
    locations = {name: getattr(config, name, None) for name in LOCATIONS}
    absolute: dict[str, object] = {
        name: tuple(map(storage.absolute, place)) if isinstance(place, tuple) else storage.absolute(place)
        for name, place in locations.items()
        if place
    }
    if (weights := getattr(config, "encoder_weights", "")) not in ("", "none"):
        absolute["encoder_weights"] = storage.absolute(weights)
    if lists := getattr(config, "split_file", ()):
        absolute["split_file"] = tuple(map(_absolute_list, lists))
    return dataclasses.replace(config, **absolute)


def _absolute_list(entry: str) -> str:
    """Return an entry of --split-file, FILE or SPLIT=FILE, with an absolute location."""
    split, equals, location = entry.partition("=")
    if equals and split in SPLITS:
        return f"{split}={storage.absolute(location)}"
    return storage.absolute(entry)
