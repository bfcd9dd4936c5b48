"""The gallery of a report page in a browser: keys, masks, opacity, order, filter, links, and its layout."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from petseg.data import labels
from petseg.data.encode import encode_mask
from petseg.reports import gallery, html
from petseg.reports.gallery import Gallery, GalleryItem
from petseg.reports.html import Facts

SCORES = [0.5, 0.1, None, 0.9, float("nan"), 0.3]
GIVEN = ["p10", "p9", "p8", "p7", "p6", "p5"]
"""Ids of the items, in the order of the report and of `SCORES`."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[390, 1280])
def page(request: pytest.FixtureRequest, browser: Browser, folder: Path) -> Iterator[Page]:
    """The gallery in a window; in the end the test fails if the page had an error or broke its policy."""
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    page.set_default_timeout(60_000)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto((folder / "report.html").as_uri())
    yield page
    page.close()
    assert messages == []


def items() -> list[GalleryItem]:
    result = []
    for index, (name, score) in enumerate(zip(GIVEN, SCORES, strict=True)):
        height = (30, 60, 120)[index % 3]  # landscape, and portrait
        buffer = io.BytesIO()
        Image.new("RGB", (80, height), (20, 40, 200)).save(buffer, "JPEG")
        class_ids = np.zeros((height, 80), np.uint8)
        label, prediction = (encode_mask(class_ids + value, labels.palette(3)) for value in (0, 1))
        masks = {"label": label, "prediction": prediction} if index else {"label": label}
        link = ("photos/x#1.jpg", "javascript:document.title='attack'")[index % 2]
        classes = ["<b>", "rest"] if name == "p7" else ["rest"] if name != "p5" else ["dog"]
        described = {"score": score, "classes": classes, "link": link, "caption": "x" * 90}
        result.append(GalleryItem(id=name, photo=buffer.getvalue(), masks=masks, **described))
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a page of one gallery between other sections, and a photo that it links to."""
    folder = tmp_path_factory.mktemp("page")
    names = ["<b>", "rest", "dog"]
    colours = dict(zip(names, labels.palette(3), strict=True))
    shown = Gallery(title="Samples", items=items(), score_name="a_long_name_of_a_score" * 3, colours=colours)
    facts = Facts(title="Settings", rows=[("seed", "5")] * 40)
    content = html.page(title="Check", summary=[("pairs", "6")], sections=[facts, shown, facts])
    (folder / "report.html").write_bytes(content)
    (folder / "photos").mkdir()
    (folder / "photos" / "x#1.jpg").write_bytes(items()[0].photo)
    return folder


def names(page: Page) -> list[str]:
    """Return the ids of the items that are visible, in the order of the page."""
    return page.locator(".item:visible .name").all_inner_texts()


def current(page: Page) -> str:
    """Return the id of the current item, which is outlined, has the focus and is in the window."""
    item = page.locator('.item[aria-current="true"]')
    outline, focused, top, bottom = item.evaluate(
        "item => [getComputedStyle(item).outlineStyle, item === document.activeElement, "
        "item.getBoundingClientRect().top, item.getBoundingClientRect().bottom]"
    )
    assert outline == "solid" and focused and top >= 0 and bottom <= 800
    return item.locator(".name").inner_text()


def masks(page: Page) -> list[str]:
    """Return the alternative texts of the masks that are drawn."""
    return [picture.get_attribute("alt") or "" for picture in page.locator(".mask:visible").all()]


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


@pytest.mark.parametrize(("forth", "back"), [("n", "p"), ("ArrowRight", "ArrowLeft"), ("j", "k")])
def test_keys_move_to_the_next_and_the_previous_item(page: Page, forth: str, back: str) -> None:
    assert page.locator('[aria-current="true"]').count() == 0
    press(page, forth)
    assert current(page) == "p10"
    press(page, back)
    assert current(page) == "p10"  # the first
    for name in [*GIVEN[1:], "p5"]:  # the last stays
        press(page, forth)
        assert current(page) == name
    press(page, back)
    assert current(page) == "p6"


def test_key_m_shows_each_mask_and_none(page: Page) -> None:
    label, prediction = [f"{name}: label" for name in GIVEN], [f"{name}: prediction" for name in GIVEN[1:]]
    for expected in (label, prediction, [], label):
        assert masks(page) == expected
        assert page.locator(".photo > img:not(.mask):visible").count() == 6
        press(page, "m")
    page.get_by_label("mask").select_option("none")
    assert masks(page) == []


def test_mask_lies_exactly_over_its_photo_at_the_opacity(page: Page) -> None:
    photo, mask = page.locator(".item").first.locator("img").all()[:2]
    for keys, opacity in {"": "0.5", "++": "0.7", "-": "0.6", "-" * 9: "0", "+" * 12: "1"}.items():
        press(page, *keys)
        assert mask.evaluate("mask => getComputedStyle(mask).opacity") == opacity
        assert page.get_by_role("slider").input_value() == opacity
        assert page.locator(".percent").inner_text() == f"{100 * float(opacity):.0f} %"
    assert photo.bounding_box() == mask.bounding_box()
    page.get_by_role("slider").fill("0.25")
    assert {shown.evaluate("e => getComputedStyle(e).opacity") for shown in page.locator(".mask").all()} == {"0.25"}


def test_enter_shows_the_current_item_large_and_escape_leaves_it(page: Page) -> None:
    press(page, "n", "n", "Enter")
    assert names(page) == ["p9"] == [current(page)]
    item, whole = page.locator(".item:visible").bounding_box(), page.locator(".gallery").bounding_box()
    assert item and whole and item["width"] == whole["width"]
    press(page, "n")
    assert names(page) == ["p8"] == [current(page)]
    assert page.locator(".position").inner_text() == "3 of 6"
    for key in ("Enter", "Escape"):
        press(page, key)
        assert names(page) == GIVEN and current(page) == "p8"
        press(page, "Enter")
        assert names(page) == ["p8"]


def test_buttons_and_clicks_do_what_the_keys_do(page: Page) -> None:
    page.get_by_role("button", name="p7: large").click()
    assert names(page) == ["p7"] == [current(page)]
    page.get_by_role("button", name="next").click()
    assert names(page) == ["p6"]
    page.get_by_role("button", name="previous").click()
    assert names(page) == ["p7"]
    page.get_by_role("button", name="all photos").click()
    assert names(page) == GIVEN and current(page) == "p7"
    page.locator(".photo").first.click()
    assert names(page) == ["p10"] == [current(page)]
    page.locator(".photo:visible").click()
    assert names(page) == GIVEN


def test_keys_do_not_act_in_controls_or_with_modifiers(page: Page) -> None:
    press(page, "n")
    press(page, "Control+m", "Alt+m", "Meta+m", "Control+ArrowRight")
    assert current(page) == "p10" and masks(page)[0] == "p10: label"
    page.get_by_role("slider").focus()
    press(page, "Enter")
    for control in (page.get_by_role("slider"), page.get_by_label("sort by")):
        control.focus()
        press(page, "m", "j")
        assert page.locator('[aria-current="true"] .name').inner_text() == "p10"
        assert names(page) == GIVEN and masks(page)[0] == "p10: label"
        assert control.evaluate("control => control === document.activeElement")
        press(page, "Escape")
        assert not control.evaluate("control => control === document.activeElement")
    press(page, "n")
    assert current(page) == "p9"
    press(page, "Enter")
    page.get_by_role("slider").focus()
    press(page, "Escape")
    assert names(page) == GIVEN


def test_sort_by_score_puts_items_without_one_last(page: Page) -> None:
    order = page.get_by_label("sort by")
    for option, expected in {
        "ascending": ["p9", "p5", "p10", "p7", "p8", "p6"],
        "descending": ["p7", "p10", "p5", "p9", "p8", "p6"],
        "name": ["p5", "p6", "p7", "p8", "p9", "p10"],
        "given": GIVEN,
    }.items():
        order.select_option(option)
        assert names(page) == expected
    order.select_option("name")
    press(page, "Escape", "n", "n")
    assert current(page) == "p6"


def test_filter_shows_the_items_of_a_class_and_their_count(page: Page) -> None:
    filters, count = page.get_by_role("combobox", name="class", exact=True), page.get_by_role("status")
    assert count.inner_text() == "6 of 6 shown"
    assert filters.locator("option").all_inner_texts() == ["all", "<b>", "rest", "dog"]
    press(page, "n", "n", "n", "n", "Enter")  # p7, large
    filters.select_option("rest")
    assert names(page) == ["p7"] and count.inner_text() == "5 of 6 shown"
    filters.select_option("dog")
    assert names(page) == ["p5"] and count.inner_text() == "1 of 6 shown"
    press(page, "Escape", "n")
    assert current(page) == "p5"
    filters.select_option("all")
    assert names(page) == GIVEN and count.inner_text() == "6 of 6 shown"


def test_tab_reaches_one_item_and_then_its_own_parts(page: Page) -> None:
    page.get_by_role("combobox", name="class", exact=True).focus()
    press(page, "Tab")
    assert current(page) == "p10"
    press(page, "Tab")
    button = page.get_by_role("button", name="p10: large")
    assert button.evaluate("button => button === document.activeElement")
    press(page, "Tab")
    with page.expect_popup():
        press(page, "Enter")  # on the link to the photo
    assert names(page) == GIVEN
    button.focus()
    press(page, "Enter")
    assert names(page) == ["p10"] == [current(page)]


def test_link_opens_the_photo_and_a_script_is_only_text(page: Page) -> None:
    links = page.locator("a.file")
    assert links.all_inner_texts() == ["photos/x#1.jpg"] * 3
    with page.expect_popup() as opened:
        links.first.click()
    opened.value.wait_for_load_state()
    assert opened.value.url.endswith("/photos/x%231.jpg") and opened.value.locator("img").count() == 1
    page.get_by_text("javascript:document").first.click()
    assert page.title() == "Check"


def test_layout_does_not_scroll_sideways(page: Page) -> None:
    width = (page.viewport_size or {})["width"]
    for keys in ((), ("n",), ("Enter",)):
        press(page, *keys)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.get_by_text("next mask or none").is_visible()


def test_gallery_without_javascript_shows_photos_and_masks(browser: Browser, folder: Path) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto((folder / "report.html").as_uri())
        assert names(page) == GIVEN and masks(page) == [f"{name}: label" for name in GIVEN]
        assert not page.get_by_role("slider").is_visible()


def test_pages_links_lead_from_page_to_page(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MAX_ITEMS", 4)
    section = Gallery(title="Samples", items=items())
    for name, content in html.pages(title="Check", summary=[], sections=[section]):
        (tmp_path / name).write_bytes(content)
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.get_by_role("link", name="next").first.click()
    page.wait_for_url("**/report-2.html#gallery")
    assert names(page) == ["p6", "p5"] and page.get_by_role("status").inner_text() == "2 of 2 shown"
    page.get_by_role("link", name="1", exact=True).first.click()
    page.wait_for_url("**/report.html#gallery")
    assert names(page) == GIVEN[:4]
    page.close()
