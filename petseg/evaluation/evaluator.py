"""Score a network, or masks that were predicted before, on pairs, and draw pairs.

This runs in a plain process without Ray. Threads decode ahead of the network and count behind it. Apart from a row of
numbers per pair, memory does not grow with the number of pairs. This module writes no files.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from torch import Tensor

from petseg import storage
from petseg.config.base import Resize
from petseg.config.model import ModelConfig
from petseg.data import decode, manifest, visualize
from petseg.data.image_file import DecodeError
from petseg.data.labels import LabelMap
from petseg.data.orientation import Drawn
from petseg.data.pairs import Pair, UnclearMaskError, WholePair, decode_pair, decode_whole_pair
from petseg.evaluation import scores
from petseg.evaluation.scores import Counts, View
from petseg.inference import crash_guard
from petseg.inference.predictor import Prediction, Predictor, TiledPrediction
from petseg.lookahead import map_ahead

WORST = 20
"""Maximum number of pairs to draw."""

_PAIRS_AT_A_TIME = 256  # maximum number of pairs decoded before the network sees them
_PIXELS_AT_A_TIME = 2**26  # limit on the pixels of their masks at the original size; larger masks mean fewer pairs

T = TypeVar("T")

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("cross_entropy", pa.float64()),
        ("pixel_accuracy", pa.float64()),
        ("miou", pa.float64()),
        ("iou", pa.list_(pa.float64())),
        ("boundary_miou", pa.float64()),
        ("error", pa.string()),
    ]
)
"""Schema of the table of pairs: the upright photo's own height and width, and the scores of the first view."""


