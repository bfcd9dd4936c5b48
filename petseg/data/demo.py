"""Draw photos of pets and their trimaps from a seed, for the first run and the tests. No image file is shipped.

A trimap has the raw values of the Oxford-IIIT Pet dataset (`oxford_pets.CLASSES`): 1 pet, 2 background, 3 border.
"""

import io
import json
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from petseg import storage
from petseg.data.classes import write_classes
from petseg.data.oxford_pets import CLASSES

COUNT = 240
"""Number of pairs in the demo set."""

PET, BACKGROUND, BORDER = 1, 2, 3

_VERSION = 2
"""Increase this when the drawings change, so that a folder with old drawings is drawn again."""


def draw_set(folder: str, count: int = COUNT, seed: int = 0) -> tuple[str, str]:
    """Draw `count` pairs as `images/*.jpg` and `trimaps/*.png` below `folder`; return the two folders.

    A complete set with the same count and seed is kept. Anything else in the two folders is removed first.
    """
    images, trimaps = storage.join(folder, "images"), storage.join(folder, "trimaps")
    done, content = "complete.json", json.dumps({"version": _VERSION, "count": count, "seed": seed}).encode()
    marker = storage.join(folder, done)
    if done in storage.list_names(folder) and storage.read(marker) == content:
        return images, trimaps
    for subfolder in (images, trimaps):
        storage.remove_folder(subfolder)
    for index in range(count):
        photo, trimap = draw_pair(index, seed)
        storage.write(storage.join(images, f"pet_{index:04d}.jpg"), _encode(photo, "JPEG", quality=90))
        storage.write(storage.join(trimaps, f"pet_{index:04d}.png"), _encode(trimap, "PNG"))
    write_classes(trimaps, CLASSES)
    storage.write(marker, content)
    return images, trimaps


