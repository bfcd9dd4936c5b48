"""Describe photos by vectors that a network computes: photos that look alike to it have similar vectors."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from petseg import storage
from petseg.config.base import MAX_PIXELS
from petseg.data.decode import decode_photo, max_bytes
from petseg.data.image_file import DecodeError
from petseg.lookahead import map_ahead
from petseg.models import checkpoint
from petseg.models.checkpoint import Checkpoint


def embed_photos(trained: Checkpoint, locations: Iterable[str]) -> Iterator[np.ndarray | None]:
    """Yield the vector of each photo, float32 (F,) of unit length; None if it cannot be read.

    The vector is the mean over the narrowest feature map, for the whole photo at the network's size. Raises
    `UnavailableError` if storage does not answer.
    """
    model = checkpoint.load_model(trained).eval()
    settings = trained.model

    @torch.inference_mode()
    def embed(content: bytes | OSError) -> np.ndarray | None:
        if isinstance(content, OSError):
            return None
        try:
            photo = decode_photo(content, settings.image_size, MAX_PIXELS, settings.resize)
        except DecodeError:
            return None
        pixels = torch.from_numpy(photo.pixels[None].copy())  # a copy, because the photo may be read-only
        features = model.narrowest_features(pixels.permute(0, 3, 1, 2))
        return torch.nn.functional.normalize(features.mean((2, 3)))[0].numpy()

    torch.set_num_threads(1)  # for each thread of the pool
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        yield from map_ahead(pool, embed, storage.read_each(locations, max_bytes(MAX_PIXELS)), 2 * threads)
