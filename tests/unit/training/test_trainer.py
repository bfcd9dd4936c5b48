from typing import Any

import pytest
import torch
from checkpoints import CONFIG
from torch import nn

from petseg.config.train import RecipeName, TrainConfig
from petseg.data.labels import IGNORE_ID
from petseg.evaluation import metrics
from petseg.models.unet import UNet
from petseg.training import recipes, trainer
from petseg.training.trainer import Trainer

CPU = torch.device("cpu")


def make_trainer(recipe: RecipeName = "best", weights: torch.Tensor | None = None, **settings: Any) -> Trainer:
    return Trainer(recipes.resolve(TrainConfig(recipe=recipe, **settings)), CONFIG, CPU, "fp32", weights)


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return photos, (photos[:, 0] > 128).to(torch.uint8)


def train_steps(trainer: Trainer, steps: range) -> None:
    for number in steps:
        trainer.train_step(*batch(), number, 10, (1, 0, 1, number))


@pytest.mark.parametrize("recipe", ["best", "keras"])
def test_train_step_each_recipe_lowers_the_loss(recipe: RecipeName) -> None:
    trainer = make_trainer(recipe, augment="off")
    losses = []
    for number in range(12):
        train_steps(trainer, range(number, number + 1))
        losses.append(trainer.mean_loss())
    assert losses[-1] < 0.8 * losses[0]


