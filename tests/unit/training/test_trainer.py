from typing import Any

import pytest
import torch

from petseg.config.base import ModelConfig
from petseg.config.train import RecipeName, TrainConfig
from petseg.data import labels
from petseg.data.labels import IGNORE_ID
from petseg.training import recipes
from petseg.training.trainer import Learner

CPU = torch.device("cpu")
MODEL = ModelConfig(
    num_classes=3,
    image_size=(32, 32),
    class_names=labels.class_names(3),
    palette=labels.palette(3),
    label_map="1:0,2:1,3:2",
)


def learner(recipe: RecipeName = "best", weights: torch.Tensor | None = None, **settings: Any) -> Learner:
    return Learner(recipes.resolve(TrainConfig(recipe=recipe, **settings)), MODEL, CPU, "fp32", weights)


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return photos, (photos[:, 0] > 128).to(torch.uint8)


def learn(learning: Learner, steps: range) -> None:
    for number in steps:
        learning.step(*batch(), number, 10, (1, 0, 1, number))


@pytest.mark.parametrize("recipe", ["best", "keras"])
def test_it_learns(recipe: RecipeName) -> None:
    learning = learner(recipe, augment="off")
    losses = []
    for number in range(12):
        learn(learning, range(number, number + 1))
        losses.append(learning.mean_loss())
    assert losses[-1] < 0.8 * losses[0]


def test_what_is_restored_goes_on_as_if_nothing_had_been() -> None:
    whole = learner()
    learn(whole, range(8))
    first = learner()
    learn(first, range(5))
    state, judged = first.state(), first.judged
    again = learner(seed=99)  # other weights, which must not matter
    again.restore(judged, state)
    learn(again, range(5, 8))
    assert again.mean_loss() == whole.mean_loss()
    for one, other in ((whole.model, again.model), (whole.judged, again.judged)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_what_is_judged_is_the_average_of_the_best_recipe_only() -> None:
    best, keras = learner(), learner("keras")
    assert best.judged is not best.model and keras.judged is keras.model
    assert keras.state().moved is None
    learn(best, range(3))
    assert not torch.equal(best.judged.get_parameter("head.weight"), best.model.get_parameter("head.weight"))


def test_what_is_done_to_the_pairs_follows_from_the_draws() -> None:
    def loss(draws: tuple[int, ...]) -> float:
        learning = learner()
        learning.step(*batch(), 0, 10, draws)
        return learning.mean_loss()

    assert loss((1, 0, 1, 0)) == loss((1, 0, 1, 0)) != loss((1, 0, 1, 1))


def gradient(**settings: Any) -> torch.Tensor:
    learning = learner("keras", augment="off", **settings)
    photos, masks = batch(4)
    masks[0, :30] = IGNORE_ID  # parts of unlike weight
    learning.model.eval()  # fixed statistics, as a part's own are not the batch's
    learning.model.train = lambda mode=True: learning.model  # pyright: ignore[reportAttributeAccessIssue]
    learning.step(photos, masks, 0, 10, (0,))
    found = learning.model.get_parameter("head.weight").grad
    assert found is not None
    return found.clone()


def test_parts_of_a_batch_add_up_to_its_gradient() -> None:
    whole = gradient()
    torch.testing.assert_close(gradient(accumulate=2), whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient(accumulate=99), whole, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped() -> None:
    learning = learner("keras", clip_norm=0.01)
    learn(learning, range(1))
    norms = [weight.grad.norm() for weight in learning.model.parameters() if weight.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_loss_is_the_mean_over_pixels_by_the_weight_of_their_class() -> None:
    weights = torch.tensor([1.0, 0.0, 0.0])
    photos, _ = batch(2)
    masks = torch.ones(2, 32, 32, dtype=torch.uint8)
    masks[0, 0, 0] = 0
    learning = learner("keras", weights)
    learning.step(photos, masks, 0, 10, (0,))
    alone = learner("keras")
    only = torch.full_like(masks, IGNORE_ID)
    only[0, 0, 0] = 0
    alone.step(photos, only, 0, 10, (0,))
    assert learning.mean_loss() == pytest.approx(alone.mean_loss(), rel=1e-5)
    assert learning.mean_loss() == 0  # nothing since


def test_weights_to_begin_with_reach_what_is_judged() -> None:
    other = learner(seed=5).model.state_dict()
    del other["head.weight"]
    learning = learner()
    head = learning.model.get_parameter("head.weight").clone()
    learning.begin_from(other)
    for network in (learning.model, learning.judged):
        assert torch.equal(network.get_parameter("entry.weight"), other["entry.weight"])
        assert torch.equal(network.get_parameter("head.weight"), head)
