import io
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg.data import decode, image_file, labels, tiles, visualize
from petseg.data.encode import encode_mask
from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.mask_pixels import raw_values
from petseg.data.pairs import Pair, decode_pair

TRIMAP = LabelMap.parse("", 3)
LIMIT = 10**6

# An image that every flip or rotation changes: red top left, green top right, blue bottom left, grey bottom right.
UPRIGHT = np.zeros((32, 48, 3), np.uint8)
UPRIGHT[:16, :24], UPRIGHT[:16, 24:], UPRIGHT[16:, :24], UPRIGHT[16:, 24:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 90
MASK = np.repeat(np.repeat(np.array([[1, 2], [3, 255]], np.uint8), 16, 0), 24, 1)
IDS = np.array([[0, 1], [2, IGNORE_ID]])


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored_with_orientation(upright: np.ndarray, orientation: int) -> Image.Image:
    """Return the image as a camera stores it with this EXIF orientation."""
    a = upright
    turned = {
        1: a,
        2: a[:, ::-1],
        3: a[::-1, ::-1],
        4: a[::-1],
        5: a.swapaxes(0, 1),
        6: np.rot90(a),
        7: a[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(a, -1),
    }[orientation]
    return Image.fromarray(np.ascontiguousarray(turned))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def corners(pixels: np.ndarray) -> np.ndarray:
    """Return the centre pixels of the four quarters."""
    height, width = pixels.shape[:2]
    return pixels[height // 4 :: height // 2, width // 4 :: width // 2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_decode_photo_each_file_format_is_decoded(kind: str) -> None:
    photo = decode.decode_photo(encode(Image.fromarray(UPRIGHT), kind), (16, 24), LIMIT)
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape == (16, 24, 3)
    assert (photo.height, photo.width) == (32, 48)
    assert np.abs(corners(photo.pixels).astype(int) - corners(UPRIGHT)).max() <= 12  # JPEG is lossy


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", (200, 200, 200)),
        ("1", (255, 255, 255)),
        ("P", (200, 100, 50)),
        ("RGBA", (200, 100, 50)),
        ("LA", (200, 200, 200)),
        ("CMYK", (200, 100, 50)),
    ],
)
def test_decode_photo_each_colour_mode_becomes_rgb(mode: str, expected: tuple[int, int, int]) -> None:
    colour = {"L": 200, "1": 1, "LA": (200, 40), "RGBA": (200, 100, 50, 40), "CMYK": (55, 155, 205, 0)}
    if mode == "P":
        image = Image.new("RGB", (20, 20), (200, 100, 50)).quantize(4)
    else:
        image = Image.new(mode, (20, 20), colour[mode])
    kind = "TIFF" if mode == "CMYK" else "PNG"
    pixels = decode.decode_photo(encode(image, kind), (16, 16), LIMIT).pixels
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_decode_photo_16_bit_values_are_scaled_to_8() -> None:
    deep = Image.fromarray(np.full((8, 8), 200 * 257, np.uint16))
    assert (decode.decode_photo(encode(deep), (4, 4), LIMIT).pixels == 200).all()


def test_decode_photo_8_bit_values_in_32_bits_are_not_scaled() -> None:
    wide = Image.fromarray(np.full((8, 8), 200, np.int32))
    assert (decode.decode_photo(encode(wide, "TIFF"), (4, 4), LIMIT).pixels == 200).all()


def test_decode_photo_animation_first_frame_is_used() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode.decode_photo(content, (4, 4), LIMIT).pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_pair_exif_rotation_is_applied_to_photo_and_mask(orientation: int, kind: str) -> None:
    photo = encode(stored_with_orientation(UPRIGHT, orientation), kind, exif=exif(orientation))
    masks = {
        "without a tag of its own": encode(stored_with_orientation(MASK, orientation)),
        "with its own tag": encode(stored_with_orientation(MASK, orientation), exif=exif(orientation)),
        "as a TIFF with its own tag": encode(
            stored_with_orientation(MASK, orientation), "TIFF", exif=exif(orientation)
        ),
    }
    if orientation in (5, 6, 7, 8):
        masks["drawn upright"] = encode(Image.fromarray(MASK))
    for how, mask in masks.items():
        pair = decode_pair(photo, mask, (32, 48), TRIMAP, LIMIT, masks_upright=False)
        assert (pair.photo.height, pair.photo.width) == (32, 48), how
        assert np.array_equal(pair.photo.pixels, UPRIGHT), how
        assert np.array_equal(corners(pair.class_ids), IDS), how
        pair = decode_pair(photo, mask, (24, 16), TRIMAP, LIMIT, masks_upright=False)
        assert pair.photo.pixels.shape == (24, 16, 3) and pair.truth_ids().dtype == np.uint8
        assert pair.class_ids.shape == (24, 16)
        assert np.array_equal(pair.truth_ids(), IDS.repeat(16, 0).repeat(24, 1)), how


def test_decode_photo_invalid_exif_orientation_is_ignored() -> None:
    content = encode(Image.fromarray(UPRIGHT), exif=exif(0))
    assert np.array_equal(decode.decode_photo(content, (32, 48), LIMIT).pixels, UPRIGHT)


def test_decode_photo_smaller_size_is_antialiased() -> None:
    """A fine chessboard becomes grey. Nearest-pixel sampling would leave it black and white."""
    board = (np.indices((160, 160)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode.decode_photo(encode(Image.fromarray(board)), (20, 20), LIMIT).pixels
    assert np.abs(pixels.astype(int) - 127).max() <= 3


def test_decode_photo_large_jpeg_reduced_decoding_is_nearly_exact() -> None:
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize((1600, 1200))
    content = encode(smooth, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(content)).resize((64, 64), Image.Resampling.BILINEAR))
    pixels = decode.decode_photo(content, (64, 64), 10**7).pixels
    assert np.abs(pixels.astype(int) - full).mean() < 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_whole_exif_rotation_is_applied_and_size_is_kept(orientation: int, kind: str) -> None:
    content = encode(stored_with_orientation(UPRIGHT, orientation), kind, exif=exif(orientation))
    assert decode.upright_size(content, LIMIT) == (32, 48)
    whole = decode.decode_whole(content, LIMIT)
    assert whole.mode == "RGB" and np.array_equal(np.asarray(whole), UPRIGHT)


@pytest.mark.parametrize("look", [decode.upright_size, decode.decode_whole, visualize.preview])
def test_each_decoder_photo_above_max_pixels_is_refused(look: Callable[[bytes, int], object]) -> None:
    with pytest.raises(DecodeError, match="more than the limit of 99"):
        look(encode(Image.new("L", (10, 10))), 99)


@pytest.mark.parametrize("orientation", [1, 6])
def test_overlay_exif_rotation_is_applied_and_colours_are_averaged(orientation: int) -> None:
    preview = visualize.preview(encode(stored_with_orientation(UPRIGHT, orientation), exif=exif(orientation)), LIMIT)
    mask = encode_mask(np.repeat(np.repeat(np.array([[0, 1], [2, 0]], np.uint8), 16, 0), 24, 1), labels.palette(3))
    laid_over = np.asarray(Image.open(io.BytesIO(visualize.overlay(preview, mask))))
    assert laid_over.shape == (32, 48, 3)
    colours = np.array(labels.palette(3))[np.array([[0, 1], [2, 0]])]
    assert np.abs(corners(laid_over) - (corners(UPRIGHT).astype(int) + colours) / 2).max() < 12  # JPEG is lossy


def test_preview_large_photo_is_reduced() -> None:
    preview = Image.open(io.BytesIO(visualize.preview(encode(Image.new("CMYK", (3000, 1500)), "JPEG"), 10**7)))
    assert (preview.mode, preview.size) == ("RGB", (1024, 512))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("scale", [1, 30])
def test_comparison_shows_photo_truth_prediction_and_errors(orientation: int, scale: int) -> None:
    upright = UPRIGHT.repeat(scale, 0).repeat(scale, 1)
    photo = encode(stored_with_orientation(upright, orientation), exif=exif(orientation))
    truth = IDS.repeat(16 * scale, 0).repeat(24 * scale, 1).astype(np.uint8)
    predicted = np.full_like(truth, 1)
    small = decode.decode_small(photo, visualize.COMPARISON_SIDE, 10**7)
    content = visualize.comparison(small, truth, predicted, labels.palette(3))
    picture = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    height, width = (32, 48) if scale == 1 else (267, 400)
    assert picture.shape == (height, 4 * width + 3 * 4, 3)
    shown = [corners(picture[:, i * (width + 4) :][:, :width]) for i in range(4)]
    pet, background, border = (np.array(colour) for colour in labels.palette(3))
    white, red = np.full(3, 255), np.array([255, 0, 0])
    assert np.abs(shown[0] - corners(UPRIGHT)).max() < 12  # JPEG is lossy
    assert np.abs(shown[1] - [[pet, background], [border, white]]).max() < 12
    assert np.abs(shown[2] - background).max() < 12
    grey = [150, 90]  # of green and of grey
    assert np.abs(shown[3] - [[red, np.full(3, grey[0])], [red, np.full(3, grey[1])]]).max() < 12


def test_decode_pair_resized_mask_gets_no_new_class() -> None:
    stripes = np.tile(np.array([1, 1, 3, 3, 3], np.uint8), (50, 10))
    photo = encode(Image.new("RGB", (50, 50)))
    ids = decode_pair(photo, encode(Image.fromarray(stripes)), (37, 23), TRIMAP, LIMIT).class_ids
    assert set(np.unique(ids)) == {0, 2}


@pytest.mark.parametrize(
    "raw",
    [
        np.array([[0, 1]], np.uint8).repeat(4, 1),
        np.array([[0, 1]], bool).repeat(4, 1),
        np.array([[0, 1]], np.uint16).repeat(4, 1),
    ],
    ids=["8 bits", "1 bit", "16 bits"],
)
def test_decode_pair_grey_mask_of_each_bit_depth_is_decoded(raw: np.ndarray) -> None:
    photo = encode(Image.new("RGB", (8, 1)))
    ids = decode_pair(photo, encode(Image.fromarray(raw)), (1, 8), LabelMap.parse("0:0,1:1", 2), LIMIT).class_ids
    assert ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def png_of_few_bits(values: np.ndarray, bits: int) -> bytes:
    """Return a grey PNG of 2 or 4 bits per pixel, which Pillow reads but cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    shifts = np.arange(8 - bits, -1, -bits)
    packed = (values.reshape(height, -1, 8 // bits) << shifts).sum(2).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [2, 4])
def test_decode_pair_grey_mask_of_2_or_4_bits_keeps_stored_values(bits: int) -> None:
    values = np.array([[1, 2, 3, 1, 2, 3, 1, 2]])
    photo = encode(Image.new("RGB", (8, 1)))
    ids = decode_pair(photo, png_of_few_bits(values, bits), (1, 8), TRIMAP, LIMIT).class_ids
    counted = zip(*np.unique(values, return_counts=True), strict=True)
    assert raw_values(png_of_few_bits(values, bits), LIMIT, 10) == (dict(counted), False)
    assert np.array_equal(ids, values - 1)


def test_decode_pair_palette_mask_indices_are_its_values() -> None:
    mask = Image.fromarray(MASK)
    mask.putpalette([9, 9, 9] * 256)
    ids = decode_pair(encode(Image.fromarray(UPRIGHT)), encode(mask), (32, 48), TRIMAP, LIMIT).class_ids
    assert np.array_equal(corners(ids), IDS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_decode_pair_colour_mask_is_mapped_by_colour(mode: str) -> None:
    colours = np.array([[[255, 0, 0], [0, 0, 7], [9, 9, 9], [255, 0, 0]]], np.uint8)
    mask = encode(Image.fromarray(colours).convert(mode, palette=Image.Palette.ADAPTIVE))
    photo, label_map = encode(Image.new("RGB", (4, 1))), LabelMap.parse("#ff0000:1,#000007:0", 2, ignore="#090909")
    ids = decode_pair(photo, mask, (1, 4), label_map, LIMIT).class_ids
    assert ids.tolist() == [[1, 0, 255, 1]]
    with pytest.raises(DecodeError, match="it has the value #090909, but the classes cover #000007, #ff0000"):
        decode_pair(photo, mask, (1, 4), LabelMap.parse("#ff0000:1,#000007:0", 2), LIMIT)


def test_decode_photo_nearest_equals_pillow_nearest() -> None:
    """Keras's load_img also takes the nearest pixel: no average, no reduced JPEG."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    for kind in ("PNG", "JPEG"):
        content = encode(Image.fromarray(pixels), kind)
        whole = Image.open(io.BytesIO(content))
        photo = decode.decode_photo(content, (40, 50), LIMIT, "nearest")
        assert np.array_equal(photo.pixels, np.asarray(whole.resize((50, 40), Image.Resampling.NEAREST)))
        tile = tiles.cut(whole, 0, 0, (400, 600), (40, 50), "nearest")
        assert np.array_equal(tile, photo.pixels)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (encode(Image.new("L", (48, 32), 4)), "it has the value 4, but the classes cover 1, 2, 3"),
        (encode(Image.fromarray(np.eye(32, 48, dtype=np.uint8) * 255)), "--num-classes 2 --label-map 0:0,255:1"),
        (encode(Image.fromarray(np.full((32, 48), 1000, np.uint16))), "it has the value 1000,"),
        (encode(Image.fromarray(np.full((32, 48), 70000, np.int32)), "TIFF"), "it has the value 70000,"),
        (encode(Image.new("L", (32, 48), 1)), "its size 32 × 48 differs from its photo's 48 × 32"),
        (encode(Image.new("RGB", (48, 32), (0, 0, 9))), r"it is a colour image .* as in \"#000009:0,…\""),
        (b"no image", "not an image that can be read"),
        (b"", "the file is empty"),
    ],
)
def test_decode_pair_invalid_mask_is_refused(mask: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        decode_pair(encode(Image.fromarray(UPRIGHT)), mask, (16, 16), TRIMAP, LIMIT)
    assert caught.value.in_mask


def test_decode_pair_single_unknown_pixel_is_refused_before_resizing() -> None:
    mask = np.full((200, 200), 1, np.uint8)
    mask[101, 57] = 77
    photo = encode(Image.new("RGB", (200, 200)))
    with pytest.raises(DecodeError, match="it has the value 77,"):
        decode_pair(photo, encode(Image.fromarray(mask)), (16, 16), TRIMAP, LIMIT)


JPEG = encode(Image.fromarray(UPRIGHT).resize((400, 300)), "JPEG")


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (b"", "the file is empty"),
        (b"just text", "it starts with b'just tex'"),
        (b"%PDF-1.4", "not an image that can be read"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:10], "."),
        (encode(Image.new("F", (8, 8)), "TIFF"), "floating-point"),
        (encode(Image.fromarray(np.full((8, 8), 10**6, np.int32)), "TIFF"), "more than 16 bits"),
        (encode(Image.new("1", (70000, 1))), "a side is longer than 65535"),
        (encode(Image.new("1", (1001, 1000))), "1001 × 1000 pixels are more than the limit of 1000000"),
    ],
)
def test_decode_photo_unusable_photo_is_refused(photo: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode.decode_photo(photo, (16, 16), LIMIT)
    with pytest.raises(DecodeError, match=message) as caught:
        decode_pair(photo, encode(Image.new("L", (8, 8), 1)), (16, 16), TRIMAP, LIMIT)
    assert not caught.value.in_mask


def test_encode_mask_png_has_class_ids_and_palette() -> None:
    ids = np.random.default_rng(0).integers(0, 3, (37, 51)).astype(np.uint8)
    image = Image.open(io.BytesIO(encode_mask(ids, labels.palette(3))))
    assert (image.format, image.mode) == ("PNG", "P")
    assert np.array_equal(np.asarray(image), ids)
    assert image.convert("RGB").getpixel((0, 0)) == labels.palette(3)[ids[0, 0]]


def test_encode_mask_200_classes_round_trip() -> None:
    ids = np.arange(200, dtype=np.uint8).reshape(10, 20)
    image = Image.open(io.BytesIO(encode_mask(ids, labels.palette(200))))
    assert np.array_equal(np.asarray(image), ids)


def test_decode_pair_unusual_published_files_are_decoded_or_refused(pets: Path) -> None:
    """A GIF and a PNG named .jpg and a truncated JPEG are decoded. A mask of another size is refused."""

    def pair(folder: str, name: str) -> Pair:
        photo = (pets / folder / "images" / f"{name}.jpg").read_bytes()
        mask = (pets / folder / "trimaps" / f"{name}.png").read_bytes()
        return decode_pair(photo, mask, (160, 160), TRIMAP, 10**8)

    for folder, name in (
        ("bad", "Abyssinian_34"),
        ("bad", "samoyed_38"),
        ("full", "Abyssinian_5"),
        ("full", "Abyssinian_17"),
    ):
        decoded = pair(folder, name)
        assert decoded.photo.pixels.std() > 10
        assert set(np.unique(decoded.class_ids)) <= {0, 1, 2}
    with pytest.raises(DecodeError, match="its size 3264 × 2448 differs from its photo's 2048 × 1536"):
        pair("bad", "Egyptian_Mau_162")


def test_lift_pillow_limit_two_threads_limit_is_restored_after_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    with pytest.raises(Image.DecompressionBombError):  # 1,200 pixels are more than twice the limit
        Image.open(io.BytesIO(buffer.getvalue()))
    assert decode.decode_photo(buffer.getvalue(), (16, 16), 1200).pixels.shape == (16, 16, 3)
    with pytest.raises(DecodeError, match="more than the limit of 1199"):
        decode.decode_photo(buffer.getvalue(), (16, 16), 1199)
    assert Image.MAX_IMAGE_PIXELS == 100

    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with image_file.lift_pillow_limit():
            entered.set()
            leave.wait(10)

    with image_file.lift_pillow_limit():
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
    assert Image.MAX_IMAGE_PIXELS is None  # the other thread still needs it
    leave.set()
    thread.join()
    assert Image.MAX_IMAGE_PIXELS == 100
