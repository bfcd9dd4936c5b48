"""Gallery section of a report page: photos under their masks, to sort, filter and go through. No torch, no Ray.

`html.py` renders it with `gallery.html.jinja`. `gallery.js` acts on the page; without JavaScript all photos are shown.
"""

import base64
import dataclasses
import hashlib
import io
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from petseg import files

MAX_ITEMS = 200
"""Maximum number of photos of a gallery on one page. A page with 24 pets takes 0.5 MB."""

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_LINKED_SCHEMES = ("http://", "https://", "file://")


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """A photo with its masks. `visualize.layers_for_report` makes them small enough for a page."""

    id: str
    photo: bytes
    """JPEG."""
    masks: Mapping[str, bytes]
    """PNGs of the photo's size, by a name such as "label" or "prediction". The first is shown at first."""
    score: float | None = None
    """Value to sort by. Photos without a score come last."""
    classes: Sequence[str] = ()
    """Names of the classes in the photo, by which the gallery is filtered."""
    caption: str = ""
    link: str = ""
    """Location of the photo file, as a path or a URI. It is a link if a browser can open it, and otherwise text."""

    def __post_init__(self) -> None:
        assert {picture_size(mask) for mask in self.masks.values()} <= {picture_size(self.photo)}


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Section with photos under their masks. A page has at most one, of at most `MAX_ITEMS` photos; see `split`."""

    title: str
    items: Sequence[GalleryItem]
    score_name: str = ""
    """Name of the scores, such as "confidence"."""
    note: str = ""
    colours: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    """Colours (RGB) of the classes in the masks, for the legend. It shows the classes that a photo has."""
    page_number: int = 1
    page_count: int = 1

    @property
    def mask_names(self) -> list[str]:
        """Names of the masks that any photo has."""
        return list(dict.fromkeys(name for item in self.items for name in item.masks))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that any photo has, those of `colours` first."""
        found = {name for item in self.items for name in item.classes}
        return [*(name for name in self.colours if name in found), *sorted(found - set(self.colours))]

    @property
    def has_scores(self) -> bool:
        """True if any photo has a score."""
        return any(item.score is not None for item in self.items)


def split(gallery: Gallery) -> list[Gallery]:
    """Return the parts of a gallery, in its order: one per page, with at most `MAX_ITEMS` photos each."""
    starts = range(0, max(1, len(gallery.items)), MAX_ITEMS)
    return [
        dataclasses.replace(
            gallery, items=gallery.items[start : start + MAX_ITEMS], page_number=number, page_count=len(starts)
        )
        for number, start in enumerate(starts, 1)
    ]


def page_name(number: int) -> str:
    """Return the file name of a page of a report: report.html, report-2.html, …"""
    stem, suffix = files.REPORT.split(".")
    return files.REPORT if number == 1 else f"{stem}-{number}.{suffix}"


def address(location: str) -> str:
    """Return the address for a link to a file; empty if a browser cannot open it, or should not (`javascript:`)."""
    if location.lower().startswith(_LINKED_SCHEMES):
        return location
    if _SCHEME.match(location):
        return ""
    path = urllib.parse.quote(location)  # "#", "?" and "%" are letters of a path
    return f"file://{path}" if location.startswith("/") else path


def script() -> str:
    """Return the script of a page with a gallery."""
    return (Path(__file__).parent / "gallery.js").read_text(encoding="utf-8")


def script_source(text: str) -> str:
    """Return the source of a script in a Content-Security-Policy, which allows this script alone."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def picture_size(content: bytes) -> tuple[int, int]:
    """Return the width and the height of a JPEG or PNG in pixels."""
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
        return picture.size
