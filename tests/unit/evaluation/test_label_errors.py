"""The disagreement of a network with a mask, and the choice of the networks that score a pair."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from petseg.data.check import Disagreement, rank
from petseg.data.labels import IGNORE_ID
from petseg.evaluation.label_errors import assign
from petseg.evaluation.scores import disagreement

SIDE = 40


def draw_mask() -> np.ndarray:
    """Return a mask with a large object (class 1) and a small one (class 2) on background."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[8:28, 6:30] = 1
    mask[32:36, 32:36] = 2
    return mask


def probabilities(mask: np.ndarray, sure: float = 0.98) -> torch.Tensor:
    """Return the probabilities of a network that is sure of each pixel of a mask: float32 (3, H, W)."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(mask).long(), 3).permute(2, 0, 1).float()
    return one_hot * sure + (1 - one_hot) * (1 - sure) / 2


def swapped(mask: np.ndarray) -> np.ndarray:
    return np.array([1, 0, 2], np.uint8)[mask]


def shifted(mask: np.ndarray) -> np.ndarray:
    return np.roll(mask, SIDE // 8, axis=1)


def without_small_object(mask: np.ndarray) -> np.ndarray:
    return np.where(mask == 2, 0, mask).astype(np.uint8)


def mirrored(mask: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(mask[:, ::-1])


@pytest.mark.parametrize("plant", [swapped, shifted, without_small_object, mirrored])
def test_disagreement_of_a_planted_error_is_higher_than_that_of_the_right_mask(
    plant: Callable[[np.ndarray], np.ndarray],
) -> None:
    mask = draw_mask()
    strips = [(0, probabilities(mask))]
    right, wrong = disagreement(strips, mask), disagreement(strips, plant(mask))
    assert right == pytest.approx(-math.log(0.98))
    assert right is not None and wrong is not None and wrong > 10 * right


def test_disagreement_small_sure_error_outranks_an_unsure_contour() -> None:
    """By the mean cross-entropy, the order is the other one."""
    mask = draw_mask()
    unsure = probabilities(mask, 0.999)
    unsure[:, 7:9], unsure[:, 27:29] = 1 / 3, 1 / 3
    small_error = without_small_object(mask)
    sure = probabilities(mask, 0.999)
    noise, error = disagreement([(0, unsure)], mask), disagreement([(0, sure)], small_error)
    assert noise is not None and error is not None and error > 1.5 * noise
    means = [
        -p.gather(0, torch.from_numpy(m).long()[None]).log().mean() for p, m in ((unsure, mask), (sure, small_error))
    ]
    assert means[1] < means[0]


def test_disagreement_equals_hand_computed_in_strips_of_any_height() -> None:
    """The label's probability is 1, 1/4 and 0 at three pixels, and 0 counts as 1e-4. The fourth pixel is ignored."""
    found = torch.tensor([[[0.5, 1.0], [0.25, 1.0]], [[0.5, 0.0], [0.75, 0.0]]])
    mask = np.array([[IGNORE_ID, 0], [0, 1]], np.uint8)
    mask.flags.writeable = False  # as Pillow's are
    expected = math.sqrt((math.log(0.25) ** 2 + math.log(1e-4) ** 2) / 3)
    assert disagreement([(0, found)], mask) == pytest.approx(expected)
    assert disagreement([(0, found[:, :1]), (1, found[:, 1:])], mask) == pytest.approx(expected)


def test_disagreement_mask_without_a_labelled_pixel_is_none() -> None:
    mask = np.full((SIDE, SIDE), IGNORE_ID, np.uint8)
    assert disagreement([(0, probabilities(draw_mask()))], mask) is None


def test_assign_pair_goes_to_the_networks_that_did_not_train_on_it() -> None:
    ids = ["a", "b", "c", "d"]
    assert assign(ids, [{"a", "b"}, {"c", "d"}]) == [[2, 3], [0, 1]]
    assert assign(ids, [{"a", "b", "d"}, {"b", "c"}]) == [[1, 2], [0, 1, 3]]  # all trained on b, so both score it
    assert assign(ids, [set(), {"a"}]) == [[0, 1, 2, 3], [1, 2, 3]]
    assert assign([], [set()]) == [[]]


def test_rank_pairs_that_all_networks_trained_on_come_last() -> None:
    found = {"a": (3.0, False), "b": (1.0, True), "c": (2.0, True), "d": (1.0, True)}
    assert rank({row_id: Disagreement(*values) for row_id, values in found.items()}) == ["c", "b", "d", "a"]
