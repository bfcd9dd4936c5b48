"""The HTML page: its content, escaping, accessibility, and layout on a phone."""

import importlib.metadata
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import petseg
from petseg.reports import html
from petseg.reports.html import Bars, Command, Confusion, Curves, Facts, Picture, Section, Sheet, Table

EVIL = "<script>alert('x')</script>\" onload=\"x"


def jpeg(width: int = 40, height: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 80, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


def sections(name: str = "pet") -> list[Section]:
    epochs = list(range(1, 4))
    return [
        Curves(title="Loss", x_label="epoch", y_label="nats", x=epochs, lines={name: [1.5, None, 0.5]}, note="Lower."),
        Bars(title="IoU", values={name: 0.744, "none": None}),
        Confusion(title="Confusion", names=[name, "rest"], counts=[[30, 10], [0, 0]]),
        Sheet(title="Worst", pictures=[Picture(content=jpeg(), caption=f"{name} 1", alt=f"{name} beside its mask")]),
        Table(title="Scores", heads=["at", "mIoU"], rows=[[name, "0.55"]]),
        Facts(title="Settings", rows=[(name, "x" * 300)]),
        Command(title="Again", lines=[f"python jobs/train.py --name '{name}'"]),
    ]


class Reader(HTMLParser):
    """Parser that collects tags with attributes and the text, and checks that every tag is closed."""

    VOID = ("meta", "img", "link", "br", "hr", "line", "polyline", "circle", "input")

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page.decode())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(name: str = "pet") -> Reader:
    return Reader(html.page(title=f"Run {name}", summary=[("mIoU", "0.654")], sections=sections(name)))


def test_page_all_given_values_are_shown() -> None:
    text = " ".join(read().text.split())
    assert "Run pet mIoU 0.654" in text.split("Skip to the content ")[1]
    for shown in ("Lower.", "0.744", "75.0 % 30 25.0 % 10", "0.0 % 0", "x" * 300, "python jobs/train.py --name 'pet'"):
        assert shown in text
    assert re.search(r"epoch pet 1 1\.5 2 – 3 0\.5", text)


def test_page_loads_nothing_from_elsewhere() -> None:
    page = read()
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert page.all("script") == [] and page.all("link") == []
    [policy] = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none';")
    assert "url(" not in page.text and "@import" not in page.text


def test_page_html_in_names_is_escaped() -> None:
    page = read(EVIL)
    assert page.all("script") == []
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert EVIL in page.text
    assert {image["alt"] for image in page.all("img")} == {f"{EVIL} beside its mask"}


def test_page_headings_labels_and_alt_texts_are_complete() -> None:
    page = read()
    assert len(page.all("h1")) == 1
    headings = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings == ["h1", *["h2"] * len(sections())]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = [link["href"].removeprefix("#") for link in page.all("a")]
    labels = [label for _, a in page.tags for label in a.get("aria-labelledby", "").split()]
    assert set(targets) | set(labels) <= set(ids)
    assert all(image["alt"] for image in page.all("img"))
    charts = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert all(svg["role"] == "img" and svg["aria-labelledby"] for svg in charts)
    assert all("scope" in head for head in page.all("th"))
    scrolling = [div for div in page.all("div") if div.get("class") == "scroll"]
    assert scrolling and all(div["tabindex"] == "0" and div["aria-label"] for div in scrolling)


