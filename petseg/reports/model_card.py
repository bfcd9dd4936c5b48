"""Write the model card of an exported network: description, training data, scores and usage.

Takes values and returns Markdown; `model_card.md.jinja` holds the text. No torch.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from petseg.config.model import ModelConfig
from petseg.config.train import TrainConfig
from petseg.training.run_folder import format_score

PET_DATASET = (
    "The Oxford-IIIT Pet dataset (Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012), published under "
    "CC BY-SA 4.0"
)
DRAWN = "Pets drawn by petseg itself, no photos"

_RESIZED = {
    "antialias": "resized bilinearly with antialiasing, as Pillow does",
    "nearest": "resized to the nearest pixel",
}
_FILTER = {"antialias": "BILINEAR", "nearest": "NEAREST"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Facts about the run that trained a network."""

    settings: TrainConfig
    """Settings of the run."""
    pairs: Mapping[str, int]
    """Number of pairs in each split."""
    dataset: str
    """Description of the training data: `PET_DATASET`, `DRAWN`, or empty for any other data."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Content of a model card."""

    title: str
    """Heading of the card."""
    model: ModelConfig
    """Settings of the network."""
    history: Sequence[Mapping[str, Any]]
    """Metrics of a checkpoint's epochs; the last one is the network's."""
    training: Training | None
    """Facts about the training; None if the checkpoint is not in its run's folder."""
    licence: str
    """Licence of the weights."""
    differences: Mapping[str, float]
    """Largest difference between the probabilities of each file and PyTorch's."""
    versions: Iterable[tuple[str, str]]
    """(package, version) entries."""


def render(card: ModelCard) -> str:
    """Return the model card as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 - Markdown, not HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    training = card.training
    trained_at, size = _input_size(card.model)
    text = environment.get_template("model_card.md.jinja").render(
        card=card,
        classes=_class_rows(card.model),
        trained_at=trained_at,
        size=size,
        filter=_FILTER[card.model.resize],
        source=training and (training.settings.data or training.settings.images),
        recipe=_recipe_rows(card.model, training.settings) if training else [],
        scores=_score_rows(card.history),
        photo_source=PET_DATASET if training and training.dataset == PET_DATASET else "",
        differences=[(name, f"{difference:.1e}") for name, difference in card.differences.items()],
        versions=[("Python", platform.python_version()), *card.versions],
    )
    return text.rstrip("\n") + "\n"


def _input_size(model: ModelConfig) -> tuple[str, str]:
    """Return (what the network was trained on, in words; size to resize a photo to, as Python)."""
    height, width = model.image_size
    resized = _RESIZED[model.resize]
    if model.scale is None:
        return f"at {height} × {width}, with photos {resized}", f"({width}, {height})"
    words = f"on crops of {height} × {width} of photos {resized}, to {model.scale:g} times their height and width"
    return words, f"(max(1, round(photo.width * {model.scale:g})), max(1, round(photo.height * {model.scale:g})))"


def _class_rows(model: ModelConfig) -> list[tuple[int, str, str]]:
    classes = enumerate(zip(model.class_names, model.palette, strict=True))
    return [(class_id, name, " ".join(map(str, colour))) for class_id, (name, colour) in classes]


def _recipe_rows(model: ModelConfig, settings: TrainConfig) -> list[tuple[str, object]]:
    return [
        ("recipe", settings.recipe),
        ("weights at the start", _first_weights(model, settings)),
        ("epochs, at most", settings.epochs),
        ("batch size", settings.batch_size),
        ("learning rate", settings.learning_rate),
        ("augmented", settings.augment),
        ("loss", settings.loss),
        ("class weights", settings.class_weights or "none"),
        ("seed", settings.seed),
    ]


def _first_weights(model: ModelConfig, settings: TrainConfig) -> str:
    """Return where the weights at the start of training came from."""
    if settings.init_from:
        return f"those of {settings.init_from}"
    if not model.encoder or settings.encoder_weights == "none":
        return "random"
    given = settings.encoder_weights
    source = f"those in {given}" if given else "trained on ImageNet-1k by Google (Apache-2.0)"
    return f"encoder {model.encoder} ({model.encoder_library}): {source}; decoder: random"


def _score_rows(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    if not history:
        return []
    last = history[-1]
    names = {"val_loss": "loss", "val_pixel_accuracy": "pixel accuracy", "val_miou": "mIoU"}
    rows = [(name, format_score(last[key])) for key, name in names.items() if key in last]
    return rows + [(f"IoU, {name}", format_score(value)) for name, value in last.get("val_iou", {}).items()]


def _cell(value: object) -> str:
    """Escape a table cell: an unescaped `|` would begin another column."""
    return str(value).replace("|", "\\|")
