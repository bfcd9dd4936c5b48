"""Photos as cameras and tools write them: which pixels the network gets."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin, TiffImagePlugin

from petseg.data import decode, image_file, notes
from petseg.data.image_file import DecodeError

SIZE = (12, 16)
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
PIXELS[0, 0] = (0, 255, 128)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return decode.decode_photo(content, SIZE, 10**6).pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values: np.ndarray) -> bytes:
    """Return a PNG with 16 bits per channel, which Pillow cannot write: (H, W, 2 to 4)."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff16(values: np.ndarray, order: str) -> bytes:
    """Return an uncompressed TIFF with 16 bits per channel: (H, W, 3), byte order "<" or ">"."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    bits = 8 + 2 + 12 * 9 + 4
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, bits + 2 * channels), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data))]
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)
        content += struct.pack(f"{order}HHI", tag, kind, count) + packed
    return content + struct.pack(f"{order}I{channels}H", 0, *[16] * channels) + data


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_grey_photo_with_fewer_bits_than_its_file_keeps_its_brightness(bits: int) -> None:
    grey = PIXELS[..., 0].astype(np.uint16) << (bits - 8)
    expected = np.repeat(PIXELS[..., :1], 3, 2)
    for kind in ("PNG", "TIFF"):
        assert (decoded(encoded(Image.fromarray(grey), kind)) == expected).all()
    whole = decode.decode_whole(encoded(Image.fromarray(grey)), 10**6)
    assert (np.asarray(whole) == expected).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_colour_photo_with_fewer_bits_than_its_file_keeps_its_brightness(bits: int) -> None:
    values = PIXELS.astype(np.uint16) << (bits - 8)
    opaque = np.full((*SIZE, 1), 65535, np.uint16)
    for content in (png16(values), png16(np.dstack([values, opaque])), tiff16(values, "<"), tiff16(values, ">")):
        assert (decoded(content) == PIXELS).all()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_tiff_with_12_bits_keeps_its_brightness(compression: str) -> None:
    grey = PIXELS[..., 0].astype(np.uint16) << 4
    content = encoded(Image.fromarray(grey), "TIFF", compression=compression)
    assert (decoded(content)[..., 0] == PIXELS[..., 0]).all()


def test_tiff_range_tag_decides_on_the_brightness() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 1000
    content = encoded(Image.fromarray(np.full(SIZE, 500, np.uint16)), "TIFF", tiffinfo=tags)
    assert (decoded(content) == 127).all()


def test_black_photo_of_16_bits_stays_black() -> None:
    assert (decoded(encoded(Image.fromarray(np.zeros(SIZE, np.uint16)))) == 0).all()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "MPO", "WEBP"])
def test_photo_in_another_format_is_decoded(kind: str) -> None:
    smooth = Image.fromarray(PIXELS).resize((64, 48), Image.Resampling.BICUBIC)
    found = decode.decode_photo(encoded(smooth, kind, quality=95), (48, 64), 10**6).pixels
    assert np.abs(found.astype(int) - np.asarray(smooth)).mean() < 12


def frames(count: int, kind: str, **options: Any) -> bytes:
    images = [Image.fromarray(np.roll(PIXELS, number, 0)) for number in range(count)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:], **options)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "GIF", "WEBP"])
def test_photo_of_several_pages_first_is_used_and_noted(kind: str) -> None:
    photo = decode.decode_photo(frames(3, kind, **({"lossless": True} if kind == "WEBP" else {})), SIZE, 10**6)
    assert photo.notes == (notes.FIRST_PAGE,)
    if kind != "GIF":  # its colours are not exact
        assert (photo.pixels == PIXELS).all()


def test_photo_with_thumbnail_pages_has_no_note() -> None:
    small = Image.fromarray(PIXELS).resize((4, 3))
    content = encoded(Image.fromarray(PIXELS), "TIFF", save_all=True, append_images=[small])
    assert decode.decode_photo(content, SIZE, 10**6).notes == ()
    assert decode.decode_photo(frames(2, "MPO"), SIZE, 10**6).notes == ()


def test_photo_of_16_bits_is_noted() -> None:
    wide = encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16)))
    assert decode.decode_photo(wide, SIZE, 10**6).notes == (notes.WIDE_VALUES,)
    assert decode.decode_photo(png16(PIXELS.astype(np.uint16)), SIZE, 10**6).notes == (notes.WIDE_VALUES,)


def test_notes_are_counted_with_the_first_id() -> None:
    counted = notes.add_notes(
        [notes.count_notes("abc", [None, (notes.WIDE_VALUES,), (notes.FIRST_PAGE, notes.WIDE_VALUES)])] * 2
    )
    assert counted == {notes.WIDE_VALUES: [4, "b"], notes.FIRST_PAGE: [2, "c"]}
    assert notes.note_lines(counted)[1] == "2 images, such as c: of several pages or frames, only the first is used"


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(np.float32, "floating-point numbers of unknown scale"), (np.int64, "kind of pixels cannot be read")],
)
def test_photo_of_unknown_scale_is_refused_in_plain_words(dtype: type, message: str) -> None:
    content = io.BytesIO()
    tifffile.imwrite(content, PIXELS[..., 0].astype(dtype))
    with pytest.raises(DecodeError, match=message):
        decoded(content.getvalue())


def large_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "x y " * 800_000, zip=True)
    return encoded(Image.fromarray(PIXELS), pnginfo=text)


def large_profile() -> bytes:
    return encoded(Image.fromarray(PIXELS), icc_profile=b"profile " * 1_000_000)


def damaged_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "abc" * 9)
    return encoded(Image.fromarray(PIXELS), pnginfo=text).replace(b"abcabc", b"abcab!", 1)


@pytest.mark.parametrize("make", [large_text, large_profile, damaged_text])
def test_png_with_large_or_damaged_metadata_is_decoded(make: Any) -> None:
    assert (decoded(make()) == PIXELS).all()


def test_png_orientation_in_exif_or_xmp_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    for content in (encoded(Image.fromarray(PIXELS), exif=exif), encoded(Image.fromarray(PIXELS), pnginfo=text)):
        assert (decoded(content) == PIXELS[::-1, ::-1]).all()


def test_png_cut_at_any_byte_is_decoded_or_refused() -> None:
    content = large_text()
    for length in [*range(1, 60), len(content) - 20, len(content) - 1]:
        try:
            decoded(content[:length])
        except DecodeError:
            continue


@pytest.mark.parametrize("error", [AttributeError, MemoryError, AssertionError])
def test_error_of_our_own_code_is_not_the_photos(error: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error("planted")

    monkeypatch.setattr(decode, "upright", fail)
    with pytest.raises(error, match="planted"):
        decoded(encoded(Image.fromarray(PIXELS)))


def test_memory_error_of_a_decoder_is_not_the_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(image_file.Image, "open", fail)
    with pytest.raises(MemoryError):
        decoded(encoded(Image.fromarray(PIXELS)))
