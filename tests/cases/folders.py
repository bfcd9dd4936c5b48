"""Random folders of photos and masks, as users have them, with known truth.

    python tests/cases/folders.py [COUNT [SEED]]

Each folder mixes names, formats, kinds of pixels, orientations, numberings and faults. `differences` reads one with the
functions that the jobs use, and compares every pixel, error and count with the truth.
"""

import io
import random
import sys
import tempfile
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tifffile
from PIL import Image

from petseg.config.train import TrainConfig
from petseg.data import listing, manifest, orientation
from petseg.data.classes import resolve_classes
from petseg.data.labels import IGNORE_ID
from petseg.errors import InputError
from petseg.inference.shard import read_shard
from petseg.pipelines.pair_rows import decode_rows

LIMIT = 10**6
LOSSY = {"JPEG": 14, "WEBP": 14, "AVIF": 20, "JPEG2000": 14, "MPO": 14}
"""Formats that change pixels, and the mean difference (of 255) that is allowed for them."""

ENDINGS = {
    "JPEG": (".jpg", ".JPG", ".jpeg", ".jfif", ".jpe"),
    "MPO": (".mpo", ".jpg"),
    "PNG": (".png", ".PNG"),
    "TIFF": (".tif", ".tiff", ".TIFF"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2",),
    "BMP": (".bmp",),
}
STEMS = (
    *("plain", "#hash", "with, comma", "two  spaces", "dots.in.name", "привет мир", "猫", "Müller", "naïve", "train"),
    *("1", "back\\slash", "new\nline", "50% off", "-dash", "a=b", "quote'\"", "UPPER", "a", "a1", "Ångström"),
)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
SUFFIXES = (("", ""), ("", "_mask"), ("_0000", ""), ("_img", "_label"), ("", "-seg"), ("/image", "/mask"))
OTHERS = {
    ".DS_Store": "hidden",
    "Thumbs.db": ".db",
    "notes.txt": ".txt",
    "phone.MOV": ".mov",
    "raw.CR2": ".cr2",
    "no_ending": "without extension",
    ".hidden/photo.jpg": "hidden",
}


@dataclass
class Truth:
    """What is in a random folder."""

    images: str
    masks: str
    size_hw: tuple[int, int]
    """Upright size of all photos."""
    flags: TrainConfig
    num_classes: int
    masks_upright: bool
    photos: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    """Upright RGB pixels and the mean difference that is allowed, by id."""
    ids: dict[str, np.ndarray] = field(default_factory=dict)
    """Class ids of the upright masks, by id."""
    broken_photos: set[str] = field(default_factory=set)
    broken_masks: set[str] = field(default_factory=set)
    drawn: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    num_files: int = 0
    """Number of all files in the folder of the photos."""


def make(folder: Path, seed: int) -> Truth:
    """Write the random folder of a seed, and return what is in it."""
    return _Maker(folder, seed).make()


class _Maker:
    def __init__(self, folder: Path, seed: int) -> None:
        self.random, self.numpy = random.Random(seed), np.random.default_rng(seed)
        self.photos, self.masks = folder / "photos", folder / "masks"
        height = self.random.randint(16, 40)
        width = height if self.random.random() < 0.3 else self.random.randint(16, 40)
        self.num_classes = self.random.randint(2, 5)
        self.numbering = self.random.choice(["one", "one", "zero", "gaps", "colours"])
        self.raw, flags = self._numbering()
        self.truth = Truth(
            str(self.photos),
            str(self.masks),
            (height, width),
            flags,
            self.num_classes,
            masks_upright=self.random.random() < 0.5,
        )
        self.suffixes = self.random.choice(SUFFIXES) if self.random.random() < 0.5 else ("", "")
        self.turned = self.random.random() < 0.5

    def make(self) -> Truth:
        stems = self.random.sample(STEMS, self.random.randint(3, 7))
        for number, stem in enumerate(stems):
            below = self.random.choice(["", "", "sub/", "sub/deeper/"])
            self._add_pair(below + stem, number)
        for name in self.random.sample(sorted(OTHERS), self.random.randint(0, 3)):
            self._write(self.photos / name, b"\xff\xd8\xff something else")
            self.truth.skipped[OTHERS[name]] += 1
        if self.random.random() < 0.2:
            (self.photos / "circle").symlink_to(self.photos)
            self.truth.skipped["link to a folder that contains it"] += 1
            self.truth.num_files += 1
        return self.truth

    def _numbering(self) -> tuple[list[int], TrainConfig]:
        """Return the raw value of each class, and the flags that say so."""
        count = self.num_classes
        if self.numbering in ("one", "zero"):
            return [number + (self.numbering == "one") for number in range(count)], TrainConfig()
        top = 2**24 if self.numbering == "colours" else 255
        raw = sorted(self.random.sample(range(3, top), count))
        shown = [f"#{value:06x}" if self.numbering == "colours" else str(value) for value in raw]
        text = ",".join(f"{value}:{class_id}" for class_id, value in enumerate(shown))
        return raw, TrainConfig(num_classes=count, label_map=text)

    def _add_pair(self, stem: str, number: int) -> None:
        if self.suffixes[0].startswith("/") and "%" in stem:
            stem = f"pair{number}"
        how = self.random.choice(list(TURNS)) if self.turned and self.random.random() < 0.6 else 1
        kind, photo, pixels, allowed = self._photo(how)
        if kind is None:
            how = 1
        name = unicodedata.normalize(self.random.choice(["NFC", "NFD"]), stem)
        row_id = unicodedata.normalize("NFC", stem + self.suffixes[0]).replace("\\", "%5C").replace("\n", "%0A")
        fault = self.random.random()
        if fault < 0.08:
            photo = self.random.choice([b"", b"not a photo", photo[:40]])
            self.truth.broken_photos.add(row_id)
        else:
            self.truth.photos[row_id] = (pixels, allowed)
        ending = self.random.choice(ENDINGS[kind or "PNG"])
        self._write(self.photos / f"{name}{self.suffixes[0]}{ending}", photo)
        mask, ids, mask_ending = self._mask(how)
        if row_id not in self.truth.broken_photos:
            if 0.08 <= fault < 0.14:
                mask = self.random.choice([b"", b"no", mask[:20], _encode(Image.new("L", (7, 5), self.raw[0] % 256))])
                self.truth.broken_masks.add(row_id)
            else:
                self.truth.ids[row_id] = ids
                self._count_drawn(how)
        name = unicodedata.normalize(self.random.choice(["NFC", "NFD"]), stem)
        self._write(self.masks / f"{name}{self.suffixes[1]}{mask_ending}", mask)

    def _count_drawn(self, how: int) -> None:
        height, width = self.truth.size_hw
        if how == 1:
            return
        clear = how >= 5 and height != width
        self.truth.drawn[("upright" if self.truth.masks_upright else "as stored") if clear else "unclear"] += 1

    def _photo(self, how: int) -> tuple[str | None, bytes, np.ndarray, int]:
        """Return (Pillow's name of the format, content, upright pixels, allowed mean difference) of a photo."""
        height, width = self.truth.size_hw
        x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
        rgb = np.dstack([x, y, (x + y) / 2]).astype(np.uint8) + self.random.randint(0, 50)
        rgb[0, 0] = 255
        mode = self.random.choice(["RGB", "RGB", "RGB", "L", "RGBA", "P", "LA", "CMYK", "grey16", "rgb16"])
        if mode in ("grey16", "rgb16"):
            return self._wide_photo(mode, rgb, how)
        kinds = {"RGB": list(ENDINGS), "L": ["JPEG", "PNG", "TIFF", "BMP"], "RGBA": ["PNG", "TIFF", "WEBP"]}
        kind = self.random.choice(kinds.get(mode, ["JPEG", "TIFF"] if mode == "CMYK" else ["PNG", "TIFF"]))
        image = Image.fromarray(rgb)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(self.numpy.integers(1, 256, (height, width), np.uint8)))
        image = image.convert(mode)
        pixels = np.asarray(image.convert("RGB"))
        if kind in ("BMP", "AVIF", "JPEG2000", "MPO") or how == 1:
            tags = None
        else:
            tags = Image.Exif()
            tags[0x0112] = how
            image = image.transpose(TURNS[how])
        options: dict[str, Any] = {} if tags is None else {"exif": tags}
        if kind in LOSSY:
            options["quality"] = 95
        if kind in ("TIFF", "PNG", "WEBP") and self.random.random() < 0.1:
            options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)] * 2}
        content = _encode(image, kind, **options)
        return (kind if tags is not None or how == 1 else None), content, pixels, LOSSY.get(kind, 0)

    def _wide_photo(self, mode: str, rgb: np.ndarray, how: int) -> tuple[str | None, bytes, np.ndarray, int]:
        """Return a photo of up to 16 bits per channel, as `_photo` does; None for the format if it is not turned."""
        values = rgb.astype(np.uint16) << self.random.choice([0, 2, 4, 8])
        content = io.BytesIO()
        if mode == "grey16":
            rgb = np.repeat(rgb[..., :1], 3, 2)
            Image.fromarray(np.ascontiguousarray(values[..., 0])).save(content, self.random.choice(["PNG", "TIFF"]))
        else:
            tifffile.imwrite(content, values, photometric="rgb", byteorder=">" if self.random.random() < 0.5 else "<")
        return ("TIFF" if how == 1 else None), content.getvalue(), rgb, 0

    def _mask(self, how: int) -> tuple[bytes, np.ndarray, str]:
        """Return (content, upright class ids, ending) of a mask that has every class."""
        height, width = self.truth.size_hw
        ids = self.numpy.integers(0, self.num_classes, (height, width)).astype(np.uint8)
        ids.flat[: self.num_classes] = np.arange(self.num_classes)
        raw = np.array(self.raw)[ids]
        ignored = np.zeros(ids.shape, bool)
        if self.numbering != "colours" and self.random.random() < 0.3:
            ignored = self.numpy.random(ids.shape) < 0.1
            ignored.flat[: self.num_classes] = False
            raw = np.where(ignored, 255, raw)
        if self.numbering == "colours":
            content, ending, erased = self._colour_mask(raw, how)
            ignored |= erased
        else:
            content, ending = self._number_mask(raw, how)
        return content, np.where(ignored, IGNORE_ID, ids).astype(np.uint8), ending

    def _number_mask(self, raw: np.ndarray, how: int) -> tuple[bytes, str]:
        raw = self._as_drawn(raw.astype(np.uint8), how)
        kinds = ["PNG", "BMP", "P", "uint8", "uint16", "int32", "uint32", "int64", "uint64"]
        kinds += ["float16", "float32", "float64", "white", *(["bool"] if raw.max() == 1 else ())]
        kind = self.random.choice(kinds)
        if kind in ("PNG", "BMP"):
            return _encode(Image.fromarray(raw), kind), f".{kind.lower()}"
        if kind == "P":
            image = Image.fromarray(raw).convert("P")
            image = Image.frombytes("P", image.size, raw.tobytes())
            image.putpalette(self.numpy.integers(0, 256, 768, np.uint8).tobytes())
            return _encode(image), ".png"
        content = io.BytesIO()
        if kind == "white":  # 0 is white
            tifffile.imwrite(content, raw, photometric="miniswhite")
        elif self.random.random() < 0.5:
            tifffile.imwrite(content, raw.astype(kind), compression="zlib")
        else:
            tifffile.imwrite(content, raw.astype(kind), byteorder=">")
        return content.getvalue(), ".tif"

    def _colour_mask(self, raw: np.ndarray, how: int) -> tuple[bytes, str, np.ndarray]:
        erased = np.zeros(raw.shape, bool)
        rgb = np.dstack([raw >> 16, raw >> 8 & 255, raw & 255]).astype(np.uint8)
        kind = self.random.choice(["PNG", "TIFF", "BMP", "RGBA", "P"])
        if kind == "RGBA":
            erased = self.numpy.random(raw.shape) < 0.2
            rgb = np.dstack([rgb, np.where(erased, 0, 255).astype(np.uint8)])
        if kind == "P":
            ids = np.searchsorted(self.raw, raw).astype(np.uint8)
            image = Image.frombytes("P", raw.shape[::-1], ids.tobytes())
            image.putpalette(bytes(part for value in self.raw for part in value.to_bytes(3, "big")))
            drawn = image if self.truth.masks_upright or how == 1 else image.transpose(TURNS[how])
            return _encode(drawn), ".png", erased
        image = Image.fromarray(self._as_drawn(rgb, how))
        kind = "PNG" if kind == "RGBA" else kind
        return _encode(image, kind), {"PNG": ".png", "TIFF": ".tif", "BMP": ".bmp"}[kind], erased

    def _as_drawn(self, upright: np.ndarray, how: int) -> np.ndarray:
        if self.truth.masks_upright or how == 1:
            return upright
        return np.asarray(Image.fromarray(upright).transpose(TURNS[how]))

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.truth.num_files += path.is_relative_to(self.photos)


