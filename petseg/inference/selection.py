"""Choose the photos of a finished prediction that are worth labelling next. Arrays in, indices out; no files."""

from collections.abc import Iterable

import numpy as np


def most_unsure(unsure: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the highest values, the highest first; of equal ones, the first. `unsure` is (N,)."""
    return np.argsort(-unsure, kind="stable")[:count]


def rarest_classes(shares: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the photos with the most of rare classes, the one with the most first.

    `shares` is the fraction of the pixels of each photo that each class has, (N, C). A photo's score is the mean over
    the classes of its share, divided by the class's mean share of all photos: a class of half the pixels counts as much
    as one of a thousandth.
    """
    mean = shares.mean(0)
    return most_unsure((shares / np.where(mean > 0, mean, 1)).mean(1), count)


def farthest(embeddings: np.ndarray, labelled: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Return the indices of photos that differ from the labelled ones and from each other, in the order of choice.

    Each is the one whose nearest neighbour, labelled or chosen before, is farthest away: the greedy k-center of Sener
    and Savarese, https://arxiv.org/abs/1708.00489. Without labelled photos, the first row is the first choice.
    `embeddings` (N, F) and `labelled`, vectors (F,), have unit length.
    """
    nearest = np.full(len(embeddings), np.inf)
    for other in labelled:
        nearest = np.minimum(nearest, _distances(embeddings, other))
    chosen: list[int] = []
    while len(chosen) < min(count, len(embeddings)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(embeddings, embeddings[chosen[-1]]))
        nearest[chosen] = -1
    return np.array(chosen, np.int64)


def _distances(embeddings: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the squared distance of each row to a vector, all of unit length: float (N,)."""
    return 2 - 2 * (embeddings @ other)
