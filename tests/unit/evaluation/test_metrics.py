import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import classification as peer

from petseg.data.labels import IGNORE_ID
from petseg.evaluation import metrics

# Truth and prediction of eight pixels, one of them ignored, and their confusion matrix computed by hand.
TARGET = torch.tensor([[0, 0, 0, 1], [1, 2, 2, IGNORE_ID]], dtype=torch.uint8)
PREDICTED = torch.tensor([[0, 0, 1, 1], [0, 2, 2, 0]])
CONFUSION = torch.tensor([[2, 1, 0], [1, 1, 0], [0, 0, 2]])


def test_confusion_matrix_ignored_pixels_are_not_counted() -> None:
    confusion = metrics.confusion_matrix(PREDICTED, TARGET, 3)
    assert confusion.dtype == torch.int64
    assert torch.equal(confusion, CONFUSION)


def test_confusion_matrix_sum_of_parts_equals_the_whole() -> None:
    parts = [metrics.confusion_matrix(PREDICTED[i], TARGET[i], 3) for i in range(2)]
    assert torch.equal(parts[0] + parts[1], CONFUSION)


def test_scores_equal_hand_computed_values() -> None:
    assert metrics.pixel_accuracy(CONFUSION) == pytest.approx(5 / 7)
    assert metrics.iou(CONFUSION) == pytest.approx([2 / 4, 1 / 3, 1])
    assert metrics.mean_iou(CONFUSION) == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)
    assert metrics.dice(CONFUSION) == pytest.approx([4 / 6, 2 / 4, 1])


def test_mean_iou_absent_class_is_nan_and_not_counted() -> None:
    confusion = torch.tensor([[3, 0, 0], [1, 4, 0], [0, 0, 0]])
    iou = metrics.iou(confusion)
    assert iou[:2] == pytest.approx([3 / 4, 4 / 5])
    assert math.isnan(iou[2])
    assert metrics.mean_iou(confusion) == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_pixel_accuracy_large_counts_stay_exact() -> None:
    confusion = torch.tensor([[10**12, 1], [0, 10**12]])
    assert 1 - metrics.pixel_accuracy(confusion) == pytest.approx(5e-13, rel=1e-3)


def test_scores_equal_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (3, 20, 30), generator=generator, dtype=torch.uint8)
    guessed = torch.randint(0, 4, target.shape, generator=generator)
    predicted = torch.where(torch.rand(target.shape, generator=generator) < 0.3, guessed, target.long())
    target[torch.rand(target.shape, generator=generator) < 0.1] = IGNORE_ID
    common = {"preds": predicted, "target": target.long(), "num_classes": 4, "ignore_index": IGNORE_ID}
    confusion = metrics.confusion_matrix(predicted, target, 4)
    assert torch.equal(confusion, peer.multiclass_confusion_matrix(**common))
    assert metrics.iou(confusion) == pytest.approx(peer.multiclass_jaccard_index(**common, average="none").tolist())
    assert metrics.mean_iou(confusion) == pytest.approx(peer.multiclass_jaccard_index(**common).item())
    assert metrics.dice(confusion) == pytest.approx(peer.multiclass_f1_score(**common, average="none").tolist())
    accuracy = peer.multiclass_accuracy(**common, average="micro").item()
    assert metrics.pixel_accuracy(confusion) == pytest.approx(accuracy)


def test_boundary_iou_contour_off_by_one_pixel_equals_hand_computed() -> None:
    """The truth is 6 × 6 pixels in two halves. The prediction has the contour one pixel further right.

    At distance 1 the boundary is the image's edge and the pixels on both sides of the contour. Counted by hand, class 0
    has 14 in the truth, 16 in the prediction and 10 in both; class 1 has 14, 12 and 8.
    """
    target, predicted = (torch.tensor([[0] * left + [1] * (6 - left)] * 6, dtype=torch.uint8) for left in (3, 4))
    confusion = metrics.boundary_confusion(predicted, target, 2, distance=1)
    assert confusion.diagonal().tolist()[:2] == [10, 8]
    assert confusion.sum(1).tolist()[:2] == [14, 14] and confusion.sum(0).tolist()[:2] == [16, 12]
    assert confusion.sum() == 36
    assert metrics.boundary_iou(confusion) == pytest.approx([10 / 20, 8 / 18])
    assert metrics.boundary_iou(metrics.boundary_confusion(target, target, 2, 1)) == [1, 1]


def blobs(seed: int) -> torch.Tensor:
    coarse = np.random.default_rng(seed).integers(0, 4, (9, 12)).astype(np.uint8)
    return torch.from_numpy(coarse.repeat(7, 0).repeat(5, 1))


def erode(mask: np.ndarray, times: int) -> np.ndarray:
    """Erode a mask `times` times by 3 × 3 pixels, with zeros around it: the paper's `mask_to_boundary`."""
    for _ in range(times):
        framed = np.pad(mask, 1)
        height, width = mask.shape
        shifted = [framed[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        mask = np.logical_and.reduce(shifted)
    return mask


@pytest.mark.parametrize("distance", [1, 2, 3, 6, 40])
def test_boundary_iou_equals_that_of_eroded_masks(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PIXELS_AT_A_TIME", 500)
    target, predicted = blobs(0), blobs(1)
    expected = []
    for class_id in range(4):
        of_class = [(class_ids == class_id).numpy() for class_ids in (target, predicted)]
        one, other = (mask & ~erode(mask, distance) for mask in of_class)
        expected.append((one & other).sum() / (one | other).sum())
    assert min(expected) > 0.02 and max(expected) < 0.6
    assert metrics.boundary_iou(metrics.boundary_confusion(predicted, target, 4, distance)) == pytest.approx(expected)


def test_boundary_confusion_prediction_in_ignored_pixels_has_no_effect() -> None:
    target, predicted = blobs(0), blobs(1)
    ignored = blobs(2) == 0
    target[ignored] = IGNORE_ID
    confusion = metrics.boundary_confusion(predicted, target, 4, 3)
    predicted[ignored] = 3 - predicted[ignored]
    assert torch.equal(metrics.boundary_confusion(predicted, target, 4, 3), confusion)
    assert confusion.sum() == (~ignored).sum()
    assert metrics.boundary_iou(metrics.boundary_confusion(target % 4, target, 4, 3)) == [1, 1, 1, 1]


@pytest.mark.parametrize(("size", "distance"), [((160, 160), 5), ((300, 400), 10), ((3, 4), 1)])
def test_boundary_distance_is_two_percent_of_the_diagonal(size: tuple[int, int], distance: int) -> None:
    assert metrics.boundary_distance(*size) == distance


def test_cross_entropy_sum_equals_hand_computed_nats() -> None:
    """Four pixels: probability 1 of the true class, 1/2, 1/4 (half of the sum), and ignored."""
    probabilities = torch.tensor([[[1, 0.5, 0.25, 0]], [[0, 0.5, 0.25, 1]]])
    target = torch.tensor([[0, 1, 0, IGNORE_ID]], dtype=torch.uint8)
    assert metrics.cross_entropy_sum(probabilities, target).item() == pytest.approx(2 * math.log(2))
    undecided = metrics.cross_entropy_sum(torch.zeros(4, 1, 2), torch.zeros(1, 2, dtype=torch.uint8))
    assert undecided.item() == pytest.approx(2 * math.log(4))
    impossible = metrics.cross_entropy_sum(probabilities[:, :, 3:], torch.zeros(1, 1, dtype=torch.uint8))
    assert impossible.item() == pytest.approx(87.3365, abs=1e-3)