def _encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def differences(truth: Truth) -> list[str]:
    """Read a folder as prediction and as training do. Return what differs from the truth."""
    return [*_predicted(truth), *_trained(truth)]


def _predicted(truth: Truth) -> list[str]:
    skipped: listing.Skipped = {}
    photos = manifest.discover(truth.images, skipped=skipped)
    found, expected = set(photos["id"].to_pylist()), truth.photos.keys() | truth.broken_photos
    wrong = [f"ids {found ^ expected}"] if found != expected else []
    if skipped["--images"] != truth.skipped:
        wrong.append(f"skipped {skipped}, not {truth.skipped}")
    if len(found) + sum(skipped["--images"].values()) != truth.num_files:
        wrong.append(f"{len(found)} rows and {skipped} are not {truth.num_files} files")
    for row in read_shard(photos, truth.size_hw, LIMIT, resize="nearest").to_pylist():
        if row["id"] in truth.broken_photos:
            wrong += [] if row["error"] else [f"{row['id']}: no error"]
        elif row["error"] is not None:
            wrong.append(f"{row['id']}: {row['error']}")
        else:
            wrong += _photo_differs(truth, row["id"], row["pixels"])
    return wrong


def _photo_differs(truth: Truth, row_id: str, pixels: bytes) -> list[str]:
    expected, allowed = truth.photos[row_id]
    found = np.frombuffer(pixels, np.uint8).reshape(expected.shape)
    difference = np.abs(found.astype(int) - expected).mean()
    return [f"{row_id}: pixels differ by {difference:.2f}"] if difference > allowed else []


