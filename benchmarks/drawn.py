"""What the benchmarks run on where nothing else is given: drawn photos, and a network that has learnt nothing."""

from pathlib import Path

from PIL import Image

from petseg.config.base import ModelConfig
from petseg.data import demo, labels
from petseg.models import checkpoint
from petseg.models.build import build_seeded


def untrained(folder: Path, image_size: tuple[int, int] = (64, 64)) -> Path:
    """A run's folder with one checkpoint; what it predicts is of no use, and takes as long as any other."""
    config = ModelConfig(
        num_classes=3,
        image_size=image_size,
        class_names=labels.class_names(3),
        palette=labels.palette(3),
        label_map="",
    )
    model = build_seeded(config, 1)
    checkpoint.save(str(folder / "run"), model, checkpoint.TrainState({}), config, [{"val_loss": 1.0}])
    return folder / "run"


def photos(folder: Path, count: int) -> Path:
    """A folder of so many drawn photos, small ones."""
    images, _ = demo.draw_set(str(folder / "drawn"), count=count, seed=1)
    return Path(images)


def repeated(folder: Path, source: Path, count: int, size: tuple[int, int] | None = None) -> Path:
    """A folder of `count` photos: those of `source` over and over, as links; at another (width, height) if given."""
    originals = sorted(path for path in source.iterdir() if path.is_file())
    if size is not None:
        (folder / "resized").mkdir(parents=True)
        for path in originals:
            with Image.open(path) as photo:
                photo.convert("RGB").resize(size).save(folder / "resized" / f"{path.stem}.jpg", quality=90)
        originals = sorted((folder / "resized").iterdir())
    target = folder / f"photos-{count}"
    target.mkdir(parents=True)
    for number in range(count):
        path = originals[number % len(originals)].absolute()
        (target / f"{number:06}{path.suffix}").symlink_to(path)
    return target
