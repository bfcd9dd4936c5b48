"""Training recipes: the settings of the Keras example, and better ones. Values only: no network, no Ray."""

import dataclasses
from dataclasses import dataclass

from petseg.config.base import Resize
from petseg.config.train import RecipeName, TrainConfig

VAL_FRACTION = 0.2
"""Fraction of the pairs that is held out for validation, unless flags or the recipe set it."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults of the flags that --recipe sets, and settings without a flag."""

    batch_size: int
    learning_rate: float
    augment: bool
    warp_fraction: float = 1.0
    """Fraction of the pairs that augmentation rotates, zooms, stretches and shifts. The others are only mirrored."""
    val_count: int | None = None
    resize: Resize = "antialias"
    input_scale: float = 1 / 127.5
    input_offset: float = -1.0
    network: str = "unet"
    """Value of --network that is meant if it is not given."""
    encoder_rate: float = 1.0
    """Learning rate of a pretrained encoder, relative to that of the rest."""
    keras_rmsprop: bool = False
    """Use RMSprop at a constant rate, as Keras computes it; otherwise AdamW with a warm-up and a cosine schedule."""
    batch_norm_momentum: float = 0.1
    """Fraction of a batch's statistics in the running ones. A short memory suffices if the weights are averaged."""
    fixed_batches: bool = False
    """Keep the pairs of each batch the same in all epochs and shuffle only the batches, as Keras's Sequence does."""
    average_epochs: float | None = None
    """Memory, in epochs, of the moving average of the weights, which is then validated and saved.

    None means that the weights themselves are validated and saved.
    """


RECIPES: dict[RecipeName, Recipe] = {
    # https://keras.io/examples/vision/oxford_pets_image_segmentation/, as published in 2020.
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
        fixed_batches=True,
    ),
    "best": Recipe(batch_size=8, learning_rate=2e-3, augment=True, average_epochs=1.0),
    "pretrained": Recipe(
        batch_size=8,
        learning_rate=2e-3,
        augment=True,
        warp_fraction=0.5,
        network="tf_efficientnet_lite0",
        encoder_rate=0.25,
        average_epochs=1.0,
    ),
}


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the settings, with the recipe's values for those that were not given."""
    recipe = RECIPES[config.recipe]
    val_count, val_fraction = config.val_count, config.val_fraction
    if val_count is None and val_fraction is None and not config.val_fold:
        val_count, val_fraction = recipe.val_count, None if recipe.val_count else VAL_FRACTION
    return dataclasses.replace(
        config,
        batch_size=config.batch_size or recipe.batch_size,
        learning_rate=config.learning_rate or recipe.learning_rate,
        augment=config.augment if config.augment != "auto" else "on" if recipe.augment else "off",
        val_count=val_count,
        val_fraction=val_fraction,
    )