@dataclass(frozen=True)
class Result:
    """Scores and statistics of one pair."""

    row: dict[str, Any]
    """Values by the column names of `ROWS`. A missing key means null."""

    counts: dict[View, Counts]
    """Statistics by view; empty if the pair could not be decoded."""

    drawn: Drawn | None
    """See `pairs.drawn`. With "unclear" and no counts, the pair was not decoded."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pair:
    """A row of the manifest with its decoded photo and mask, or with the error."""

    row: dict[str, Any]
    decoded: Pair | WholePair | None = None
    error: str | None = None
    drawn: Drawn | None = None


_Predicted = tuple[_Pair, Prediction | TiledPrediction | None]
_Read = tuple[dict[str, str], bytes, bytes, str]
KILLED = "decoding it crashed, or ran out of memory, in every attempt; convert its files, or leave it out"
"""Error of a pair that repeatedly kills the process that decodes it."""


class Evaluator:
    """Scorer of a network on pairs. `predictor` must accept photos at the image size of `model`.

    If the predictor cuts photos into tiles, pairs are scored at the photos' original size only.
    """

    def __init__(
        self,
        predictor: Predictor,
        model: ModelConfig,
        label_map: LabelMap,
        max_pixels: int,
        threads: int,
        exclude_class: str = "",
        masks_upright: bool | None = None,
    ) -> None:
        self._predictor = predictor
        self._model = model
        self._label_map = label_map
        self._max_pixels = max_pixels
        self._threads = threads
        self.masks_upright = masks_upright
        self._views = scores.views(model.class_names, exclude_class, tiled=predictor.tiling is not None)

    @property
    def views(self) -> list[View]:
        """Views of which there are counts."""
        return self._views

    def results(self, pairs: pa.Table, *, in_subprocess: bool = False) -> Iterator[Result]:
        """Yield one result for each row of a manifest, in order.

        With `in_subprocess`, pairs are decoded in a subprocess. One that repeatedly kills it gets an error.
        """
        return self._each(pairs, self._score, in_subprocess)

    def disagreements(self, pairs: pa.Table) -> Iterator[float | None]:
        """Yield `scores.disagreement` for each row of a manifest, in order; None if the pair cannot be decoded.

        Pairs are compared at the network's size or, if the predictor cuts photos into tiles, at the original size.
        """
        return self._each(pairs, self._compare)

    def pictures(self, pairs: pa.Table) -> Iterator[bytes | None]:
        """Yield `visualize.comparison` for each row of a manifest, in order; None if the pair cannot be decoded."""
        return self._each(pairs, self._draw)

    def masks(self, pairs: pa.Table) -> Iterator[np.ndarray | None]:
        """Yield the predicted mask for each row of a manifest, in order: class ids, uint8 (H, W), at the photo's size.

        None if the pair cannot be decoded.
        """
        return self._each(pairs, _class_ids)

    def _each(self, pairs: pa.Table, finish: Callable[[_Predicted], T], in_subprocess: bool = False) -> Iterator[T]:
        contents = manifest.read_pairs(pairs, decode.max_bytes(self._max_pixels))
        tiled = self._predictor.tiling is not None
        decode_one = partial(
            _decode,
            label_map=self._label_map,
            size_hw=None if tiled else self._model.image_size,
            resize=self._model.resize,
            max_pixels=self._max_pixels,
            masks_upright=self.masks_upright,
        )
        ahead = 1 if tiled else 2 * self._threads
        with ThreadPoolExecutor(self._threads) as pool:
            if in_subprocess:
                decoded = _decode_in_subprocess(decode_one, list(contents))
            else:
                decoded = map_ahead(pool, partial(_run_with_retry, decode_one), contents, ahead)
            if tiled:  # one whole photo at a time: its tiles keep all threads busy
                yield from map(finish, self._predict_tiled(decoded))
            else:
                yield from map_ahead(pool, finish, self._predict(decoded), ahead)

    def _predict(self, pairs: Iterable[_Pair]) -> Iterator[_Predicted]:
        for group in _groups(pairs):
            predictions = self._predictor([pair.decoded.photo for pair in group if isinstance(pair.decoded, Pair)])
            for pair in group:
                yield pair, None if pair.decoded is None else next(predictions)

    def _predict_tiled(self, pairs: Iterable[_Pair]) -> Iterator[_Predicted]:
        for pair in pairs:
            whole = pair.decoded
            yield pair, self._predictor.tiled(whole.picture) if isinstance(whole, WholePair) else None

    def _score(self, predicted: _Predicted) -> Result:
        pair, prediction = predicted
        if prediction is None or pair.decoded is None:
            return Result({"id": pair.row["id"], "error": pair.error}, {}, pair.drawn)
        counts: dict[View, Counts] = {}
        for at_original_size in (False, True):
            of_size = [view for view in self._views if view.at_original_size == at_original_size]
            if of_size:
                truth = pair.decoded.truth_ids() if at_original_size else pair.decoded.class_ids
                strips = prediction.strips() if at_original_size else _small_strips(prediction)
                counts |= zip(of_size, scores.count(strips, truth, [view.classes for view in of_size]), strict=True)
        pair_scores = scores.scores(counts[self._views[0]], self._model.class_names)
        row = {"id": pair.row["id"], "height": prediction.height, "width": prediction.width, "error": None}
        row |= {name: pair_scores[name] for name in ("cross_entropy", "pixel_accuracy", "miou", "boundary_miou")}
        return Result(row | {"iou": list(pair_scores["iou"].values())}, counts, pair.drawn, pair.decoded.notes)

    def _compare(self, predicted: _Predicted) -> float | None:
        pair, prediction = predicted
        if prediction is None or pair.decoded is None:
            return None
        strips = prediction.strips() if isinstance(prediction, TiledPrediction) else _small_strips(prediction)
        return scores.disagreement(strips, pair.decoded.class_ids)

    def _draw(self, predicted: _Predicted) -> bytes | None:
        pair, prediction = predicted
        if prediction is None or pair.decoded is None:
            return None
        photo = storage.read(pair.row["image"], at_most=decode.max_bytes(self._max_pixels))
        small = decode.decode_small(photo, visualize.COMPARISON_SIDE, self._max_pixels)
        return visualize.comparison(small, pair.decoded.truth_ids(), prediction.mask().class_ids, self._model.palette)


def _decode(
    pair: _Read,
    label_map: LabelMap,
    size_hw: tuple[int, int] | None,
    resize: Resize,
    max_pixels: int,
    masks_upright: bool | None,
) -> _Pair:
    """Return a decoded pair: at `size_hw`, or whole if that is None."""
    row, photo, mask, error = pair
    if error:
        return _Pair(row, error=error)
    try:
        if size_hw is None:
            decoded = decode_whole_pair(photo, mask, label_map, max_pixels, masks_upright)
        else:
            decoded = decode_pair(photo, mask, size_hw, label_map, max_pixels, resize, masks_upright)
    except UnclearMaskError as error:
        return _Pair(row, error=str(error), drawn="unclear")
    except DecodeError as error:
        return _Pair(row, error=f"the mask: {error}" if error.in_mask else str(error))
    return _Pair(row, decoded, drawn=decoded.drawn)


def _run_with_retry(decode_one: Callable[[_Read], _Pair], pair: _Read) -> _Pair:
    return crash_guard.run_with_retry(decode_one, pair, _Pair(pair[0], error=KILLED))


def _decode_in_subprocess(decode_one: Callable[[_Read], _Pair], pairs: list[_Read]) -> Iterator[_Pair]:
    decoded = crash_guard.map_in_subprocess(decode_one, pairs, if_died=None)
    for pair, result in zip(pairs, decoded, strict=True):
        yield result or _Pair(pair[0], error=KILLED)


def _class_ids(predicted: _Predicted) -> np.ndarray | None:
    _, prediction = predicted
    return None if prediction is None else prediction.mask().class_ids


def _small_strips(prediction: Prediction | TiledPrediction) -> Iterator[tuple[int, Tensor]]:
    """Do as `Prediction.strips`, at the network's size."""
    assert isinstance(prediction, Prediction)
    yield 0, prediction.probabilities


def badness(rows: pa.Table) -> list[float | None]:
    """Return how bad each row's prediction is: its cross-entropy, or the fraction of wrong pixels of a given mask.

    Not the mIoU, because it weighs a ten-pixel class like any other.
    """
    nats: list[float | None] = rows["cross_entropy"].to_pylist()
    if any(value is not None for value in nats):
        return nats
    accuracies: list[float | None] = rows["pixel_accuracy"].to_pylist()
    return [None if value is None else 1 - value for value in accuracies]


def worst_pairs(rows: pa.Table) -> list[int]:
    """Return the numbers of up to `WORST` rows with the highest `badness`, worst first."""
    known = sorted((-value, number) for number, value in enumerate(badness(rows)) if value is not None)
    return [number for _, number in known[:WORST]]


def _groups(pairs: Iterable[_Pair]) -> Iterator[list[_Pair]]:
    """Yield groups of pairs that are in memory together: several batches, or fewer pairs if they are large."""
    group, pixels = [], 0
    for pair in pairs:
        group.append(pair)
        pixels += pair.decoded.num_pixels if pair.decoded is not None else 0
        if len(group) == _PAIRS_AT_A_TIME or pixels >= _PIXELS_AT_A_TIME:
            yield group
            group, pixels = [], 0
    yield group
