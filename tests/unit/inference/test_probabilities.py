"""Tests of the fraction of pixels that a network is unsure of."""

import torch

from petseg.inference.probabilities import unsure_fraction


def halves(left: float, right: float, side: int = 20) -> torch.Tensor:
    """Return probabilities (2, side, side): class 0 has `left` in the left half and `right` in the right half."""
    of_first = torch.full((side, side), left)
    of_first[:, side // 2 :] = right
    return torch.stack([of_first, 1 - of_first])


def test_unsure_fraction_sure_mask_is_zero() -> None:
    assert unsure_fraction(halves(0.99, 0.01)) == 0


def test_unsure_fraction_counts_close_pixels_off_the_outline() -> None:
    """The two columns at the outline do not count. Half of the other 18 columns are unsure."""
    assert unsure_fraction(halves(0.99, 0.45)) == 0.5


def test_unsure_fraction_unsure_outline_does_not_count() -> None:
    probabilities = halves(0.99, 0.01)
    probabilities[:, :, 9], probabilities[:, :, 10] = torch.tensor([[0.51], [0.49]]), torch.tensor([[0.49], [0.51]])
    assert unsure_fraction(probabilities) == 0


def test_unsure_fraction_third_class_is_compared() -> None:
    """The two highest of 0.1, 0.5 and 0.4 are close, in any order of the classes."""
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        probabilities = torch.tensor([0.1, 0.5, 0.4])[order][:, None, None].expand(3, 8, 8)
        assert unsure_fraction(probabilities) == 1
    assert unsure_fraction(torch.tensor([0.1, 0.8, 0.1])[:, None, None].expand(3, 8, 8)) == 0


def test_unsure_fraction_mask_of_outlines_only_is_one() -> None:
    board = torch.arange(8)[:, None].add(torch.arange(8)).remainder(2).mul(0.02).add(0.49)
    assert unsure_fraction(torch.stack([board, 1 - board])) == 1
