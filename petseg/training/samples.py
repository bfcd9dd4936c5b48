"""Predict sample validation pairs for the report of a training run. This module reads no files.

The pairs are already decoded at the network's size, so image folders and prepared sets are treated alike. Neither a GPU
nor the original photos are needed.
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
from petseg.evaluation import scores
from petseg.evaluation.scores import Counts
from petseg.inference.predictor import Predictor
from petseg.models.network import Network
from petseg.pipelines.decode import Decoded
from petseg.training.rank_data import RankData

MAX_SAMPLES = 256
"""Maximum number of validation pairs to predict. 256 pairs take seconds on two CPU cores."""


@dataclass(frozen=True)
class Sample:
    """Scores and picture of one pair in the report."""

    id: str
    cross_entropy: float | None
    """Cross-entropy in nats per pixel; None if all pixels are ignored."""
    miou: float | None
    """Mean IoU over the classes that occur; None if there are none."""
    picture: bytes
    """JPEG from `visualize.comparison`."""


def predict_samples(
    network: Network, model: ModelConfig, val: Decoded, ids: pa.ChunkedArray
) -> tuple[list[Sample], Counts]:
    """Return (samples, sum of their `Counts`) for up to `MAX_SAMPLES` validation pairs, spread evenly.

    `ids` holds the ids of all pairs of `val`, in the same order. If they are cut into crops, a sample is a crop.
    """
    total = val.num_rows
    # Crops: each block has those of one pair.
    pair_of_row = range(total) if total == len(ids) else np.repeat(np.arange(len(ids)), val.block_rows)
    indices = np.arange(min(MAX_SAMPLES, total)) * total // min(MAX_SAMPLES, total)
    rank_data = RankData(val, 0, 1, torch.device("cpu"), budget_bytes=0)
    photos, masks = rank_data.take_rows(indices)
    pixels = photos.permute(0, 2, 3, 1).numpy()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)  # for each of the predictor's threads
    predictor = Predictor(network, torch.device("cpu"), 8, model.image_size, threads=threads)
    predictions = predictor([Photo(photo, *model.image_size) for photo in pixels])
    classes, samples, counts = tuple(range(model.num_classes)), [], []
    for index, photo, mask, prediction in zip(indices.tolist(), pixels, masks.numpy(), predictions, strict=True):
        counts += scores.count(prediction.strips(), mask, [classes])
        of_pair = scores.scores(counts[-1], model.class_names)
        small = Image.fromarray(photo)
        small.thumbnail((visualize.COMPARISON_SIDE, visualize.COMPARISON_SIDE))
        picture = visualize.comparison(small, mask, prediction.mask().class_ids, model.palette)
        samples.append(Sample(ids[int(pair_of_row[index])].as_py(), of_pair["cross_entropy"], of_pair["miou"], picture))
    return samples, sum(counts[1:], counts[0])
