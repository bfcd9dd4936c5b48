"""The gallery of a page: escaping, policy, links, and division into pages. tests/integration drives it in a browser."""

import base64
import hashlib
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.data import labels
from petseg.data.encode import encode_mask
from petseg.reports import gallery, html
from petseg.reports.gallery import Gallery, GalleryItem
from petseg.reports.html import Facts

from .test_html import EVIL, Reader, jpeg

STRICT = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def mask(width: int = 40, height: int = 10) -> bytes:
    return encode_mask(np.ones((height, width), np.uint8), labels.palette(3))


def item(name: str = "a/1", **changes: Any) -> GalleryItem:
    return GalleryItem(**({"id": name, "photo": jpeg(), "masks": {"label": mask(), "prediction": mask()}} | changes))


def page_of(*items: GalleryItem, **changes: Any) -> bytes:
    section = Gallery(**({"title": "Samples", "items": items, "score_name": "confidence"} | changes))
    return html.page(title="Check", summary=[], sections=[section])


def policy(page: bytes) -> str:
    [content] = [meta["content"] for meta in Reader(page).all("meta") if "http-equiv" in meta]
    return content


def test_policy_allows_the_script_of_the_page_alone() -> None:
    page = page_of(item())
    [script] = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert script and policy(page) == f"{STRICT}; script-src 'sha256-{digest}'"


def test_policy_page_without_gallery_allows_no_script() -> None:
    page = html.page(title="Check", summary=[], sections=[Facts(title="Settings", rows=[("a", "b")])])
    assert policy(page) == STRICT and b"<script" not in page and b"gallery" not in page


def test_gallery_strings_of_strangers_are_escaped() -> None:
    masks = {EVIL: mask(), "&amp; 'b'": mask()}
    evil = item(EVIL, masks=masks, classes=[EVIL, "a&b"], caption=EVIL, link=EVIL, score=0.5)
    page = Reader(page_of(evil, title=EVIL, score_name=EVIL, note=EVIL, colours={EVIL: (1, 2, 3)}))
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [image["alt"] for image in page.all("img")] == [f"{EVIL}: photo", f"{EVIL}: {EVIL}", f"{EVIL}: &amp; 'b'"]
    assert page.text.count(EVIL) >= 8 and "a&b" in page.text


def test_gallery_without_javascript_shows_the_first_mask_of_each_photo() -> None:
    page = Reader(page_of(item("a"), item("b", masks={"prediction": mask()}), item("c", masks={})))
    shown = [image["alt"] for image in page.all("img") if "hidden" not in image]
    assert shown == ["a: photo", "a: label", "b: photo", "b: prediction", "c: photo"]
    [controls] = [tag for tag in page.all("div") if tag.get("class") == "controls"]
    assert "hidden" in controls


def test_gallery_controls_have_labels_and_items_have_names() -> None:
    page = page_of(item("a", classes=["pet"], score=0.5), item("b"))
    labelled = re.findall(r"<label[^>]*>([a-z ]+) <(?:select|input)[^>]* name=\"(\w+)\"", page.decode())
    assert [name for _, name in labelled] == ["mask", "opacity", "order", "class"]
    read = Reader(page)
    names = [tag["aria-labelledby"] for tag in read.all("li") if tag.get("class") == "item"]
    assert len(names) == 2 and set(names) <= {tag.get("id") for tag in read.all("b")}
    [count] = [tag for tag in read.all("span") if tag.get("role") == "status"]
    assert count["aria-live"] == "polite"
    assert all(button.get("aria-label") for button in read.all("button") if "hidden" in button)


def test_gallery_classes_of_the_legend_come_first_and_only_those_present() -> None:
    section = Gallery(
        title="", items=[item(classes=["z", "b"]), item(classes=["a"])], colours={"b": (1, 2, 3), "c": (0, 0, 0)}
    )
    assert section.class_names == ["b", "a", "z"]
    page = html.page(title="", summary=[], sections=[section]).decode()
    assert re.findall(r'background: (rgb\(.*?\))"></span>(\w)', page) == [("rgb(1, 2, 3)", "b")]
    assert re.findall(r'data-classes="(.*?)"', page) == ["2 0 ", "1 "]


