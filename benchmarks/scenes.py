"""Train on drawn photos whose objects are small or rare, in several ways, and compare the scores at the photos' size.

python benchmarks/scenes.py small      20-pixel objects on 2000 × 1500: whole photos beside crops
python benchmarks/scenes.py street     a street with thin poles and signs on 960 × 720: whole photos beside crops
python benchmarks/scenes.py rare       a class of 0.5 % of the pixels on 240 × 180: each loss
python benchmarks/scenes.py classes    the street on 240 × 180, with eleven classes: each recipe and loss

Each way is a run of `petseg train` on the same pairs, and of `petseg evaluate` on others. All ways of a set train on
about the same number of pixels.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import beside
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Pair = tuple[Image.Image, Image.Image]

BACKGROUND, ROUND, SQUARE = 0, 1, 2
STREET = ("road", "sidewalk", "building", "sky", "tree", "car", "person", "pole", "sign", "fence", "grass")

STREET_COLOURS = (
    *((92, 90, 95), (150, 140, 138), (128, 112, 104), (190, 205, 222), (62, 88, 56), (110, 60, 60), (120, 82, 70)),
    *((110, 110, 112), (175, 160, 90), (120, 112, 100), (96, 118, 70)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--train", type=int, default=24, help="number of photos to train on")
    parser.add_argument("--test", type=int, default=12, help="number of other photos to evaluate on")
    parser.add_argument("--epochs", type=int, default=4, help="passes over all pixels of the photos")
    parser.add_argument("--only", default="", help="train only the ways whose title contains this")
    given = parser.parse_args()
    beside.quiet_ray()
    draw, names, ways = SETS[given.set]
    with tempfile.TemporaryDirectory(prefix="petseg-scenes-") as folder:
        place = Path(folder)
        for part, count, seed in (("train", given.train, 0), ("test", given.test, 1)):
            draw_set(place / part, draw, count, seed)
        classes = ["--classes", ",".join(names), "--label-map", ",".join(f"{i}:{i}" for i in range(len(names)))]
        rows = []
        for title, (flags, epochs) in ways.items():
            if given.only not in title:
                continue
            repeat = max(1, round(given.epochs * epochs))
            settings = [*flags, "--epochs", str(repeat), *classes]
            miou, iou, by_epoch, seconds = score(place, title.replace(" ", "-"), settings)
            worst = min(iou, key=lambda name: iou[name] or 0)
            kept = [f"{epoch}: {value:.3f}" for epoch, value in by_epoch]
            rows.append([title, f"{miou:.3f}", f"{worst} {iou[worst] or 0:.3f}", *kept, f"{seconds:.0f}"])
            print(title, f"{miou:.3f}", {name: round(value or 0, 3) for name, value in iou.items()}, flush=True)
        print(f"\n{beside.about()}\n")
        heads = ["", "mIoU", "lowest IoU", "validation: epoch of the lowest loss, its mIoU", "of the highest mIoU"]
        print(beside.table([*heads, "training, s"], rows))


def score(
    place: Path, name: str, flags: list[str]
) -> tuple[float, dict[str, float | None], list[tuple[int, float]], float]:
    """Train and evaluate.

    Returns the mIoU at the photos' size, the IoU of each class, the (epoch, validation mIoU) with the lowest loss and
    with the highest mIoU, and the seconds of training.
    """
    petseg = [sys.executable, "-m", "petseg"]
    began = time.perf_counter()
    pairs = ["--images", str(place / "train/images"), "--masks", str(place / "train/masks")]
    run = ["--recipe", "pretrained", "--storage", str(place), "--name", name]
    beside.run([*petseg, "train", *pairs, *run, *flags])
    seconds = time.perf_counter() - began
    pairs = ["--images", str(place / "test/images"), "--masks", str(place / "test/masks")]
    output = place / f"{name}-scores"
    beside.run([*petseg, "evaluate", "--checkpoint", str(place / name), *pairs, "--output", str(output)])
    scores = json.loads((output / "metrics.json").read_text())["original_size"]
    history = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
    chosen = min(history, key=lambda epoch: epoch["val_loss"]), max(history, key=lambda epoch: epoch["val_miou"])
    return scores["miou"], scores["iou"], [(epoch["epoch"], epoch["val_miou"]) for epoch in chosen], seconds


def draw_set(folder: Path, draw: Callable[[np.random.Generator], Pair], count: int, seed: int) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        photo, mask = draw(np.random.default_rng((seed, number)))
        photo.save(folder / "images" / f"{number:04}.jpg", quality=92)
        mask.save(folder / "masks" / f"{number:04}.png")


def small(rng: np.random.Generator) -> Pair:
    """Return a field of 2000 × 1500 with 60 things of 20 pixels, round or square, in the field's colours."""
    width, height = 2000, 1500
    mask = Image.new("L", (width, height), BACKGROUND)
    picture = _texture(rng, width, height, (96, 110, 78))
    on_mask, on_picture = ImageDraw.Draw(mask), ImageDraw.Draw(picture)
    for number in range(60):
        x, y = int(rng.integers(width - 20)), int(rng.integers(height - 20))
        red, green, blue = (int(value) for value in rng.normal((120, 115, 95), 14, 3).clip(0, 255))
        box, shape = (x, y, x + 19, y + 19), ROUND if number % 2 else SQUARE
        for draw, fill in ((on_mask, shape), (on_picture, (red, green, blue))):
            (draw.ellipse if shape == ROUND else draw.rectangle)(box, fill=fill)
    return _camera(rng, picture), mask


