import math

import pytest
import torch
from checkpoints import CONFIG

from petseg.models import build
from petseg.models.encoder_weights import DEFAULT_ENCODER, with_encoder
from petseg.models.unet import UNet
from petseg.training import optim
from petseg.training.optim import KerasRMSprop, MovingAverage
from petseg.training.recipes import RECIPES


def test_schedule_best_recipe_warms_up_then_decays_to_zero() -> None:
    best = RECIPES["best"]
    rates = [optim.schedule(best, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[99] < 0.001
    assert optim.schedule(best, 0, 1) == 1
    assert {optim.schedule(RECIPES["keras"], step, 100) for step in range(100)} == {1.0}


def test_keras_rmsprop_epsilon_is_added_under_the_root() -> None:
    """Two steps computed by hand. The second entry's gradient is so small that epsilon dominates."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = KerasRMSprop([weight], 0.1)
    expected, velocity = [1.0, 1.0], [0.0, 0.0]
    for gradients in ((0.5, 1e-6), (-0.25, 1e-6)):
        weight.grad = torch.tensor(gradients)
        optimizer.step()
        for i, gradient in enumerate(gradients):
            velocity[i] = 0.9 * velocity[i] + 0.1 * gradient**2
            expected[i] -= 0.1 * gradient / math.sqrt(velocity[i] + 1e-7)
    assert weight.tolist() == pytest.approx(expected, rel=1e-6)
    assert 1 - expected[1] < 1e-3  # torch's RMSprop would have moved it by 0.5


def test_build_only_kernels_have_weight_decay() -> None:
    optimizer = optim.build(RECIPES["best"], UNet(3), 1e-3)
    for group in optimizer.param_groups:
        assert all((weight.ndim > 1) == (group["weight_decay"] > 0) for weight in group["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(UNet(3).parameters()))


def test_moving_average_forgets_its_start_and_follows_the_mean() -> None:
    model = UNet(3)
    average = MovingAverage(model)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
        average.update(step=0, memory_steps=100)
        first = average.model.get_parameter("head.weight").clone()
        for step in range(1, 2000):
            model.head.weight.fill_(step % 2)
            average.update(step, memory_steps=100)
    assert torch.allclose(first, torch.tensor(1.0), atol=0.15)  # nine tenths of the new weights
    assert torch.allclose(average.model.get_parameter("head.weight"), torch.tensor(0.5), atol=0.01)
    assert all(not weight.requires_grad for weight in average.model.parameters())


def test_build_encoder_learns_at_a_rate_of_its_own() -> None:
    recipe = RECIPES["pretrained"]
    model = build.build(with_encoder(CONFIG, DEFAULT_ENCODER))
    optimizer = optim.build(recipe, model, 1.0)
    optim.set_learning_rate(optimizer, 0.5)
    rates = {weight: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates.keys() == set(model.parameters())
    assert model.pretrained_part is not None
    encoder = set(model.pretrained_part.parameters())
    assert {rates[weight] for weight in encoder} == {0.5 * recipe.encoder_rate}
    assert {rate for weight, rate in rates.items() if weight not in encoder} == {0.5}


def test_set_learning_rate_optimizer_of_an_earlier_version_has_one_rate() -> None:
    optimizer = optim.build(RECIPES["best"], UNet(3), 1e-3)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["rate"]
    optimizer.load_state_dict(state)
    optim.set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