def draw_pair(index: int, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    """Return a photo (RGB) and its trimap (grey, values 1 to 3), of one size, determined by the arguments alone."""
    rng = np.random.default_rng((seed, index))
    width, height = (int(side) for side in rng.integers(180, 321, 2))
    silhouette = Image.new("L", (width, height))
    pose = _Pose(rng, width, height)
    pose.draw_body(ImageDraw.Draw(silhouette))
    inside = np.asarray(silhouette)[..., None] / 255

    fur = _make_texture(rng, height, width, contrast=35, coarsest=int(rng.integers(4, 24)))
    ground = _draw_background(rng, width, height, pose)
    pixels = ground * (1 - inside) + fur * inside
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pose.draw_face(ImageDraw.Draw(picture))
    return _add_camera_effects(rng, picture), _make_trimap(silhouette)


class _Pose:
    """The positions of one pet's parts: a body, a head with two ears, legs and a tail."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.size = size = min(width, height) * rng.uniform(0.2, 0.36)
        self.body_x = width * rng.uniform(0.35, 0.65)
        self.body_y = height * rng.uniform(0.5, 0.68)
        self.body_half = (size * rng.uniform(0.8, 1.15), size * rng.uniform(0.55, 0.8))
        self.side = side = rng.choice([-1, 1])
        self.head_x = self.body_x + side * size * rng.uniform(0.6, 0.9)
        self.head_y = self.body_y - size * rng.uniform(0.6, 0.95)
        self.head_half = size * rng.uniform(0.42, 0.58)
        self.ear_length = self.head_half * rng.uniform(0.6, 1.3)
        self.floppy_ears = rng.random() < 0.4
        self.tail_angle = rng.uniform(0.1, 1.3)
        self.leg_length = size * rng.uniform(0.3, 0.6)

    def draw_body(self, draw: ImageDraw.ImageDraw) -> None:
        """Draw the silhouette, filled with white."""
        x, y, size = self.body_x, self.body_y, self.size
        half_x, half_y = self.body_half
        thickness = max(3, int(size * 0.2))
        for at in (-0.7, -0.35, 0.35, 0.7):
            foot = y + half_y * 0.7 + self.leg_length
            draw.line((x + at * half_x, y, x + at * half_x, foot), fill=255, width=thickness)
        tail_x = x - self.side * (half_x + size * 0.6 * math.cos(self.tail_angle))
        tail_y = y - size * 0.8 * math.sin(self.tail_angle)
        draw.line((x - self.side * half_x * 0.8, y, tail_x, tail_y), fill=255, width=max(3, thickness // 2))
        _ellipse(draw, x, y, half_x, half_y, 255)
        neck = ((x + self.side * half_x * 0.5, y), (self.head_x, self.head_y))
        draw.line(neck, fill=255, width=int(size * 0.5))
        _ellipse(draw, self.head_x, self.head_y, self.head_half, self.head_half * 0.92, 255)
        for at in (-1, 1):
            ear_x = self.head_x + at * self.head_half * 0.65
            if self.floppy_ears:
                ear_y = self.head_y + self.ear_length * 0.3
                _ellipse(
                    draw,
                    ear_x + at * self.head_half * 0.3,
                    ear_y,
                    self.head_half * 0.28,
                    self.ear_length * 0.7,
                    255,
                )
            else:
                base, tip = self.head_half * 0.4, self.head_y - self.head_half * 0.5 - self.ear_length
                low = self.head_y - self.head_half * 0.35
                draw.polygon(((ear_x - base, low), (ear_x + base, low), (ear_x + at * base * 0.4, tip)), fill=255)

    def draw_face(self, draw: ImageDraw.ImageDraw) -> None:
        """Draw eyes and a nose, which lie inside the silhouette."""
        eye = max(1.5, self.head_half * 0.13)
        for at in (-0.4, 0.4):
            _ellipse(draw, self.head_x + at * self.head_half, self.head_y - eye, eye, eye, (25, 20, 15))
        _ellipse(draw, self.head_x, self.head_y + self.head_half * 0.35, eye * 1.2, eye * 0.8, (60, 35, 35))


def _draw_background(rng: np.random.Generator, width: int, height: int, pose: _Pose) -> np.ndarray:
    """Draw a wall above a floor, objects that are not pets, and the pet's shadow: float (H, W, 3)."""
    horizon = int(height * rng.uniform(0.3, 0.7))
    wall = _make_texture(rng, height, width, contrast=25, coarsest=int(rng.integers(2, 8)))
    floor = _make_texture(rng, height, width, contrast=30, coarsest=int(rng.integers(4, 40)))
    pixels = np.concatenate([wall[:horizon], floor[horizon:]])
    if rng.random() < 0.4:  # a striped wallpaper or a tiled floor
        period = rng.integers(10, 40)
        pixels[:, (np.arange(width) // period) % 2 == 0] *= rng.uniform(0.75, 0.95)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 5)):
        x, y, half = rng.uniform(0, width), rng.uniform(0, height), pose.size * rng.uniform(0.15, 0.5)
        colour = tuple(int(c) for c in rng.integers(20, 236, 3))
        if rng.random() < 0.5:
            _ellipse(draw, x, y, half, half, colour)
        else:
            draw.rectangle((x - half, y - half * 0.7, x + half, y + half * 0.7), fill=colour)
    shadow = Image.new("L", (width, height), 255)
    shadow_y = pose.body_y + pose.body_half[1] * 0.7 + pose.leg_length
    _ellipse(ImageDraw.Draw(shadow), pose.body_x, shadow_y, pose.body_half[0] * 1.2, pose.size * 0.15, 120)
    softened = np.asarray(shadow.filter(ImageFilter.GaussianBlur(pose.size * 0.08)), np.float64) / 255
    return np.asarray(picture, np.float64) * softened[..., None]


def _make_texture(rng: np.random.Generator, height: int, width: int, contrast: float, coarsest: int) -> np.ndarray:
    """Return one colour with noise at three scales, like fur, carpet or plaster: float (H, W, 3)."""
    pixels = np.broadcast_to(rng.uniform(40, 215, 3), (height, width, 3)).copy()
    for octave in range(3):
        cells = coarsest * 2**octave + 1
        noise = Image.fromarray(rng.normal(0, contrast / 2**octave, (cells, cells)).astype(np.float32))
        pixels += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    return pixels


def _add_camera_effects(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Light a picture from one side with a warm or cold tint; add a camera's softness and noise."""
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0))), np.float64)
    height, width = pixels.shape[:2]
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-1, 1, width) * math.cos(angle) + np.linspace(-1, 1, height)[:, None] * math.sin(angle)
    pixels *= (rng.uniform(0.65, 1.15) * (1 + rng.uniform(0, 0.3) * across))[..., None]
    pixels *= rng.uniform(0.9, 1.1, 3)
    pixels += rng.normal(0, rng.uniform(1, 6), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _make_trimap(silhouette: Image.Image) -> Image.Image:
    """Return the trimap of a silhouette.

    The border is a band of 7 pixels along the outline. Relative to the photo it is about as wide as the dataset's.
    """
    inside = np.asarray(silhouette.filter(ImageFilter.MinFilter(7))) > 0
    near = np.asarray(silhouette.filter(ImageFilter.MaxFilter(7))) > 0
    trimap = np.where(inside, PET, np.where(near, BORDER, BACKGROUND))
    return Image.fromarray(trimap.astype(np.uint8))


def _ellipse(
    draw: ImageDraw.ImageDraw, x: float, y: float, half_x: float, half_y: float, fill: int | tuple[int, ...]
) -> None:
    draw.ellipse((x - half_x, y - half_y, x + half_x, y + half_y), fill=fill)


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
