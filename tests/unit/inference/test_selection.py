"""Tests of the choice of photos to label next."""

import numpy as np

from petseg.inference.selection import farthest, most_unsure, rarest_classes


def test_most_unsure_highest_first_and_of_equal_ones_the_first() -> None:
    assert most_unsure(np.array([0.1, 0.5, 0.3, 0.5]), 3).tolist() == [1, 3, 2]
    assert most_unsure(np.array([0.1, 0.5]), 9).tolist() == [1, 0]


def test_rarest_classes_counts_a_rare_class_as_much_as_a_frequent_one() -> None:
    """Class 2 has 1 % of the pixels. The photo with most of it comes before one that is all class 1."""
    shares = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0.96, 0, 0.04]])
    assert rarest_classes(shares, 4).tolist() == [3, 2, 1, 0]


def test_rarest_classes_class_without_pixels_counts_nothing() -> None:
    assert rarest_classes(np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]), 1).tolist() == [1]


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1)


def test_farthest_is_far_from_labelled_and_from_chosen_ones() -> None:
    """From 0°, the farthest is 180°; from both, 85° is farther than 10° and 170°."""
    assert farthest(angles(10, 85, 170, 180), angles(0), 3).tolist() == [3, 1, 0]


def test_farthest_without_labelled_photos_begins_with_the_first() -> None:
    assert farthest(angles(40, 41, 220), [], 2).tolist() == [0, 2]


def test_farthest_never_chooses_twice() -> None:
    assert sorted(farthest(angles(0, 0, 0, 90), [], 9).tolist()) == [0, 1, 2, 3]