def street(rng: np.random.Generator, width: int = 960, height: int = 720) -> Pair:
    """Return a street: large areas, trees and cars, and thin poles, signs and persons."""
    ids = {name: number for number, name in enumerate(STREET)}
    mask = Image.new("L", (width, height), ids["sky"])
    draw = ImageDraw.Draw(mask)
    horizon = height * rng.uniform(0.42, 0.52)
    x = 0.0
    while x < width:  # buildings
        wide = width * rng.uniform(0.08, 0.22)
        if rng.random() < 0.8:
            draw.rectangle((x, horizon * rng.uniform(0.2, 0.7), x + wide, height), fill=ids["building"])
        x += wide
    draw.rectangle((0, horizon, width, height), fill=ids["grass"])
    middle = width * rng.uniform(0.4, 0.6)
    for name, half in (("sidewalk", 0.62), ("road", 0.45)):
        far, near = width * half * 0.12, width * half
        draw.polygon(
            ((middle - far, horizon), (middle + far, horizon), (middle + near, height), (middle - near, height)),
            fill=ids[name],
        )
    side = rng.choice([-1, 1])
    edge = middle + side * width * 0.4
    edges = sorted((edge, edge + side * width))
    draw.rectangle((edges[0], horizon - 0.03 * height, edges[1], horizon + 0.03 * height), fill=ids["fence"])
    for name, count in (("tree", 4), ("car", 3), ("person", 3), ("pole", 4), ("sign", 2)):
        for _ in range(int(rng.integers(1, count + 1))):
            _draw_thing(draw, rng, name, ids, width, height, horizon)
    shades = np.array(STREET_COLOURS) + rng.normal(0, 14, (len(STREET), 3))
    flat = Image.fromarray(shades[np.asarray(mask)].clip(0, 255).astype(np.uint8))
    noise = np.asarray(_texture(rng, width, height, (128, 128, 128)), np.float32) - 128
    return _camera(rng, Image.fromarray((np.asarray(flat) + 0.7 * noise).clip(0, 255).astype(np.uint8))), mask


def _draw_thing(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    name: str,
    ids: dict[str, int],
    width: int,
    height: int,
    horizon: float,
) -> None:
    near = rng.uniform(0, 1) ** 2  # 0: at the horizon, 1: at the camera
    foot, size = horizon + near * (height - horizon) * 0.8, height * (0.06 + 0.3 * near)
    x = width * rng.uniform(0, 1)
    if name == "tree":
        draw.rectangle((x - 0.06 * size, foot - size, x + 0.06 * size, foot), fill=ids[name])
        draw.ellipse((x - 0.5 * size, foot - 1.9 * size, x + 0.5 * size, foot - 0.7 * size), fill=ids[name])
    elif name == "car":
        draw.rectangle((x - 0.6 * size, foot - 0.4 * size, x + 0.6 * size, foot), fill=ids[name])
        draw.rectangle((x - 0.35 * size, foot - 0.65 * size, x + 0.35 * size, foot - 0.4 * size), fill=ids[name])
    elif name == "person":
        draw.rectangle((x - 0.1 * size, foot - 0.7 * size, x + 0.1 * size, foot), fill=ids[name])
        draw.ellipse((x - 0.08 * size, foot - 0.9 * size, x + 0.08 * size, foot - 0.7 * size), fill=ids[name])
    else:
        half = max(1.0, 0.02 * size)
        draw.rectangle((x - half, foot - 1.8 * size, x + half, foot), fill=ids["pole"])
        if name == "sign":
            draw.rectangle((x - 0.15 * size, foot - 1.9 * size, x + 0.15 * size, foot - 1.6 * size), fill=ids[name])


