import numpy as np
import pytest
from PIL import Image

from petseg.data import duplicates


def test_difference_hash_bits_are_set_where_brightness_rises() -> None:
    rising = Image.fromarray(np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1)))
    assert duplicates.difference_hash(rising) == 2**64 - 1
    assert duplicates.difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    assert duplicates.difference_hash(Image.new("RGB", (50, 50), (9, 9, 9))) == 0


def distant_hashes(count: int) -> np.ndarray:
    """Return hashes of which any two differ in more than `NEAR_BITS` bits."""
    rng = np.random.default_rng(3)
    found = rng.integers(0, 2**64, count, np.uint64)
    distances = np.bitwise_count(found[:, None] ^ found[None]) + 64 * np.eye(count, dtype=np.uint8)
    assert distances.min() > duplicates.NEAR_BITS
    return found


def test_near_pairs_within_near_bits_are_all_found() -> None:
    rng = np.random.default_rng(4)
    hashes = list(distant_hashes(200))
    expected = []
    for bits in range(1, duplicates.NEAR_BITS + 1):
        for _ in range(40):
            of = int(rng.integers(200))
            flipped = sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))
            expected.append((of, len(hashes), bits))
            hashes.append(hashes[of] ^ np.uint64(flipped))
    found = duplicates.near(np.array(hashes, np.uint64))
    assert set(expected) <= set(found)
    assert [distance for *_, distance in found] == sorted(distance for *_, distance in found)
    for one, other, distance in found:
        assert distance == int(hashes[one] ^ hashes[other]).bit_count() <= duplicates.NEAR_BITS


def test_near_one_bit_too_many_is_not_near() -> None:
    assert duplicates.near(np.array([0, 2 ** (duplicates.NEAR_BITS + 1) - 1], np.uint64)) == []
    assert duplicates.near(np.array([], np.uint64)) == []


def test_near_equal_hashes_are_paired_with_the_first() -> None:
    assert duplicates.near(np.array([7, 7, 5, 7], np.uint64)) == [(0, 1, 0), (0, 3, 0), (0, 2, 1)]


def test_near_very_many_pairs_search_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 50)
    frames = np.array([1 << bit for bit in range(64)], np.uint64)  # any two differ in two bits
    found = duplicates.near(frames)
    assert 50 <= len(found) < 64 * 63 // 2
    assert {distance for *_, distance in found} == {2}
