import math

import pytest
import torch

from petseg import metrics
from petseg.labels import IGNORE_ID

# Truth and prediction of eight pixels, one of them ignored, counted by hand.
TARGET = torch.tensor([[0, 0, 0, 1], [1, 2, 2, IGNORE_ID]], dtype=torch.uint8)
PREDICTED = torch.tensor([[0, 0, 1, 1], [0, 2, 2, 0]])
CONFUSION = torch.tensor([[2, 1, 0], [1, 1, 0], [0, 0, 2]])


def test_confusion_matrix_counts_what_is_not_ignored() -> None:
    confusion = metrics.confusion_matrix(PREDICTED, TARGET, 3)
    assert confusion.dtype == torch.int64
    assert torch.equal(confusion, CONFUSION)


def test_confusion_matrices_add_up() -> None:
    parts = [metrics.confusion_matrix(PREDICTED[i], TARGET[i], 3) for i in range(2)]
    assert torch.equal(parts[0] + parts[1], CONFUSION)


def test_scores() -> None:
    assert metrics.pixel_accuracy(CONFUSION) == pytest.approx(5 / 7)
    assert metrics.iou(CONFUSION) == pytest.approx([2 / 4, 1 / 3, 1])
    assert metrics.mean_iou(CONFUSION) == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)


def test_a_class_that_is_nowhere_has_no_iou_and_does_not_count() -> None:
    confusion = torch.tensor([[3, 0, 0], [1, 4, 0], [0, 0, 0]])
    iou = metrics.iou(confusion)
    assert iou[:2] == pytest.approx([3 / 4, 4 / 5])
    assert math.isnan(iou[2])
    assert metrics.mean_iou(confusion) == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_counts_beyond_single_precision_stay_exact() -> None:
    confusion = torch.tensor([[10**12, 1], [0, 10**12]])
    assert 1 - metrics.pixel_accuracy(confusion) == pytest.approx(5e-13, rel=1e-3)
