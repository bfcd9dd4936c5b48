import pytest
import torch

from petseg.data.labels import IGNORE_ID
from petseg.training.augment import augment


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return photos whose brightness shows the class of the mask, so that a misalignment is visible."""
    masks = torch.zeros(count, 64, 48, dtype=torch.uint8)
    masks[:, :24, 20:] = 1
    masks[:, 40:, :16] = 2
    photos = (60 + 60 * masks[:, None].expand(-1, 3, -1, -1)).contiguous(memory_format=torch.channels_last)
    return photos, masks


def test_augment_photo_and_mask_move_together() -> None:
    photos, masks = blocks(32)
    moved, ids = augment(photos, masks, generator(0))
    assert moved.shape == photos.shape and moved.dtype == torch.float32
    assert ids.shape == masks.shape and ids.dtype == torch.uint8
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert moved.min() >= 0 and moved.max() <= 255
    agreeing = 0
    for photo, of_photo in zip(moved, ids, strict=True):
        grey = photo.mean(0)
        levels = [grey[of_photo == class_id].median() for class_id in range(3) if (of_photo == class_id).any()]
        assert levels == sorted(levels)
        nearest = torch.stack([(grey - level).abs() for level in levels]).argmin(0)
        agreeing += (torch.tensor(sorted(of_photo.unique().tolist()))[nearest] == of_photo).float().mean().item()
    assert agreeing / 32 > 0.95  # edges are blurred by less than a pixel


def test_augment_same_generator_same_result() -> None:
    photos, masks = blocks(16)
    first, ids = augment(photos, masks, generator(1))
    again, ids_again = augment(photos, masks, generator(1))
    other, _ = augment(photos, masks, generator(2))
    assert torch.equal(first, again) and torch.equal(ids, ids_again)
    assert not torch.equal(first, other)
    assert len({tuple(of.flatten().tolist()) for of in ids}) == 16
    left_heavy = [(of[:24, :24] == 1).sum() > (of[:24, 24:] == 1).sum() for of in ids]
    assert 3 <= sum(left_heavy) <= 13  # about half are flipped


def test_augment_pairs_that_are_not_warped_are_only_mirrored() -> None:
    """Photos of one grey keep their brightness up to the recolouring, so that the mask alone shows the geometry."""
    masks = torch.arange(32 * 48, dtype=torch.int64).reshape(32, 48).remainder(251).to(torch.uint8).repeat(64, 1, 1)
    photos = masks[:, None].repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    mirror = masks[0].flip(1)
    _, none = augment(photos, masks, generator(3), warp_fraction=0.0)
    mirrored = [torch.equal(ids, mirror) for ids in none]
    assert all(torch.equal(ids, mirror if flipped else masks[0]) for ids, flipped in zip(none, mirrored, strict=True))
    assert 16 < sum(mirrored) < 48
    _, half = augment(photos, masks, generator(3), warp_fraction=0.5)
    kept = [torch.equal(ids, mirror) or torch.equal(ids, masks[0]) for ids in half]
    assert 16 < sum(kept) < 48
    _, all_warped = augment(photos, masks, generator(3))
    assert not any(torch.equal(ids, mirror) or torch.equal(ids, masks[0]) for ids in all_warped)


def test_augment_mask_gets_no_new_value() -> None:
    masks = torch.full((8, 32, 32), 7, dtype=torch.uint8)
    masks[:, 8:24, 8:24] = IGNORE_ID
    _, ids = augment(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), masks, generator(0))
    assert set(ids.unique().tolist()) == {7, IGNORE_ID}


@pytest.mark.parametrize("grey", [0, 255])
def test_augment_colours_stay_within_0_to_255(grey: int) -> None:
    moved, _ = augment(
        torch.full((8, 3, 16, 16), grey, dtype=torch.uint8), torch.zeros(8, 16, 16, dtype=torch.uint8), generator(0)
    )
    assert moved.min() >= 0 and moved.max() <= 255