def test_restore_training_continues_identically() -> None:
    whole = make_trainer()
    train_steps(whole, range(8))
    first = make_trainer()
    train_steps(first, range(5))
    state, eval_model = first.state(), first.eval_model
    again = make_trainer(seed=99)  # other initial weights must have no effect
    again.restore(eval_model, state)
    train_steps(again, range(5, 8))
    assert again.mean_loss() == whole.mean_loss()
    for one, other in ((whole.model, again.model), (whole.eval_model, again.eval_model)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_eval_model_is_the_average_only_in_the_best_recipe() -> None:
    best, keras = make_trainer(), make_trainer("keras")
    assert best.eval_model is not best.model and keras.eval_model is keras.model
    assert keras.state().raw_weights is None
    train_steps(best, range(3))
    assert not torch.equal(best.eval_model.get_parameter("head.weight"), best.model.get_parameter("head.weight"))


def test_train_step_same_draws_same_augmentation() -> None:
    def loss(draws: tuple[int, ...]) -> float:
        trainer = make_trainer()
        trainer.train_step(*batch(), 0, 10, draws)
        return trainer.mean_loss()

    assert loss((1, 0, 1, 0)) == loss((1, 0, 1, 0)) != loss((1, 0, 1, 1))


def gradient(**settings: Any) -> torch.Tensor:
    trainer = make_trainer("keras", augment="off", **settings)
    photos, masks = batch(4)
    masks[0, :30] = IGNORE_ID  # parts of different weight
    trainer.model.eval()  # fixed statistics, because those of a part differ from the batch's
    trainer.model.train = lambda mode=True: trainer.model  # pyright: ignore[reportAttributeAccessIssue]
    trainer.train_step(photos, masks, 0, 10, (0,))
    found = trainer.model.get_parameter("head.weight").grad
    assert found is not None
    return found.clone()


def test_train_step_accumulated_gradient_equals_the_whole_batch() -> None:
    whole = gradient()
    torch.testing.assert_close(gradient(accumulate=2), whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient(accumulate=99), whole, rtol=1e-4, atol=1e-6)


def test_train_step_gradient_norm_is_clipped() -> None:
    trainer = make_trainer("keras", clip_norm=0.01)
    train_steps(trainer, range(1))
    norms = [weight.grad.norm() for weight in trainer.model.parameters() if weight.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("recipe", "expected"), [("best", 1.0), ("pretrained", 0.5)])
def test_train_step_warps_the_fraction_of_its_recipe(
    recipe: RecipeName, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fractions = []

    def augment(photos: torch.Tensor, masks: torch.Tensor, _: object, fraction: float) -> tuple[Any, Any]:
        fractions.append(fraction)
        return photos, masks

    monkeypatch.setattr(trainer, "augment", augment)
    train_steps(make_trainer(recipe), range(1))
    assert fractions == [expected]


def test_train_step_dice_is_added_to_the_cross_entropy() -> None:
    from petseg.training import losses

    photos, masks = batch()
    alone, both = make_trainer(augment="off"), make_trainer(augment="off", loss="ce+dice")
    with torch.no_grad():
        dice = losses.dice_loss(both.model.train()(photos), masks).item()
    for one in (alone, both):
        one.train_step(photos, masks, 0, 10, (1,))
    assert both.mean_loss() == pytest.approx(alone.mean_loss() + dice, rel=1e-4)
    assert any(
        not torch.equal(weight, alone.model.state_dict()[name]) for name, weight in both.model.state_dict().items()
    )


def test_mean_loss_pixels_are_weighted_by_class() -> None:
    weights = torch.tensor([1.0, 0.0, 0.0])
    photos, _ = batch(2)
    masks = torch.ones(2, 32, 32, dtype=torch.uint8)
    masks[0, 0, 0] = 0
    trainer = make_trainer("keras", weights)
    trainer.train_step(photos, masks, 0, 10, (0,))
    alone = make_trainer("keras")
    only = torch.full_like(masks, IGNORE_ID)
    only[0, 0, 0] = 0
    alone.train_step(photos, only, 0, 10, (0,))
    assert trainer.mean_loss() == pytest.approx(alone.mean_loss(), rel=1e-5)
    assert trainer.mean_loss() == 0  # no steps since the last call


def test_load_pretrained_weights_reach_the_eval_model() -> None:
    other = make_trainer(seed=5).model.state_dict()
    del other["head.weight"]
    trainer = make_trainer()
    head = trainer.model.get_parameter("head.weight").clone()
    trainer.load_pretrained(other)
    for network in (trainer.model, trainer.eval_model):
        assert torch.equal(network.get_parameter("entry.weight"), other["entry.weight"])
        assert torch.equal(network.get_parameter("head.weight"), head)


def test_validate_unequal_batches_pixels_weigh_equally() -> None:
    """Batches of 4 and 1 photos, and ignored pixels: each batch weighs as much as its pixels."""
    torch.manual_seed(0)
    model = UNet(3, input_scale=1 / 127.5, input_offset=-1)
    photos = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    masks = torch.randint(0, 2, (5, 32, 32), dtype=torch.uint8)
    masks[4] = IGNORE_ID
    masks[4, 0, 0] = 1
    batches = [(photos[:4], masks[:4]), (photos[4:], masks[4:])]
    scores = trainer.validate(model, iter(batches), CONFIG, "fp32", CPU)
    with torch.no_grad():
        logits = model(photos)
    expected = nn.functional.cross_entropy(logits, masks.long(), ignore_index=IGNORE_ID)
    confusion = metrics.confusion_matrix(logits.argmax(1), masks, 3)
    assert scores["val_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert scores["val_pixel_accuracy"] == pytest.approx(metrics.pixel_accuracy(confusion), abs=1e-3)
    assert scores["val_miou"] == pytest.approx(metrics.mean_iou(confusion), abs=1e-3)
    assert list(scores["val_iou"]) == ["pet", "background", "border"]


def test_validate_undefined_score_is_null() -> None:
    model = UNet(3)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([100.0, 0, 0]))  # pyright: ignore[reportOptionalMemberAccess]
        model.head.weight.zero_()
    masks = torch.zeros((1, 32, 32), dtype=torch.uint8)
    scores = trainer.validate(model, iter([(torch.zeros(1, 3, 32, 32), masks)]), CONFIG, "fp32", CPU)
    assert scores["val_iou"] == {"pet": 1, "background": None, "border": None}
    assert scores["val_miou"] == 1
    scores = trainer.validate(model, iter([(torch.zeros(1, 3, 32, 32), masks + IGNORE_ID)]), CONFIG, "fp32", CPU)
    assert scores["val_loss"] is None and scores["val_miou"] is None


@pytest.mark.parametrize(("step", "kept"), [(0, 1 / 10), (500, 501 / 510)])
def test_train_step_average_forgets_the_first_steps_sooner(step: int, kept: float) -> None:
    trainer = make_trainer()
    trainer.train_step(*batch(), step, 1000, (1, 0, 1, step))
    moved, averaged = (
        network.get_buffer("entry_bn.running_mean") for network in (trainer.model, trainer.eval_model)
    )  # 0 before
    assert torch.allclose(averaged, (1 - kept) * moved, rtol=1e-4)
    assert moved.abs().max() > 1e-3
