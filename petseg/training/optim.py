"""What moves the weights: the optimizers, the learning rate, the moving average. Tensors only."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from petseg.models.unet import UNet
from petseg.training.recipes import Recipe

WEIGHT_DECAY = 0.05

WARMUP_SHARE = 0.1
"""Share of all steps in which the learning rate rises."""


class KerasRMSprop(torch.optim.Optimizer):
    """RMSprop as Keras has it: epsilon is added under the root, not beside it.

    That matters: with 1e-7 no gradient's mean square counts for less than (3e-4)², so entries that small hardly move,
    where `torch.optim.RMSprop` moves them as far as all others.
    """

    def __init__(self, params: Iterable[Tensor], learning_rate: float, rho: float = 0.9, epsilon: float = 1e-7) -> None:
        super().__init__(params, {"lr": learning_rate, "rho": rho, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """velocity = rho · velocity + (1 - rho) · gradient²; weight -= lr · gradient / √(velocity + epsilon)."""
        for group in self.param_groups:
            weights = group["params"]
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            all_of: Any = torch  # one kernel for many tensors; the names have an underscore, and optim's own use them
            all_of._foreach_mul_(velocities, group["rho"])
            all_of._foreach_addcmul_(velocities, gradients, gradients, 1 - group["rho"])
            roots = all_of._foreach_add(velocities, group["epsilon"])
            all_of._foreach_sqrt_(roots)
            all_of._foreach_addcdiv_(weights, gradients, roots, -group["lr"])


def build(recipe: Recipe, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """The recipe's optimizer. AdamW lets kernels decay, but neither biases nor the scales of norms."""
    if recipe.keras_rmsprop:
        return KerasRMSprop(model.parameters(), learning_rate)
    kernels = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def schedule(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate of a step (from 0) as a share of the highest: a linear rise, then a cosine down to zero.

    The cosine is that of SGDR (Loshchilov and Hutter, 2017) without restarts. Keras's RMSprop has a constant rate.
    """
    if recipe.keras_rmsprop:
        return 1.0
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """For all parameters, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class MovingAverage:
    """A network whose weights and running statistics are exponential moving averages of those of `source`."""

    def __init__(self, source: UNet) -> None:
        self.model = copy.deepcopy(source).requires_grad_(False)
        self._mine, self._theirs = (
            [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
            for network in (self.model, source)
        )

    @torch.no_grad()
    def update(self, step: int, memory_steps: float) -> None:
        """Take in the weights after a step (from 0). The first steps are forgotten sooner: their weights are random."""
        kept = min(1 - 1 / max(1.0, memory_steps), (step + 1) / (step + 10))
        torch._foreach_lerp_(self._mine, self._theirs, 1 - kept)  # pyright: ignore[reportPrivateImportUsage]
