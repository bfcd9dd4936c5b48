"""Use a trained network in notebooks and scripts: one photo in, its mask out, without Ray. Start with `petseg.load`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from petseg import storage
from petseg.config.model import ModelConfig
from petseg.config.predict import PredictConfig
from petseg.data import decode
from petseg.data.decode import Photo
from petseg.data.image_file import DecodeError
from petseg.data.tiles import tiling_of
from petseg.errors import InputError
from petseg.inference.predictor import Mask, Predictor
from petseg.models import checkpoint

_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
"""Pillow modes with at most 8 bits per channel. Pillow would clip the values of other modes instead of scaling them."""


@dataclass(frozen=True)
class Segmenter:
    """A network that is ready to predict."""

    model: ModelConfig
    """The network's properties: `class_names`, `palette` (RGB, 0..255), `image_size`, …"""

    settings: PredictConfig
    """The options the network was loaded with."""

    predictor: Predictor

    def predict(self, image: str | Path | bytes | Image.Image | np.ndarray) -> Mask:
        """Return the mask of one photo, at its original, upright size.

        `image` is the path or URI of a file, the content of a file, a Pillow image, or RGB as uint8 (H, W, 3). A file
        gives the same mask as `petseg predict`. An already decoded image may give a slightly different mask at the
        edges of objects, because the job decodes a large JPEG at a fraction of its size.

        Returns a `petseg.inference.predictor.Mask`: `class_ids` uint8 (H, W), `class_pixels`, `confidence` and, if
        requested, `probabilities` uint8 (C, H, W).

        Raises `InputError` if the file cannot be read or is not a usable image.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise InputError(f"image: RGB as uint8 (H, W, 3) is expected, not {image.dtype} {image.shape}")
            return self._of_picture(Image.fromarray(image))
        if isinstance(image, Image.Image):
            if image.mode not in _MODES:
                raise InputError(f"image: Pillow has it as {image.mode}; give the file's path or its bytes instead")
            return self._of_picture(ImageOps.exif_transpose(image).convert("RGB"))
        if isinstance(image, bytes):
            name, content = "image", image
        else:
            name, at_most = str(image), decode.max_bytes(self.settings.max_pixels)
            content = storage.read_input(storage.absolute(name), name, at_most)
        try:
            return self._of_file(content)
        except DecodeError as error:
            raise InputError(f"{name}: {error}") from error

    def picture(self, mask: Mask) -> Image.Image:
        """Return a mask as an indexed-colour image. The pixel values are the class ids; the palette is for display.

        A notebook displays the image. `.save("cat.png")` keeps the ids. `.convert("RGB")` gives the colours.
        """
        image = Image.fromarray(mask.class_ids, mode="P")
        image.putpalette([channel for colour in self.model.palette for channel in colour])
        return image

    def _of_file(self, content: bytes) -> Mask:
        limit = self.settings.max_pixels
        tiling = self.predictor.tiling
        if tiling is not None and tiling.cuts(*decode.upright_size(content, limit)):
            return self._of_picture(decode.decode_whole(content, limit))
        return self._of_photo(decode.decode_photo(content, self.model.image_size, limit, self.model.resize))

    def _of_picture(self, picture: Image.Image) -> Mask:
        tiling = self.predictor.tiling
        if tiling is not None and tiling.cuts(picture.height, picture.width):
            return self.predictor.tiled(picture).mask()
        pixels = decode.resized(picture, self.model.image_size, self.model.resize)
        return self._of_photo(Photo(pixels, picture.height, picture.width))

    def _of_photo(self, photo: Photo) -> Mask:
        return next(self.predictor([photo])).mask()


def load(settings: PredictConfig, device: str) -> Segmenter:
    """Load a checkpoint's network onto a device, such as "cpu" or "cuda:1".

    Raises `InputError` in the same cases as `checkpoint.find`.
    """
    trained = checkpoint.find(storage.absolute(settings.checkpoint), "load")
    predictor = Predictor(
        checkpoint.load_model(trained),
        torch.device(device),
        settings.photos_per_pass,
        trained.model.image_size,
        settings.precision,
        resize=trained.model.resize,
        tiling=tiling_of(trained.model, settings.tile, settings.tile_overlap),
        probabilities=settings.probabilities,
    )
    return Segmenter(trained.model, settings, predictor)
