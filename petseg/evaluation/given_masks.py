"""Score masks that a prediction, or another program, has written. No network, and no probabilities."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from petseg import storage
from petseg.data import decode, manifest, visualize
from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.mask_pixels import class_ids, open_mask
from petseg.data.orientation import Drawn
from petseg.data.pairs import Truth, UnclearMaskError, decode_truth
from petseg.evaluation import scores
from petseg.evaluation.evaluator import KILLED, Result
from petseg.evaluation.scores import View
from petseg.inference import crash_guard
from petseg.lookahead import map_ahead

T = TypeVar("T")
_Read = tuple[dict[str, str], bytes, bytes, bytes, str]


@dataclass(frozen=True)
class _Compared:
    """A row of the manifest with the true and the predicted class ids, or with the error."""

    row: dict[str, str]
    truth: Truth | None = None
    predicted: np.ndarray | None = None
    """Class ids, uint8 (H, W), of the size of the truth."""
    error: str | None = None
    drawn: Drawn | None = None
    """Result of `pairs.drawn`, also if the predicted mask cannot be used."""


class GivenMasks:
    """Scorer of given masks, with the methods of an `Evaluator`. Its manifests have the column `predicted`, too.

    `predicted_map` maps the values of the predicted masks to class ids. Pairs are scored at the original size.
    """

    def __init__(
        self,
        class_names: tuple[str, ...],
        palette: tuple[tuple[int, int, int], ...],
        label_map: LabelMap,
        predicted_map: LabelMap,
        max_pixels: int,
        threads: int,
        masks_upright: bool | None = None,
    ) -> None:
        self._class_names = class_names
        self._palette = palette
        self._maps = label_map, predicted_map
        self._max_pixels = max_pixels
        self._threads = threads
        self.masks_upright = masks_upright
        self.views = [View(at_original_size=True, classes=tuple(range(len(class_names))))]

    def results(self, pairs: pa.Table, *, in_subprocess: bool = False) -> Iterator[Result]:
        """Do as `Evaluator.results`. There is no cross-entropy."""
        return self._each(pairs, self._score, in_subprocess)

    def pictures(self, pairs: pa.Table) -> Iterator[bytes | None]:
        """Do as `Evaluator.pictures`."""
        return self._each(pairs, self._draw)

    def _each(self, pairs: pa.Table, finish: Callable[[_Compared], T], in_subprocess: bool = False) -> Iterator[T]:
        compare = partial(_compare, maps=self._maps, max_pixels=self._max_pixels, masks_upright=self.masks_upright)
        contents = _read(pairs, decode.max_bytes(self._max_pixels))
        with ThreadPoolExecutor(self._threads) as pool:
            if in_subprocess:
                read = list(contents)
                compared = crash_guard.map_in_subprocess(compare, read, if_died=None)
                for (row, *_), one in zip(read, compared, strict=True):
                    yield finish(one or _Compared(row, error=KILLED))
                return

            def work(read: _Read) -> T:
                return finish(crash_guard.run_with_retry(compare, read, _Compared(read[0], error=KILLED)))

            yield from map_ahead(pool, work, contents, 2 * self._threads)

    def _score(self, compared: _Compared) -> Result:
        row: dict[str, Any] = {"id": compared.row["id"], "error": compared.error}
        if compared.truth is None or compared.predicted is None:
            return Result(row, {}, compared.drawn)
        counts = scores.count_ids(compared.predicted, compared.truth.class_ids, len(self._class_names))
        of_pair = scores.scores(counts, self._class_names)
        row |= dict(zip(("height", "width"), compared.predicted.shape, strict=True))
        row |= {name: of_pair[name] for name in ("pixel_accuracy", "miou", "boundary_miou")}
        row["iou"] = list(of_pair["iou"].values())
        return Result(row, {self.views[0]: counts}, compared.drawn, compared.truth.notes)

    def _draw(self, compared: _Compared) -> bytes | None:
        if compared.truth is None or compared.predicted is None:
            return None
        photo = storage.read(compared.row["image"], at_most=decode.max_bytes(self._max_pixels))
        small = decode.decode_small(photo, visualize.COMPARISON_SIDE, self._max_pixels)
        return visualize.comparison(small, compared.truth.class_ids, compared.predicted, self._palette)


def _read(pairs: pa.Table, at_most: int) -> Iterator[_Read]:
    """Yield (row, content of the photo, of the mask, of the predicted mask, error) for each row."""
    predicted = storage.read_each(pairs["predicted"].to_pylist(), at_most)
    for (row, photo, mask, error), content in zip(manifest.read_pairs(pairs, at_most), predicted, strict=True):
        if isinstance(content, OSError):
            yield row, b"", b"", b"", error or f"{row['predicted']}: cannot be read: {storage.reason(content)}"
        else:
            yield row, photo, mask, content, error


def _compare(read: _Read, maps: tuple[LabelMap, LabelMap], max_pixels: int, masks_upright: bool | None) -> _Compared:
    row, photo, mask, content, error = read
    if error:
        return _Compared(row, error=error)
    try:
        truth = decode_truth(photo, mask, maps[0], max_pixels, masks_upright)
    except UnclearMaskError as error:
        return _Compared(row, error=str(error), drawn="unclear")
    except DecodeError as error:
        return _Compared(row, error=f"the mask: {error}" if error.in_mask else str(error))
    try:
        predicted = np.asarray(class_ids(open_mask(content, max_pixels), maps[1]))
        if predicted.shape != truth.class_ids.shape:
            sizes = (f"{width} × {height}" for height, width in (predicted.shape, truth.class_ids.shape))
            raise DecodeError("its size {} differs from its photo's {}".format(*sizes))
        if (predicted == IGNORE_ID).any():
            raise DecodeError("it has pixels without a class")
    except DecodeError as error:
        # Drawn "unclear", it would count as not yet scored.
        drawn = None if truth.drawn == "unclear" else truth.drawn
        return _Compared(row, error=f"the predicted mask: {error}", drawn=drawn)
    return _Compared(row, truth, predicted, drawn=truth.drawn)