def test_gallery_without_scores_cannot_be_sorted_by_score() -> None:
    assert b'value="ascending"' in page_of(item(score=0.0)) and b'data-score="0.0"' in page_of(item(score=0.0))
    page = page_of(item())
    assert b'value="ascending"' not in page and b"data-score=" not in page


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("https://host/a.jpg?x=1", "https://host/a.jpg?x=1"),
        ("HTTP://host/a.jpg", "HTTP://host/a.jpg"),
        ("file:///data/a%20b.jpg", "file:///data/a%20b.jpg"),
        ("/data/a b#1?.jpg", "file:///data/a%20b%231%3F.jpg"),
        ("../50%/a.jpg", "../50%25/a.jpg"),
        ("s3://bucket/a.jpg", ""),
        ("javascript:alert(1)", ""),
        ("JavaScript://%0aalert(1)", ""),
        ("data:text/html,x", ""),
        (" javascript:alert(1)", "%20javascript%3Aalert%281%29"),
        ("java\nscript:alert(1)", "java%0Ascript%3Aalert%281%29"),
        ("", ""),
    ],
)
def test_address_only_paths_and_web_addresses_are_links(location: str, address: str) -> None:
    assert gallery.address(location) == address
    page = Reader(page_of(item(link=location)))
    assert [link["href"] for link in page.all("a") if link.get("class") == "file"] == ([address] if address else [])
    assert " ".join(location.split()) in " ".join(page.text.split())


def test_gallery_mask_of_another_size_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError):
        item(masks={"label": mask(), "prediction": mask(39)})


def test_page_gallery_too_long_or_second_is_an_assertion_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MAX_ITEMS", 2)
    with pytest.raises(AssertionError):
        page_of(item(), item(), item())
    one = Gallery(title="", items=[item()])
    with pytest.raises(AssertionError):
        html.page(title="", summary=[], sections=[one, one])
    monkeypatch.setattr(html, "MAX_PICTURE_BYTES", len(mask()) - 1)
    with pytest.raises(AssertionError):
        page_of(item(masks={"label": mask()}))


def pages(count: int, per_page: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Reader]:
    monkeypatch.setattr(gallery, "MAX_ITEMS", per_page)
    facts = Facts(title="Settings", rows=[("seed", "5")])
    section = Gallery(title="Samples", items=[item(f"p{number}") for number in range(count)])
    found = html.pages(title="Check", summary=[("pairs", "7")], sections=[None, section, facts])
    return {name: Reader(content) for name, content in found}


def test_pages_each_photo_is_on_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pages(7, 3, monkeypatch)
    assert list(found) == ["report.html", "report-2.html", "report-3.html"]
    shown = [[image["alt"] for image in page.all("img") if "photo" in image["alt"]] for page in found.values()]
    assert shown == [[f"p{number}: photo" for number in numbers] for numbers in ((0, 1, 2), (3, 4, 5), (6,))]
    assert ["seed" in page.text for page in found.values()] == [True, False, False]
    assert ["pairs" in page.text for page in found.values()] == [True, False, False]
    assert "Check, page 2 of 3" in found["report-2.html"].text


def test_pages_links_lead_to_the_gallery_of_each_page(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pages(7, 3, monkeypatch)
    first, second, last = [
        [link["href"] for link in page.all("a") if link["href"].startswith("report")] for page in found.values()
    ]
    names = [f"{name}#gallery" for name in found]
    assert first == [*names, names[1]] * 2
    assert second == [names[0], *names, names[2]] * 2
    assert last == [names[1], *names] * 2
    for page in found.values():
        assert "gallery" in [heading.get("id") for heading in page.all("h2")]
        assert "act on the photos of this page" in page.text
        assert [link["href"] for link in page.all("a") if "aria-current" in link]
    assert "page 2 of 3" in found["report-2.html"].text


@pytest.mark.parametrize("count", [0, 3])
def test_pages_short_gallery_has_one_page_without_links(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pages(count, 3, monkeypatch)
    assert list(found) == ["report.html"]
    text = found["report.html"].text
    assert "page 1 of" not in text and "of this page" not in text


def test_pages_report_without_gallery_has_one_page() -> None:
    found = html.pages(title="Check", summary=[], sections=[Facts(title="Settings", rows=[("a", "b")])])
    assert found == [
        ("report.html", html.page(title="Check", summary=[], sections=[Facts(title="Settings", rows=[("a", "b")])]))
    ]


def test_picture_size_jpeg_and_png_are_read() -> None:
    assert gallery.picture_size(jpeg(31, 17)) == (31, 17) and gallery.picture_size(mask(5, 9)) == (5, 9)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "GIF")
    with pytest.raises(OSError, match="cannot identify"):
        gallery.picture_size(buffer.getvalue())
