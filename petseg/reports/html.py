"""Render a self-contained HTML page from values: tables, charts, pictures. No files, no network, no torch, no Ray.

A list of sections defines the content of a page; `report.html.jinja` defines its look. Charts are SVG. Their colours
come from the page's style sheet, so that they follow the reader's light or dark scheme. jinja2 escapes everything.
"""

import base64
import contextlib
import importlib.metadata
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

import petseg
from petseg.cli.invocation import command_line
from petseg.reports import gallery
from petseg.reports.gallery import Gallery

MAX_PICTURES = 60
"""Maximum number of pictures on a page."""

MAX_PICTURE_BYTES = 200_000
"""Maximum bytes of a picture. `visualize.for_report` usually gives 20 to 40 kB, and a page of 60 takes 3 MB."""

COLOURS = 8
"""Number of line colours in the style sheet. A ninth line reuses the first colour with another dash pattern."""

_PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "pillow", "numpy", "boto3")
_GALLERY_FILTERS = ("address", "page_name", "picture_size", "script_source")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 290, 60, 16, 12, 50
_DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Section with names and their values."""

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Section with a table: columns with heads."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text: bool = False
    """Treat the cells as words. If False, they are numbers, which are right-aligned."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Section with lines over a common x, and their numbers as a table. A value of None leaves a gap."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Section with a bar chart: values of 0 or more, each with its number. An undefined value (None) is a dash."""

    title: str
    values: Mapping[str, float | None]
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Section with pixels by true class (rows) and predicted class (columns), shown as fractions of their row."""

    title: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A JPEG or PNG, as bytes in `content`, with its caption and alternative text."""

    content: bytes
    caption: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Section with pictures, one after the other."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Section with command lines for a shell."""

    title: str
    lines: Sequence[str]


Section = Facts | Table | Curves | Bars | Confusion | Sheet | Gallery | Command


def page(*, title: str, summary: Sequence[tuple[str, str]], sections: Sequence[Section | None]) -> bytes:
    """Return the page as UTF-8, without the sections that are None.

    `summary` holds the (name, value) entries shown at the top.
    """
    sections = [section for section in sections if section is not None]
    _assert_small(sections)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"chart": _chart, "number": number, "data_uri": _data_uri, "shade": _shade}
    environment.filters |= {name: getattr(gallery, name) for name in _GALLERY_FILTERS}
    template = environment.get_template("report.html.jinja")
    kinds = [type(section).__name__.lower() for section in sections]
    assert kinds.count("gallery") <= 1
    anchors = [kind if kind == "gallery" else f"s{index}" for index, kind in enumerate(kinds)]
    return template.render(
        title=title,
        summary=summary,
        sections=list(zip(anchors, kinds, sections, strict=True)),
        colours=COLOURS,
        script=gallery.script() if "gallery" in kinds else "",
    ).encode()


def pages(
    *, title: str, summary: Sequence[tuple[str, str]], sections: Sequence[Section | None]
) -> list[tuple[str, bytes]]:
    """Return the pages of a report whose gallery may be too long for one, each with its file name.

    The first page has all that `page` shows, and the others only their part of the gallery.
    """
    parts = [part for section in sections if isinstance(section, Gallery) for part in gallery.split(section)]
    first = [parts[0] if isinstance(section, Gallery) else section for section in sections]
    result = [(gallery.page_name(1), page(title=title, summary=summary, sections=first))]
    for part in parts[1:]:
        heading = f"{title}, page {part.page_number} of {part.page_count}"
        result.append((gallery.page_name(part.page_number), page(title=heading, summary=[], sections=[part])))
    return result


def versions() -> Facts:
    """Return the versions of Python, petseg, the installed packages it uses, and the system. Imports no package."""
    rows = [("Python", platform.python_version()), ("petseg", petseg.__version__)]
    for name in _PACKAGES:
        # A package may be missing: a Ray head that only has the uploaded code needs no torchvision, for example.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            rows.append((name, importlib.metadata.version(name)))
    return Facts(title="Versions", rows=[*rows, ("system", platform.platform())])


def rerun(job: str) -> Command:
    """Return the command that this process was started with.

    It contains no secret: no job takes one as a flag, and a location that contains one is refused before any report.
    """
    return Command(title="Repeat this job", lines=[command_line(job, sys.argv[1:])])


def number(value: float | None) -> str:
    """Format a value for display: three or four significant digits, or a dash if it is undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (value == round(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class _Line:
    name: str
    points: list[str]
    """`points` attributes of the polylines: one for each stretch without a gap."""
    dots: list[tuple[float, float]]
    """Points that stand alone between gaps."""
    colour: int
    dash: str


@dataclass(frozen=True)
class _Chart:
    """Coordinates of a chart in its SVG."""

    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = _HEIGHT - _BOTTOM
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    lines: list[_Line] = field(default_factory=list)


def _chart(curves: Curves) -> _Chart:
    values = [y for line in curves.lines.values() for y in line if y is not None and math.isfinite(y)]
    x_low, x_high = (min(curves.x), max(curves.x)) if curves.x else (0.0, 1.0)
    y_ticks, x_ticks = _ticks(min(values, default=0.0), max(values, default=1.0)), _ticks(x_low, x_high, whole=True)
    y_low, y_high = y_ticks[0], y_ticks[-1]
    empty = _Chart()

    def to_svg_x(x: float) -> float:
        fraction = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return round(empty.left + fraction * (empty.right - empty.left), 1)

    def to_svg_y(y: float) -> float:
        return round(empty.bottom - (y - y_low) / (y_high - y_low) * (empty.bottom - empty.top), 1)

    lines = []
    for index, (name, line) in enumerate(curves.lines.items()):
        stretches: list[list[tuple[float, float]]] = [[]]
        for x, y in zip(curves.x, line, strict=True):
            if y is None or not math.isfinite(y):
                stretches.append([])
            else:
                stretches[-1].append((to_svg_x(x), to_svg_y(y)))
        points = [" ".join(f"{x},{y}" for x, y in stretch) for stretch in stretches if len(stretch) > 1]
        dots = [stretch[0] for stretch in stretches if len(stretch) == 1]
        lines.append(_Line(name, points, dots, index % COLOURS, _DASHES[(index // COLOURS + index) % len(_DASHES)]))
    inside = [x for x in x_ticks if x_low <= x <= x_high]
    return _Chart(
        x_ticks=[(to_svg_x(x), number(x)) for x in inside],
        y_ticks=[(to_svg_y(y), number(y)) for y in y_ticks],
        lines=lines,
    )


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return about five round numbers, the first not above `low` and the last not below `high`."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _data_uri(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _assert_small(sections: Sequence[Section]) -> None:
    """Check that the pictures of a page are not too many or too large for a browser."""
    pictures = [picture.content for section in sections if isinstance(section, Sheet) for picture in section.pictures]
    assert len(pictures) <= MAX_PICTURES
    items = [item for section in sections if isinstance(section, Gallery) for item in section.items]
    assert len(items) <= gallery.MAX_ITEMS
    pictures += [content for item in items for content in (item.photo, *item.masks.values())]
    assert all(len(content) <= MAX_PICTURE_BYTES for content in pictures)


def _shade(count: int, row: Sequence[int]) -> float:
    """Return the fraction of its row that a cell of the confusion matrix holds."""
    return count / sum(row) if sum(row) else 0.0
