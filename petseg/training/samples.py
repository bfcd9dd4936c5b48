"""Validation pairs and what a network says of them, for the report of a training run. No files are read here.

The pairs are those that the feed has decoded, at the network's size: so it is the same for files and prepared sets, and
needs neither a GPU nor the photos once more.
"""

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from petseg.config.base import ModelConfig
from petseg.data import visualize
from petseg.data.decode import Photo
from petseg.evaluation import evaluator
from petseg.evaluation.evaluator import Counts
from petseg.inference.predictor import Predictor
from petseg.models.unet import UNet
from petseg.pipelines.decode import Decoded
from petseg.training.rank_data import Share

MOST = 256
"""Pairs that are looked at, spread evenly over all: seconds on two cores."""


@dataclass(frozen=True)
class Sample:
    """A pair as it is shown."""

    id: str
    cross_entropy: float | None
    """In nats per pixel; None where all pixels are ignored."""
    miou: float | None
    picture: bytes
    """`pictures.comparison` as a JPEG."""


def look(network: UNet, model: ModelConfig, val: Decoded, ids: pa.ChunkedArray) -> tuple[list[Sample], Counts]:
    """At most `MOST` validation pairs, in their order, and what is counted over them; `ids` are those of all."""
    total = val.num_rows
    numbers = np.arange(min(MOST, total)) * total // min(MOST, total)
    share = Share(val, 0, 1, torch.device("cpu"), budget_bytes=0)
    photos, masks = share.some(numbers)
    pixels = photos.permute(0, 2, 3, 1).numpy()
    threads = len(os.sched_getaffinity(0))
    predictor = Predictor(network, torch.device("cpu"), 8, model.image_size, threads=threads)
    predictions = predictor([Photo(photo, *model.image_size) for photo in pixels])
    classes, samples, counted = tuple(range(model.num_classes)), [], []
    for number, photo, mask, prediction in zip(numbers.tolist(), pixels, masks.numpy(), predictions, strict=True):
        counted.append(evaluator.count(prediction.probabilities, mask, classes))
        scores = evaluator.scores(counted[-1], model.class_names)
        picture = visualize.comparison(Image.fromarray(photo), mask, prediction.mask().class_ids, model.palette)
        samples.append(Sample(ids[number].as_py(), scores["cross_entropy"], scores["miou"], picture))
    return samples, sum(counted[1:], counted[0])
