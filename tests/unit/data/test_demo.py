from pathlib import Path

import numpy as np
from PIL import Image

from petseg.data import demo, manifest


def test_draw_pair_same_index_and_seed_same_pixels() -> None:
    first, again, other, reseeded = (
        b"".join(image.tobytes() for image in demo.draw_pair(*key)) for key in ((3, 0), (3, 0), (4, 0), (3, 1))
    )
    assert first == again
    assert len({first, other, reseeded}) == 3


def test_draw_set_class_fractions_resemble_the_pet_dataset(drawn: tuple[Path, Path]) -> None:
    """In the published set about 29% of the pixels are pet and 12% border (3,680 pairs with annotations)."""
    shares = []
    sizes = set()
    for path in sorted(drawn[1].glob("*.png")):
        trimap = np.asarray(Image.open(path))
        with Image.open(drawn[0] / f"{path.stem}.jpg") as photo:
            assert photo.size == trimap.shape[::-1]
            sizes.add(photo.size)
        assert set(np.unique(trimap)) == {demo.PET, demo.BACKGROUND, demo.BORDER}
        shares.append(np.bincount(trimap.ravel(), minlength=4)[1:] / trimap.size)
    pet, background, border = np.mean(shares, 0)
    assert 0.1 < pet < 0.4 and 0.5 < background < 0.85 and 0.04 < border < 0.2
    assert len(sizes) > len(shares) / 2


def test_draw_set_border_separates_pet_from_background(drawn: tuple[Path, Path]) -> None:
    for path in drawn[1].glob("*.png"):
        trimap = np.asarray(Image.open(path)).astype(int)
        for a, b in ((trimap[1:], trimap[:-1]), (trimap[:, 1:], trimap[:, :-1])):
            assert not ((np.minimum(a, b) == demo.PET) & (np.maximum(a, b) == demo.BACKGROUND)).any()


def test_draw_set_complete_is_kept_incomplete_is_redrawn(tmp_path: Path) -> None:
    images, trimaps = demo.draw_set(str(tmp_path), count=2)
    photo = Path(images) / "pet_0000.jpg"
    content, drawn_at = photo.read_bytes(), photo.stat().st_mtime_ns
    demo.draw_set(str(tmp_path), count=2)
    assert photo.stat().st_mtime_ns == drawn_at

    (tmp_path / "complete.json").unlink()  # as after a kill
    photo.write_bytes(b"half")
    (Path(images) / "pet_0009.jpg").touch()
    demo.draw_set(str(tmp_path), count=2)
    assert photo.read_bytes() == content
    assert manifest.discover(images, trimaps).num_rows == 2
