"""Find the photo of each entry of labels, by its path."""

from collections import defaultdict
from collections.abc import Sequence

from petseg.data.annotations.labels import PhotoLabels
from petseg.data.ids import safe_id
from petseg.data.listing import IMAGE_EXTENSIONS
from petseg.errors import InputError

_ENDINGS = {*IMAGE_EXTENSIONS, ".json", ".txt"}


def find_photos(ids: Sequence[str], labels: Sequence[PhotoLabels]) -> tuple[dict[str, PhotoLabels], list[PhotoLabels]]:
    """Return ({id of a photo: its labels}, labels without a photo).

    The paths need not be those of this machine. A photo is found by its name without extension; if several photos have
    this name, by as many of its folders as are needed.

    Raises `InputError` if several photos fit, or if two entries fit one photo.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for row_id in ids:
        by_name[row_id.rpartition("/")[2]].append(row_id)
    found: dict[str, PhotoLabels] = {}
    missing = []
    for entry in labels:
        path = _stem(entry.photo)
        row_id = _find(path, by_name, entry)
        if row_id is None:
            missing.append(entry)
        elif row_id in found:
            raise InputError(
                f"{entry.source} and {found[row_id].source}: both label the photo {row_id}; merge them, or remove one"
            )
        else:
            found[row_id] = entry
    return found, missing


def _stem(path: str) -> str:
    """Return the id that a path would have, without drive letters and schemes."""
    path = path.replace("\\", "/").partition("://")[2] or path.replace("\\", "/")
    path = path.lstrip("/")
    stem, dot, ending = path.rpartition(".")
    return safe_id(stem if dot + ending.lower() in _ENDINGS else path)


def _find(path: str, by_name: dict[str, list[str]], entry: PhotoLabels) -> str | None:
    folders, _, name = path.rpartition("/")
    candidates = by_name.get(name, [])
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    parts = folders.split("/") if folders else []
    scores = {row_id: _common(row_id.split("/")[:-1], parts) for row_id in candidates}
    most = max(scores.values())
    best = [row_id for row_id in candidates if scores[row_id] == most]
    exact = [row_id for row_id in best if row_id == path or path.endswith(f"/{row_id}")]
    if len(exact or best) > 1:
        raise InputError(
            f"{entry.source}: its photo {entry.photo} could be {' or '.join(best[:3])}; give the folder in the labels, "
            "or rename the photos"
        )
    return (exact or best)[0]


def _common(folders: list[str], others: list[str]) -> int:
    """Return how many folders are the same, from the end."""
    count = 0
    for one, other in zip(reversed(folders), reversed(others), strict=False):
        if one != other:
            break
        count += 1
    return count
