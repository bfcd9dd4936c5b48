"""Find label errors: score the mask of each pair by networks that did not train on the pair.

One network is in memory at a time, and pairs are streamed. This module writes no files, and does not rank.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from statistics import fmean

import pyarrow as pa
import torch

from petseg.config.base import MAX_PIXELS, default_batch_size
from petseg.data.check import Disagreement
from petseg.data.encode import encode_mask
from petseg.data.labels import LabelMap
from petseg.data.tiles import tiling_of
from petseg.evaluation.evaluator import Evaluator
from petseg.inference.predictor import Predictor
from petseg.models import checkpoint
from petseg.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Trained:
    """A checkpoint, and the pairs that it must not judge."""

    checkpoint: Checkpoint
    ids: Set[str]
    """Ids of the pairs that it was trained on."""


class LabelChecker:
    """Networks that score the masks of pairs. All of them have the classes of `label_map`."""

    def __init__(
        self, networks: Sequence[Trained], label_map: LabelMap, masks_upright: bool | None, *, use_gpu: bool
    ) -> None:
        self._networks = networks
        self._label_map = label_map
        self._masks_upright = masks_upright
        self._use_gpu = use_gpu

    def disagreements(self, pairs: pa.Table, scored: Callable[[], None]) -> dict[str, Disagreement]:
        """Return the disagreement of each pair by its id; pairs that cannot be scored are missing.

        A pair with several scores gets their mean. `scored` is called after each score; `num_scores` is their number.
        """
        values: defaultdict[str, list[float]] = defaultdict(list)
        for network, part in self._assigned(pairs):
            for row_id, value in zip(part["id"].to_pylist(), network.disagreements(part), strict=True):
                scored()
                if value is not None:
                    values[row_id].append(value)
        seen_by_all = frozenset.intersection(*(frozenset(network.ids) for network in self._networks))
        return {row_id: Disagreement(fmean(found), row_id not in seen_by_all) for row_id, found in values.items()}

    def num_scores(self, pairs: pa.Table) -> int:
        """Return the number of scores that `disagreements` computes for these pairs."""
        return sum(map(len, assign(pairs["id"].to_pylist(), [network.ids for network in self._networks])))

    def masks(self, pairs: pa.Table, palette: tuple[tuple[int, int, int], ...]) -> dict[str, bytes]:
        """Return predicted masks by id, as `encode_mask` makes them, each by a network that scored the pair.

        A pair that cannot be read any more is missing.
        """
        masks: dict[str, bytes] = {}
        for network, part in self._assigned(pairs):
            left = part.filter(pa.array([row_id not in masks for row_id in part["id"].to_pylist()], pa.bool_()))
            for row_id, class_ids in zip(left["id"].to_pylist(), network.masks(left), strict=True):
                if class_ids is not None:
                    masks[row_id] = encode_mask(class_ids, palette)
        return masks

    def _assigned(self, pairs: pa.Table) -> Iterator[tuple[Evaluator, pa.Table]]:
        """Yield each network that has pairs to score, and these pairs."""
        indices_of = assign(pairs["id"].to_pylist(), [network.ids for network in self._networks])
        for network, indices in zip(self._networks, indices_of, strict=True):
            if indices:
                yield self._load(network.checkpoint), pairs.take(pa.array(indices))

    def _load(self, trained: Checkpoint) -> Evaluator:
        threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(1)  # of torch's own: the predictor and the evaluator start theirs
        predictor = Predictor(
            checkpoint.load_model(trained),
            torch.device("cuda" if self._use_gpu else "cpu"),
            default_batch_size(None, self._use_gpu),
            trained.model.image_size,
            resize=trained.model.resize,
            tiling=tiling_of(trained.model),
            threads=1 if self._use_gpu else threads,
        )
        upright = self._masks_upright
        return Evaluator(predictor, trained.model, self._label_map, MAX_PIXELS, threads, masks_upright=upright)


def assign(ids: Sequence[str], trained_on: Sequence[Set[str]]) -> list[list[int]]:
    """Return, for each network, the indices of the pairs that it scores.

    `trained_on` holds the ids that each network was trained on. A pair is scored by all networks that were not trained
    on it, or by all networks if there are none.
    """
    chosen: list[list[int]] = [[] for _ in trained_on]
    for index, row_id in enumerate(ids):
        unseen = [number for number, seen in enumerate(trained_on) if row_id not in seen]
        for number in unseen or range(len(trained_on)):
            chosen[number].append(index)
    return chosen
