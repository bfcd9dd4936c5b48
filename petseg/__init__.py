"""Train a U-Net on labelled photos and predict masks: on a laptop first, on a Ray cluster after.

`petseg.load` is for notebooks and scripts; the commands do everything else. Nothing is imported here
until `load` is called, so that `import petseg` costs milliseconds and a job loads only what it uses.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from petseg.api import Segmenter
    from petseg.config.base import Precision

__version__ = "0.1.0"


def load(
    checkpoint: str,
    *,
    device: str = "cpu",
    precision: "Precision" = "auto",
    tile: tuple[int, int] | None = None,
    tile_overlap: int | None = None,
    probabilities: bool = False,
    max_pixels: int = 128_000_000,
) -> "Segmenter":
    """Load a trained network, ready for `.predict(image)`. Takes seconds, most of them for loading PyTorch.

        segmenter = petseg.load("runs/first")
        mask = segmenter.predict("photos/a/cat.jpg")
        mask.class_ids                                  # uint8 (H, W)
        segmenter.model.class_names                     # a name for each id
        segmenter.picture(mask).save("cat.png")

    `checkpoint`: a run's folder (its best checkpoint is taken) or one checkpoint in it; path or URI. `device`: as
    PyTorch names it, such as "cuda". The other arguments are those of `petseg predict`; `tile` is (height,
    width) in pixels. For many photos that job is faster, and it can be interrupted.

    Raises `InputError`, a `ValueError`, if `checkpoint` is not a run or a checkpoint, or if an option is invalid.
    """
    from petseg import api
    from petseg.config.predict import PredictConfig

    settings = PredictConfig(
        checkpoint=str(checkpoint),
        images="",
        output="",
        use_gpu=device.startswith("cuda"),
        precision=precision,
        tile=tile or (),
        tile_overlap=tile_overlap,
        probabilities=probabilities,
        max_pixels=max_pixels,
    )
    return api.load(settings, device)
