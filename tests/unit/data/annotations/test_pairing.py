import pytest

from petseg.data.annotations.labels import PhotoLabels
from petseg.data.annotations.pairing import find_photos
from petseg.errors import InputError


def entry(photo: str) -> PhotoLabels:
    return PhotoLabels(photo, None, (), f"labels of {photo}")


@pytest.mark.parametrize(
    ("ids", "photo", "expected"),
    [
        (["a/cat", "b/cat"], "b/cat.jpg", "b/cat"),
        (["a/cat", "b/cat"], "/home/x/photos/b/cat.png", "b/cat"),
        (["a/cat", "b/cat"], "C:\\photos\\b\\cat.jpg", "b/cat"),
        (["x/a/cat", "y/a/cat"], "s3://bucket/y/a/cat.jpg", "y/a/cat"),
        (["cat", "a/cat"], "cat.jpg", "cat"),
        (["cat"], "elsewhere/cat.tar.jpg", None),
        (["cat.tar"], "elsewhere/cat.tar.jpg", "cat.tar"),
        (["cat"], "20240101-cat.jpg", None),
        (["photo.v1"], "photo.v1", "photo.v1"),
        (["photo.v1"], "labels/photo.v1.json", "photo.v1"),
        (["cafe\u0301".encode().decode()], "caf\u00e9.jpg", None),
        (["caf\u00e9"], "cafe\u0301.jpg", "caf\u00e9"),
    ],
)
def test_find_photos_by_name_and_folders(ids: list[str], photo: str, expected: str | None) -> None:
    found, missing = find_photos(ids, [entry(photo)])
    assert list(found) == ([] if expected is None else [expected])
    assert [one.photo for one in missing] == ([photo] if expected is None else [])


def test_find_photos_several_that_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels of cat.jpg: its photo cat.jpg could be a/cat or b/cat"):
        find_photos(["a/cat", "b/cat"], [entry("cat.jpg")])
    with pytest.raises(InputError, match=r"labels of x/cat.png and labels of cat.jpg: both label the photo cat"):
        find_photos(["cat"], [entry("cat.jpg"), entry("x/cat.png")])