def rare(rng: np.random.Generator) -> Pair:
    """Return a photo of 240 × 180 with spots of 0.5 % of the pixels in all, among larger ones of another class."""
    width, height = 240, 180
    mask = Image.new("L", (width, height), 0)
    draw, picture = ImageDraw.Draw(mask), _texture(rng, width, height, (120, 104, 96))
    on_picture = ImageDraw.Draw(picture)
    for class_id, count, radius in ((1, 3, 26), (2, 3, 5)):
        for _ in range(count):
            x, y = (rng.uniform(radius, side - radius) for side in (width, height))
            colour = rng.normal((140, 100, 92) if class_id == 1 else (112, 96, 118), 8, 3).clip(0, 255)
            across = radius * rng.uniform(0.7, 1.2)
            box = (x - across, y - radius, x + across, y + radius)
            draw.ellipse(box, fill=class_id)
            on_picture.ellipse(box, fill=tuple(int(value) for value in colour))
    return _camera(rng, picture), mask


def _texture(rng: np.random.Generator, width: int, height: int, colour: tuple[int, int, int]) -> Image.Image:
    """Return noise at several scales around a colour."""
    pixels = np.full((height, width, 3), colour, np.float32)
    for octave in range(2, 9):
        cells = (2**octave * width // height + 1, 2**octave + 1)
        for channel in range(3):
            noise = Image.fromarray(rng.normal(0, 9, cells[::-1]).astype(np.float32))
            pixels[..., channel] += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _camera(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0))), np.float32)
    pixels = pixels * rng.uniform(0.75, 1.2) + rng.normal(0, 5, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


_SMALL_TILES = math.ceil(2000 / 320) * math.ceil(1500 / 320)
_STREET_TILES = math.ceil(960 / 320) * math.ceil(720 / 320)
_BALANCED = ["--loss", "ce+dice", "--class-weights", "balanced", "--batch-size", "8"]

SETS: dict[str, tuple[Callable[[np.random.Generator], Pair], tuple[str, ...], dict[str, tuple[list[str], float]]]] = {
    "small": (
        small,
        ("background", "round", "square"),
        {
            "whole photos at 320 × 320": ([*_BALANCED, "--image-size", "320", "320"], _SMALL_TILES),
            "crops of 320 × 320": ([*_BALANCED, "--crop", "320"], 1),
            "crops of 320 × 320 at half scale": ([*_BALANCED, "--crop", "320", "--scale", "0.5"], 4),
        },
    ),
    "rare": (
        rare,
        ("background", "large", "small"),
        {
            "cross-entropy": (["--batch-size", "4"], 10),
            "cross-entropy, balanced": (["--batch-size", "4", "--class-weights", "balanced"], 10),
            "cross-entropy and Dice": (["--batch-size", "4", "--loss", "ce+dice"], 10),
            "both balanced": (["--batch-size", "4", "--loss", "ce+dice", "--class-weights", "balanced"], 10),
        },
    ),
    "classes": (
        lambda rng: street(rng, 240, 180),
        STREET,
        {
            "best": (["--recipe", "best"], 10),
            "pretrained": ([], 10),
            "pretrained, balanced": (["--class-weights", "balanced"], 10),
            "pretrained, cross-entropy and Dice": (["--loss", "ce+dice"], 10),
            "pretrained, both balanced": (["--loss", "ce+dice", "--class-weights", "balanced"], 10),
            "pretrained at 180 × 240": (["--image-size", "180", "240"], 10),
        },
    ),
    "street": (
        street,
        STREET,
        {
            "whole photos at 320 × 320": (["--image-size", "320", "320"], _STREET_TILES),
            "crops of 320 × 320": (["--crop", "320"], 1),
            "crops of 320 × 320 at half scale": (["--crop", "320", "--scale", "0.5"], 4),
        },
    ),
}
"""Sets by name: the function that draws a pair, the names of the classes, and the ways to train.

A way has flags, and the number of epochs that show the network as many pixels as the set has.
"""


if __name__ == "__main__":
    main()
