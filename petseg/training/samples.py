"""Predict sample validation pairs for the report of a training run. This module reads no files.

The pairs are already decoded, at the network's size. The code is therefore the same for files and prepared sets, and
needs neither a GPU nor the original photos.
"""

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from petseg.config.model import ModelConfig
from petseg.data import visualize
from petseg.data.decode import Photo
from petseg.evaluation import evaluator
from petseg.evaluation.evaluator import Counts
from petseg.inference.predictor import Predictor
from petseg.models.network import Network
from petseg.pipelines.decode import Decoded
from petseg.training.rank_data import RankData

MOST = 256
"""Maximum number of pairs to predict, spread evenly over all. It takes seconds on two cores."""


@dataclass(frozen=True)
class Sample:
    """Scores and picture of one pair in the report."""

    id: str
    cross_entropy: float | None
    """Cross-entropy in nats per pixel; None if all pixels are ignored."""
    miou: float | None
    picture: bytes
    """JPEG from `visualize.comparison`."""


def predict_samples(
    network: Network, model: ModelConfig, val: Decoded, ids: pa.ChunkedArray
) -> tuple[list[Sample], Counts]:
    """Return up to `MOST` validation pairs, in order, and the counts over them. `ids` holds the ids of all pairs."""
    total = val.num_rows
    numbers = np.arange(min(MOST, total)) * total // min(MOST, total)
    rank_data = RankData(val, 0, 1, torch.device("cpu"), budget_bytes=0)
    photos, masks = rank_data.take_rows(numbers)
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
