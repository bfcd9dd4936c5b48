"""Optimizers, learning-rate schedule and moving average of the weights. Tensors only."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from petseg.models.network import Network
from petseg.training.recipes import Recipe

WEIGHT_DECAY = 0.05

WARMUP_SHARE = 0.1
"""Fraction of all steps over which the learning rate rises."""


class KerasRMSprop(torch.optim.Optimizer):
    """RMSprop as in Keras: epsilon is added inside the square root, not outside it.

    This matters. With 1e-7, the mean square of a gradient counts as at least (3e-4)², so weights with gradients that
    small hardly move. `torch.optim.RMSprop` moves them as far as all others.
    """

    def __init__(self, params: Iterable[Tensor], learning_rate: float, rho: float = 0.9, epsilon: float = 1e-7) -> None:
        super().__init__(params, {"lr": learning_rate, "rho": rho, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update velocity = rho · velocity + (1 - rho) · gradient²; weight -= lr · gradient / √(velocity + epsilon)."""
        for group in self.param_groups:
            weights = group["params"]
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            all_of: Any = torch  # one kernel for many tensors; the functions are private, but torch.optim uses them
            all_of._foreach_mul_(velocities, group["rho"])
            all_of._foreach_addcmul_(velocities, gradients, gradients, 1 - group["rho"])
            roots = all_of._foreach_add(velocities, group["epsilon"])
            all_of._foreach_sqrt_(roots)
            all_of._foreach_addcdiv_(weights, gradients, roots, -group["lr"])


def build(recipe: Recipe, model: Network, learning_rate: float) -> torch.optim.Optimizer:
    """Return the recipe's optimizer. AdamW applies weight decay to kernels, but not to biases or norm scales.

    A group's `rate` is its learning rate, relative to that of the network.
    """
    if recipe.keras_rmsprop:
        return KerasRMSprop(model.parameters(), learning_rate)
    encoder = model.pretrained_part
    in_encoder = set() if encoder is None else set(encoder.parameters())
    groups: list[dict[str, Any]] = []
    for rate, weights in (
        (1.0, [weight for weight in model.parameters() if weight not in in_encoder]),
        (recipe.encoder_rate, [weight for weight in model.parameters() if weight in in_encoder]),
    ):
        kernels = [weight for weight in weights if weight.ndim > 1]
        others = [weight for weight in weights if weight.ndim <= 1]
        if weights:
            groups += [
                {"params": kernels, "weight_decay": WEIGHT_DECAY, "rate": rate},
                {"params": others, "weight_decay": 0.0, "rate": rate},
            ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def schedule(recipe: Recipe, step: int, total_steps: int) -> float:
    """Return the learning-rate factor of a step (from 0), relative to the maximum: linear warm-up, then cosine to zero.

    The cosine is that of SGDR (Loshchilov and Hutter, 2017) without restarts. Keras's RMSprop has a constant rate.
    """
    if recipe.keras_rmsprop:
        return 1.0
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameters, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate", 1.0)  # checkpoints of earlier versions have no rates


class MovingAverage:
    """Network whose weights and running statistics are exponential moving averages of those of `source`."""

    def __init__(self, source: Network) -> None:
        self.model = copy.deepcopy(source).requires_grad_(False)
        self._averages, self._sources = (
            [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
            for network in (self.model, source)
        )

    @torch.no_grad()
    def update(self, step: int, memory_steps: float) -> None:
        """Add the weights after a step (from 0) to the average.

        The first steps are forgotten sooner, because their weights are random.
        """
        kept = min(1 - 1 / max(1.0, memory_steps), (step + 1) / (step + 10))
        torch._foreach_lerp_(self._averages, self._sources, 1 - kept)  # pyright: ignore[reportPrivateImportUsage]
