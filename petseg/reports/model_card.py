"""Write the model card of an exported network: description, training data, scores and usage.

Takes values and returns Markdown. No files and no torch.
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from petseg.config.base import ModelConfig
from petseg.config.train import TrainConfig
from petseg.training.run_folder import score

FILE = "MODEL_CARD.md"

PET_DATASET = (
    "The Oxford-IIIT Pet dataset (Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012), published under "
    "CC BY-SA 4.0"
)
DRAWN = "Pets drawn by petseg itself; it has seen no photo"


@dataclass(frozen=True, kw_only=True)
class Training:
    """Facts about the run that trained a network."""

    settings: TrainConfig
    pairs: Mapping[str, int]
    """Number of pairs in each split."""
    what: str
    """Description of the training data: `PET_DATASET`, `DRAWN`, or empty for any other data."""


def card(
    *,
    title: str,
    model: ModelConfig,
    history: list[dict[str, Any]],
    training: Training | None,
    licence: str,
    differences: Mapping[str, float],
    versions: Iterable[tuple[str, str]],
) -> str:
    """Return the model card as Markdown.

    `history` holds the metrics of a checkpoint's epochs; the last one is the network's. `differences` maps each file to
    the largest difference between its probabilities and PyTorch's.
    """
    sections = {
        "": [
            f"# {title}",
            "A U-Net that gives each pixel of a photo the probability of each class. Written by `petseg export` of "
            "petseg.",
        ],
        "Classes": [
            _classes(model),
            f"Raw values of the masks it was trained on, and their ids (255: ignored): `{model.label_map}`",
        ],
        "In and out": _in_and_out(model),
        "Use": [_use(model)] if "model.onnx" in differences else [],
        "Trained on": _trained_on(training),
        "Scores": _scores(history),
        "Licence": [
            "The code that made it: Apache-2.0.",
            f"The weights: {licence}.",
            *([f"The photos: {training.what}."] if training and training.what == PET_DATASET else []),
        ],
        "Limits": [_LIMITS],
        "Checked": [
            _table(
                ("file", "largest difference of a probability from PyTorch's"),
                [(n, f"{d:.1e}") for n, d in differences.items()],
            ),
            _table(("version", ""), [("Python", platform.python_version()), *versions]),
        ],
    }
    parts = [part for head, text in sections.items() if text for part in ([f"## {head}"] if head else []) + text]
    return "\n\n".join(parts) + "\n"


_RESIZED = {
    "antialias": "resized bilinearly with antialiasing, as Pillow does",
    "nearest": "resized to the nearest pixel",
}
_FILTER = {"antialias": "BILINEAR", "nearest": "NEAREST"}

_USE = """```python
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
session = onnxruntime.InferenceSession("model.onnx")
pixels = np.asarray(photo.resize((WIDTH, HEIGHT), Image.Resampling.FILTER)).transpose(2, 0, 1)[None]
probabilities = session.run(None, {"pixels": pixels})[0][0]
mask = Image.fromarray(probabilities.argmax(0).astype(np.uint8)).resize(photo.size, Image.Resampling.NEAREST)
```"""


_LIMITS = (
    "It knows what was in its photos, as they were taken, and nothing else; it has no class for what it does "
    "not know. A probability is not calibrated. The scores are of photos from the same source, by which "
    "the best epoch was chosen: on others they are lower. Edges are as fine as the size it was trained at."
)


def _classes(model: ModelConfig) -> str:
    classes = enumerate(zip(model.class_names, model.palette, strict=True))
    return _table(("id", "name", "RGB"), [(i, name, " ".join(map(str, colour))) for i, (name, colour) in classes])


def _in_and_out(model: ModelConfig) -> list[str]:
    height, width = model.image_size
    return [
        f"`pixels`: uint8, RGB, (N, 3, height, width); trained at {height} × {width}, to which a photo is "
        f"{_RESIZED[model.resize]}. Other sizes are taken, and padded inside; but what "
        "it has learnt at one scale it knows at that scale.",
        "`probabilities`: float32 (N, classes, height, width), which add up to 1 at each pixel. The scaling of the "
        "input is inside.",
    ]


def _use(model: ModelConfig) -> str:
    height, width = model.image_size
    return _USE.replace("HEIGHT", str(height)).replace("WIDTH", str(width)).replace("FILTER", _FILTER[model.resize])


def _trained_on(training: Training | None) -> list[str]:
    if training is None:
        return ["Not known: the checkpoint was not in its run's folder."]
    settings = training.settings
    source = settings.data or settings.images
    recipe = {
        "recipe": settings.recipe,
        "epochs, at most": settings.epochs,
        "batch size": settings.batch_size,
        "learning rate": settings.learning_rate,
        "augmented": settings.augment,
        "class weights": settings.class_weights or "none",
        "seed": settings.seed,
    }
    return [
        *([f"{training.what}."] if training.what else []),
        *([f"From `{source}`."] if source else []),
        _table(("side", "pairs of a photo and its mask"), training.pairs.items()),
        _table(("setting", ""), recipe.items()),
    ]


def _scores(history: list[dict[str, Any]]) -> list[str]:
    if not history:
        return ["None: it is from within the first epoch."]
    last = history[-1]
    names = {"val_loss": "loss", "val_pixel_accuracy": "pixel accuracy", "val_miou": "mIoU"}
    rows = [(name, score(last[key])) for key, name in names.items() if key in last]
    rows += [(f"IoU, {name}", score(value)) for name, value in last.get("val_iou", {}).items()]
    return [f"Of the validation pairs, after epoch {len(history)}:", _table(("", ""), rows)]


def _table(heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
