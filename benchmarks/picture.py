"""Draw the main figures of speed, docs/speed.svg, and the scores by the number of labelled pairs, docs/labels.svg.

Both come from the tables of RESULTS.md.

python benchmarks/picture.py
"""

import html
import math
import re
from dataclasses import dataclass

import beside

RESULTS = beside.ROOT / "benchmarks" / "RESULTS.md"
PICTURE = beside.ROOT / "docs" / "speed.svg"
CURVE = beside.ROOT / "docs" / "labels.svg"

_WIDTH, _LABEL, _BAR, _ROW, _TITLE = 760, 190, 430, 24, 40
_OURS, _PEER, _TEXT, _FAINT = "#2f6fde", "#b8bec8", "#1f2328", "#59636e"


@dataclass(frozen=True)
class Panel:
    """Bar chart of one row of a table."""

    title: str
    heading: str
    """Heading of the section in RESULTS.md."""
    row: str
    """Content of the first cell of the row."""
    bars: dict[str, str]
    """Labels of the bars, by the name of their column. The first bar is petseg's."""


PANELS = (
    Panel(
        "Training on two CPU cores, later epochs: images per second",
        "Training on a CPU, beside Keras",
        "later epochs, images/s",
        {"keras recipe": "petseg", "Keras": "Keras"},
    ),
    Panel(
        "From files to batches, 500 × 375, later epochs: pairs per second",
        "Ingest",
        "later epochs, pairs/s",
        {
            "ours": "petseg",
            "DataLoader": "torch DataLoader",
            "DataLoader, torchvision": "… with torchvision",
            "read_images": "ray.data.read_images",
        },
    ),
    Panel(
        "A folder of 3,000 photos to masks, after the start: photos per second",
        "Prediction, beside a plain script and Keras",
        "after it, photos/s",
        {"jobs/predict.py": "petseg", "plain PyTorch": "plain PyTorch", "Keras": "Keras"},
    ),
)


CURVE_HEADING = "Masks, by recipe and number of pairs"


def main() -> None:
    results = RESULTS.read_text()
    for file, content in ((PICTURE, draw(results)), (CURVE, draw_curve(results))):
        file.write_text(content)
        print(file)


def draw(results: str) -> str:
    """Return the SVG. Its background is white, so that it is readable on a dark page, too."""
    parts, y = [], 8
    for panel in PANELS:
        parts.append(_text(16, y + 24, panel.title, f'font-weight="600" fill="{_TEXT}"'))
        y += _TITLE
        values = {name: value(results, panel.heading, panel.row, column) for column, name in panel.bars.items()}
        ours, highest = next(iter(values.values())), max(values.values())
        for number, (name, rate) in enumerate(values.items()):
            width = max(2, round(_BAR * rate / highest))
            colour = _OURS if number == 0 else _PEER
            parts.append(_text(_LABEL - 10, y + 16, name, f'text-anchor="end" fill="{_TEXT}"'))
            parts.append(f'<rect x="{_LABEL}" y="{y + 3}" width="{width}" height="18" rx="3" fill="{colour}"/>')
            times = "" if number == 0 else f"  (petseg {ours / rate:.{0 if ours / rate > 10 else 1}f}×)"
            parts.append(_text(_LABEL + width + 8, y + 16, f"{rate:,.0f}{times}", f'fill="{_FAINT}"'))
            y += _ROW
        y += 10
    return _svg(y, parts)


def draw_curve(results: str) -> str:
    """Return the SVG of mIoU over the number of labelled pairs, on a logarithmic axis, a line for each recipe."""
    # A set, because another table of the section has the same rows.
    counts = sorted({int(count) for count in re.findall(r"^\| pretrained, (\d+) pairs \|", results, re.MULTILINE)})
    left, right, top, bottom, low, high = 60, _WIDTH - 170, 52, 300, 0.3, 0.8

    def place(count: int, miou: float) -> tuple[int, int]:
        across = math.log(count / counts[0]) / math.log(counts[-1] / counts[0])
        return round(left + across * (right - left)), round(bottom - (miou - low) / (high - low) * (bottom - top))

    title = "Masks by the number of labelled pairs: mIoU on 330 other pairs of the Oxford pets, 160 × 160"
    parts = [_text(16, 26, title, f'font-weight="600" fill="{_TEXT}"')]
    for step in range(6):
        y = place(counts[0], low + step / 10)[1]
        parts.append(f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="#e4e7eb"/>')
        parts.append(_text(left - 10, y + 4, f"{low + step / 10:.1f}", f'text-anchor="end" fill="{_FAINT}"'))
    for count in counts:
        parts.append(_text(place(count, low)[0], bottom + 20, f"{count:,}", f'text-anchor="middle" fill="{_FAINT}"'))
    for recipe, colour, name in (("pretrained", _OURS, "pretrained"), ("best", _FAINT, "from random weights")):
        scores = [value(results, CURVE_HEADING, f"{recipe}, {count} pairs", "mIoU") for count in counts]
        points = [place(count, score) for count, score in zip(counts, scores, strict=True)]
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for (x, y), score in zip(points, scores, strict=True):
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
            parts.append(_text(x, y - 10, f"{score:.2f}", f'text-anchor="middle" fill="{colour}"'))
        parts.append(_text(points[-1][0] + 14, points[-1][1] + 4, name, f'fill="{colour}"'))
    return _svg(bottom + 36, parts)


def value(results: str, heading: str, row: str, column: str) -> float:
    """Return the median in a cell, from the first table of the section that has this row and column."""
    section = re.split(r"^## ", results, flags=re.MULTILINE)
    lines = next(text for text in section if text.startswith(f"{heading}\n")).splitlines()
    names: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            names = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not names:
            names = cells
        elif cells[0] == row and column in names:
            return float(cells[names.index(column)].split()[0].replace(",", ""))
    raise LookupError(f"{RESULTS.name}: no row {row!r} with a column {column!r} under {heading!r}")


def _svg(height: int, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
    head += f' viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *parts, "</svg>\n"])


def _text(x: int, y: int, text: str, attributes: str) -> str:
    return f'<text x="{x}" y="{y}" {attributes}>{html.escape(text)}</text>'


if __name__ == "__main__":
    main()
