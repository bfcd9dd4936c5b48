import math

import pytest
import torch

from petseg.data.labels import IGNORE_ID
from petseg.errors import InputError
from petseg.training import losses


def test_cross_entropy_sum_ignored_pixels_are_not_counted() -> None:
    logits = torch.zeros(1, 4, 1, 3)
    logits[0, :, 0, 2] = torch.tensor([100.0, 0, 0, 0])
    target = torch.tensor([[[0, 3, IGNORE_ID]]], dtype=torch.uint8)
    assert losses.cross_entropy_sum(logits, target).item() == pytest.approx(2 * math.log(4))
    assert losses.cross_entropy_sum(logits.bfloat16(), target).dtype == torch.float32
    assert losses.total_weight(target).item() == 2
    everything_ignored = torch.full_like(target, IGNORE_ID)
    assert losses.cross_entropy_sum(logits, everything_ignored).item() == 0
    assert losses.total_weight(everything_ignored).item() == 0


def test_cross_entropy_sum_class_weights_equal_pytorch() -> None:
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1, 0, 3] = 5.0
    target = torch.tensor([[[0, 0, IGNORE_ID, 1]]], dtype=torch.uint8)
    weights = torch.tensor([1.0, 6.0])
    mean = losses.cross_entropy_sum(logits, target, weights) / losses.total_weight(target, weights)
    assert mean.item() == pytest.approx((2 * math.log(2) + 6 * math.log(1 + math.exp(-5))) / 8)
    expected = torch.nn.functional.cross_entropy(logits, target.long(), weights, ignore_index=IGNORE_ID)
    torch.testing.assert_close(mean, expected)


def test_dice_loss_of_the_classes_that_occur_equals_hand_computed() -> None:
    """Two of three pixels count. The first has p = (0.5, 0.5, 0), the second p = (0, 1, 0). No pixel is of class 2."""
    probabilities = torch.tensor([[0.5, 0.5, 1e-30], [1e-30, 1, 1e-30], [0.1, 0.1, 0.8]])
    logits = probabilities.log().T[None, :, None, :]
    target = torch.tensor([[[0, 1, IGNORE_ID]]], dtype=torch.uint8)
    expected = [1 - 2 * 0.5 / (0.5 + 1), 1 - 2 * 1 / (1.5 + 1)]
    assert losses.dice_loss(logits, target).item() == pytest.approx(sum(expected) / 2)
    assert losses.dice_loss(logits, torch.full_like(target, IGNORE_ID)).item() == 0


def test_dice_loss_and_its_gradient_equal_another_library() -> None:
    from segmentation_models_pytorch.losses import DiceLoss

    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, 9, 7), generator=generator).to(torch.uint8)  # of four classes, one never occurs
    target[:, :2] = IGNORE_ID
    ours = (torch.randn(2, 4, 9, 7, generator=generator) * 2).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = losses.dice_loss(ours, target)
    # Theirs is the mean over all classes, of which those that do not occur count 0.
    other = DiceLoss("multiclass", ignore_index=IGNORE_ID)(theirs, target.long()) * 4 / 3
    torch.testing.assert_close(loss, other)
    loss.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_class_weights_mean_over_pixels_is_one() -> None:
    assert losses.class_weights("", (6, 2)) is None
    balanced = losses.class_weights("balanced", (6, 2))
    assert balanced is not None and balanced.tolist() == pytest.approx([8 / 12, 8 / 4])
    given = losses.class_weights("1, 3", (6, 2))
    assert given is not None and given.tolist() == pytest.approx([8 / 12, 3 * 8 / 12])


@pytest.mark.parametrize(
    ("text", "pixels"),
    [("1,2,3", (1, 1)), ("1,x", (1, 1)), ("1,-1", (1, 1)), ("0,0", (1, 1)), ("1,nan", (1, 1)), ("balanced", (1, 0))],
)
def test_class_weights_invalid_text_is_refused(text: str, pixels: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="--class-weights"):
        losses.class_weights(text, pixels)
