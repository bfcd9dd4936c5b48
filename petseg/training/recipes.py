"""How to train: what the Keras example did, and what does better. Values only: no network, no Ray."""

import dataclasses
from dataclasses import dataclass

from petseg.config.base import Resize
from petseg.config.train import RecipeName, TrainConfig

VAL_FRACTION = 0.2
"""Share of the pairs that is held out, where neither flags nor the recipe say otherwise."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The defaults of the flags that --recipe decides, and what no flag does."""

    batch_size: int
    learning_rate: float
    augment: bool
    val_count: int | None = None
    resize: Resize = "antialias"
    input_scale: float = 1 / 127.5
    input_offset: float = -1.0
    keras_rmsprop: bool = False
    """RMSprop at a constant rate, as Keras computes it; else AdamW with a warm-up and a cosine."""
    batch_norm_momentum: float = 0.1
    """Share of a batch's statistics in the running ones. A short memory, where the weights' average smooths it."""
    keep_batches: bool = False
    """A batch holds the same pairs in all epochs and only the order of batches is shuffled, as by Keras's Sequence."""
    average_epochs: float | None = None
    """Memory, in epochs, of the moving average of the weights that is validated and kept; None: the weights are."""


RECIPES: dict[RecipeName, Recipe] = {
    # https://keras.io/examples/vision/oxford_pets_image_segmentation/ as published in 2020.
    "keras": Recipe(
        batch_size=32,
        learning_rate=1e-3,
        augment=False,
        val_count=1000,
        resize="nearest",
        input_scale=1.0,
        input_offset=0.0,
        keras_rmsprop=True,
        batch_norm_momentum=0.01,
        keep_batches=True,
    ),
    "best": Recipe(batch_size=8, learning_rate=2e-3, augment=True, average_epochs=1.0),
}


def resolve(config: TrainConfig) -> TrainConfig:
    """The settings with the recipe's in place of those that were not given."""
    recipe = RECIPES[config.recipe]
    val_count, val_fraction = config.val_count, config.val_fraction
    if val_count is None and val_fraction is None:
        val_count, val_fraction = recipe.val_count, None if recipe.val_count else VAL_FRACTION
    return dataclasses.replace(
        config,
        batch_size=config.batch_size or recipe.batch_size,
        learning_rate=config.learning_rate or recipe.learning_rate,
        augment=config.augment if config.augment != "auto" else "on" if recipe.augment else "off",
        val_count=val_count,
        val_fraction=val_fraction,
    )
