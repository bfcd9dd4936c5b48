"""Default inputs of the benchmarks: drawn photos and an untrained network."""

from pathlib import Path

from PIL import Image

from petseg.config.model import ModelConfig
from petseg.data import demo, labels
from petseg.models import checkpoint
from petseg.models.build import build_seeded
from petseg.models.encoder_weights import with_encoder


def untrained(folder: Path, image_size: tuple[int, int] = (64, 64), encoder: str = "") -> Path:
    """Write a run's folder with one checkpoint of an untrained network. It is as fast as a trained one.

    The network is that of the Keras example, or a U-Net on this encoder of timm.
    """
    config = ModelConfig(
        num_classes=3,
        image_size=image_size,
        class_names=("pet", "background", "border"),
        palette=labels.palette(3),
        label_map="",
    )
    if encoder:
        config = with_encoder(config, encoder)
    model = build_seeded(config, 1)
    checkpoint.save(str(folder / "run"), model, checkpoint.TrainState({}), config, [{"val_loss": 1.0}])
    return folder / "run"


def photos(folder: Path, count: int) -> Path:
    """Draw `count` small photos and return their folder."""
    images, _ = demo.draw_set(str(folder / "drawn"), count=count, seed=1)
    return Path(images)


def repeated(folder: Path, source: Path, count: int, size: tuple[int, int] | None = None) -> Path:
    """Return a folder of `count` links to the photos of `source`, repeated, and resized to `size` (width, height)."""
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
