"""HEIC photos, and what is said of them without pi-heif."""

import base64
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data import heic, manifest
from petseg.data.decode import decode_photo, decode_whole, upright_size
from petseg.data.image_file import DecodeError, open_image
from petseg.errors import InputError

# Made with pillow-heif 1.8.1, which pi-heif, a decoder only, does not need:
#   image = Image.new("RGB", (64, 48), (200, 30, 30)); image.paste((30, 30, 200), (0, 0, 16, 12))
#   image.save(file, "HEIF", quality=50)
#   image.save(file, "HEIF", quality=50, exif=exif), with the orientation 6 in `exif`
PLAIN = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABoQABAAAAAAAAAEUAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADd"
    "aXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAE1tZGF0AAAA"
    "QSgBrxOA24Vbn/7wor+xDV8umJASK/RXcQVzgA24p56j8WyzHHyB0HAiKsDzBIplNcC+syj/KQhbtOSEbBvOpnU+"
)
TURNED = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAA"
    "AERAAAIAAQAAAAAB7AABAAAAAAAAAEUAAgAAAAACMQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZl"
    "AgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH/"
    "/wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29s"
    "cm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAA"
    "AwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAHFtZGF0AAAAQSgBrxOA24Vb"
    "n/7wor+xDV8umJASK/RXcQVzgA24p56j8WyzHHyB0HAiKsDzBIplNcC+syj/KQhbtOSEbBvOpnU+AAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAA"
    "AQAGAAAAAAAA"
)
RED, BLUE = (200, 30, 30), (30, 30, 200)
LIMIT = 64 * 64


@pytest.mark.parametrize(
    ("content", "size_hw", "blue_corner"), [(PLAIN, (48, 64), (0, 0)), (TURNED, (64, 48), (0, -1))]
)
def test_heic_photo_is_decoded_upright(content: bytes, size_hw: tuple[int, int], blue_corner: tuple[int, int]) -> None:
    """EXIF must not turn it once more. pi-heif sets the tag to 1."""
    header = open_image(content, LIMIT).header
    assert (header.orientation, header.still_to_turn, header.size[::-1]) == (1, 1, size_hw)
    assert upright_size(content, LIMIT) == size_hw
    whole = decode_whole(content, LIMIT)
    assert whole.mode == "RGB" and whole.size[::-1] == size_hw
    pixels = np.asarray(whole).astype(int)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        expected = BLUE if corner == blue_corner else RED
        assert np.abs(pixels[corner] - expected).max() < 10
    photo = decode_photo(content, (16, 16), LIMIT)
    assert photo.pixels.shape == (16, 16, 3) and (photo.height, photo.width) == size_hw and not photo.notes
    assert "HEIF" not in Image.OPEN, "Pillow, which is the caller's, too, must stay as it is"


def test_heic_photo_of_any_heif_brand_is_decoded() -> None:
    assert decode_whole(PLAIN[:8] + b"mif1" + PLAIN[12:], LIMIT).size == (64, 48)


def test_heic_photo_above_max_pixels_is_refused() -> None:
    """Also one that is so only before it is cropped, because the whole of it is decoded."""
    stored = struct.pack(">II", 64, 64)
    assert PLAIN.count(stored) == 1
    cropped = PLAIN.replace(stored, struct.pack(">II", 30000, 30000))
    with pytest.raises(DecodeError, match="64 × 48 pixels are more than the limit of 3071"):
        open_image(PLAIN, 64 * 48 - 1)
    with pytest.raises(DecodeError, match="it is cropped from 900000000 pixels, more than the limit of 128000000"):
        open_image(cropped, 128_000_000)


def test_heic_photo_that_is_damaged_is_refused() -> None:
    for content in (PLAIN[:40], PLAIN[:300], PLAIN[:-20], PLAIN.replace(b"hvcC", b"hvcX")):
        with pytest.raises(DecodeError):
            decode_whole(content, LIMIT)


def test_heic_without_pi_heif_is_refused_or_skipped_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.HEIC", "b.heif", "c.jpg"):
        (tmp_path / name).write_bytes(PLAIN)
    assert manifest.discover(str(tmp_path))["id"].to_pylist() == ["a", "b", "c"]
    assert not capsys.readouterr().out
    monkeypatch.setattr(heic, "is_installed", lambda: False)
    assert manifest.discover(str(tmp_path))["id"].to_pylist() == ["c"]
    reasons = "1 .heic without pi-heif (pip install pi-heif), 1 .heif without pi-heif (pip install pi-heif)"
    assert capsys.readouterr().out == f"note: --images {tmp_path}: skipped {reasons}\n"
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(InputError) as caught:
        manifest.discover(str(tmp_path))
    assert f".webp), other files: {reasons}; check the path" in str(caught.value)
    assert ".gif, .j2k" in str(caught.value)  # .heic is not one of the accepted extensions
    with pytest.raises(DecodeError, match=r"^HEIC, which needs pi-heif: pip install pi-heif, on every node$"):
        open_image(PLAIN, LIMIT)