def _trained(truth: Truth) -> list[str]:
    pairs = manifest.discover(truth.images, truth.masks)
    classes = resolve_classes(truth.flags, truth.masks, pairs)
    wrong = [f"{len(classes.names)} classes"] if len(classes.names) != truth.num_classes else []
    rows = decode_rows(pairs, truth.size_hw, classes.label_map, "nearest")
    drawn = Counter(rows["drawn"].drop_null().to_pylist())
    if drawn != truth.drawn:
        wrong.append(f"drawn {drawn}, not {truth.drawn}")
    if drawn["unclear"]:
        rows = _decide(truth, pairs, rows, drawn, wrong, classes.label_map)
    for row in rows.to_pylist():
        if row["id"] in truth.broken_photos | truth.broken_masks:
            wrong += [] if row["error"] else [f"{row['id']}: the pair has no error"]
        elif row["error"] is not None:
            wrong.append(f"{row['id']}: {row['error']}")
        else:
            ids = np.frombuffer(row["mask"], np.uint8).reshape(truth.size_hw)
            if not np.array_equal(ids, truth.ids[row["id"]]):
                wrong.append(f"{row['id']}: {(ids != truth.ids[row['id']]).mean():.0%} of the mask differ")
            wrong += _photo_differs(truth, row["id"], row["image"])
    return wrong


def _decide(
    truth: Truth, pairs: pa.Table, rows: pa.Table, drawn: Counter[str], wrong: list[str], label_map: Any
) -> pa.Table:
    """Return the rows decoded with the decision of the clear masks, or of the user if there are none."""
    is_clear = bool(truth.drawn["upright"] or truth.drawn["as stored"])
    try:
        upright = orientation.decide(drawn, "")
        if not is_clear or upright != truth.masks_upright:
            wrong.append(f"masks decided as upright: {upright}")
    except InputError:
        upright = truth.masks_upright
        if is_clear:
            wrong.append("nothing was decided")
    return decode_rows(pairs, truth.size_hw, label_map, "nearest", upright)


def main() -> None:
    """Make and read COUNT folders, and print those that differ."""
    count, first = ([int(word) for word in sys.argv[1:]] + [300, 0][len(sys.argv) - 1 :])[:2]
    failed = 0
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as folder:
            wrong = differences(make(Path(folder), seed))
        failed += bool(wrong)
        for line in wrong:
            print(f"seed {seed}: {line}")
    print(f"{failed} of {count} folders differ")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