def contrast(colour: str, other: str) -> float:
    """Return the contrast ratio of two colours as defined in WCAG 2.2."""

    def luminance(hex_colour: str) -> float:
        channels = [int(hex_colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(colour), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_page_colour_contrast_meets_wcag(dark: bool) -> None:
    style = html.page(title="", summary=[], sections=[]).decode()
    light_colours, dark_colours = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([\w]+): (#\w{6})", dark_colours if dark else light_colours))
    assert len([name for name in colours if name.startswith("line")]) == html.COLOURS
    for ground in ("page", "raised"):
        for name in ("text", "faint", "accent"):
            assert contrast(colours[name], colours[ground]) >= 4.5
    for place in range(html.COLOURS):
        assert contrast(colours[f"line{place}"], colours["page"]) >= 3


def test_page_narrow_screen_has_larger_chart_text() -> None:
    style = html.page(title="", summary=[], sections=[]).decode()
    assert style.index("svg text { fill") < style.index("svg text { font-size: 20px; }")  # the later rule wins


@pytest.mark.parametrize(
    ("x", "values", "stretches", "dots"),
    [
        ([1], [0.5], 0, 1),
        ([1, 2, 3], [None, None, None], 0, 0),
        ([1, 2, 3, 4, 5], [0.1, 0.2, None, 0.4, None], 1, 1),
        ([1, 2], [0.3, 0.3], 1, 0),
        ([1, 2, 3], [1.0, float("nan"), 2.0], 0, 2),
        (list(range(1000)), [place / 7 for place in range(1000)], 1, 0),
        ([1, 2], [1e-9, 2e-9], 1, 0),
        ([], [], 0, 0),
    ],
)
def test_curves_missing_values_are_gaps(x: list[float], values: list[float | None], stretches: int, dots: int) -> None:
    curves = Curves(title="Loss", x_label="epoch", y_label="nats", x=x, lines={"a": values})
    page = Reader(html.page(title="", summary=[], sections=[curves]))
    lines = [line["points"] for line in page.all("polyline")]
    assert (len(lines), len(page.all("circle"))) == (stretches, dots)
    for points in lines:
        for point in points.split():
            across, down = map(float, point.split(","))
            assert 0 <= across <= 640 and 0 <= down <= 290


def test_curves_larger_values_are_drawn_higher() -> None:
    curves = Curves(title="", x_label="", y_label="", x=[0, 5, 10], lines={"a": [0.0, 1.0, 0.5], "b": [1.0, 1.0, 1.0]})
    page = Reader(html.page(title="", summary=[], sections=[curves]))
    first, second = page.all("polyline")
    points = [tuple(map(float, point.split(","))) for point in first["points"].split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1]
    assert points[2][1] == pytest.approx((points[0][1] + points[1][1]) / 2)
    assert first["class"] != second["class"] and first["stroke-dasharray"] != second["stroke-dasharray"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (3, "3"),
        (12345, "12,345"),
        (0.12345, "0.1235"),
        (15.0, "15"),
        (1234.5, "1234"),
    ],
)
def test_number_is_formatted_briefly(value: float | None, text: str) -> None:
    assert html.number(value) == text


def test_rerun_command_equals_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/jobs/train.py", "--images", "my photos", "--epochs", "3"])
    assert html.rerun("train").lines == ["python /somewhere/jobs/train.py --images 'my photos' --epochs 3"]
    monkeypatch.setattr(sys, "argv", ["jobs/train.py"])
    assert html.rerun("train").lines == ["python jobs/train.py"]


def test_versions_equal_the_installed_ones() -> None:
    rows = dict(html.versions().rows)
    assert rows["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"petseg", "torch", "ray", "pyarrow"} <= set(rows)


def test_versions_packages_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("petseg", "boto3"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = dict(html.versions().rows)
    assert rows["petseg"] == petseg.__version__ and rows["ray"] == "1.2.3"
    assert "boto3" not in rows


def test_page_too_many_pictures_is_an_assertion_error() -> None:
    picture = Picture(content=jpeg(), caption="", alt="")
    with pytest.raises(AssertionError):
        html.page(title="", summary=[], sections=[Sheet(title="", pictures=[picture] * (html.MAX_PICTURES + 1))])


@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser_does_not_scroll_sideways(width: int, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("there is no Chromium on this machine")
    page = html.page(title="Run " + "x" * 90, summary=[("mIoU", "0.654")] * 6, sections=sections("a_long_name" * 9))
    page = re.sub(rb"<meta http-equiv[^>]*>", b"", page)  # allows the test's script in the next line
    page += b"<script>document.title = innerWidth + ' ' + document.documentElement.scrollWidth</script>"
    (tmp_path / "page.html").write_bytes(page)
    # Chromium has no window below 500 pixels, but a frame can be smaller.
    frame = f'<iframe src="page.html" style="width: {width}px; height: 4000px; border: 0"></iframe>'
    script = "onload = () => document.title = document.querySelector('iframe').contentDocument.title"
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title></title>{frame}<script>{script}</script>")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, timeout=120
    )
    [title] = re.findall(r"<title>(.*?)</title>", done.stdout)
    assert title == f"{width} {width}"
