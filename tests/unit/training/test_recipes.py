from petseg.config.train import TrainConfig
from petseg.training import recipes


def test_resolve_keras_recipe_equals_the_published_example() -> None:
    """The values are those of https://keras.io/examples/vision/oxford_pets_image_segmentation/ in 2020."""
    config = recipes.resolve(TrainConfig(recipe="keras"))
    found = (config.batch_size, config.learning_rate, config.augment, config.val_count, config.val_fraction)
    assert found == (32, 1e-3, "off", 1000, None)
    assert (config.epochs, config.seed, config.image_size) == (15, 1337, (160, 160))
    recipe = recipes.RECIPES["keras"]
    assert (recipe.resize, recipe.input_scale, recipe.input_offset) == ("nearest", 1, 0)
    assert (
        recipe.fixed_batches
        and recipe.keras_rmsprop
        and recipe.average_epochs is None
        and recipe.batch_norm_momentum == 0.01
    )


def test_resolve_flags_override_the_recipe() -> None:
    given = TrainConfig(recipe="keras", batch_size=4, learning_rate=0.1, augment="on", val_fraction=0.5)
    assert recipes.resolve(given) == given
    best = recipes.resolve(TrainConfig())
    assert (best.val_count, best.val_fraction, best.augment) == (None, 0.2, "on")
    assert recipes.resolve(best) == best


def test_resolve_fold_leaves_out_the_recipes_number_of_pairs() -> None:
    for recipe in ("best", "keras"):
        config = recipes.resolve(TrainConfig(recipe=recipe, val_fold="1/5"))
        assert (config.val_count, config.val_fraction, config.val_fold) == (None, None, "1/5")
