"""One worker's network and all that moves it: a step at a time, from a batch on the device. No Ray, no files."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from petseg.config.base import ModelConfig, Precision
from petseg.config.train import TrainConfig
from petseg.evaluation import metrics
from petseg.models import precision
from petseg.models.build import build_seeded
from petseg.models.checkpoint import TrainState
from petseg.models.network import Network
from petseg.training import losses, optim
from petseg.training.augment import augment
from petseg.training.recipes import RECIPES


class Learner:
    """The network, its optimizer and the average of its weights; equal on all ranks, but for what `join` says.

    `config` has the recipe's settings in it, as `recipes.resolve` gives it; `arithmetic` is resolved, too.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        device: torch.device,
        arithmetic: Precision,
        class_weights: Tensor | None = None,
    ) -> None:
        assert config.learning_rate is not None and config.augment != "auto"
        self._recipe = RECIPES[config.recipe]
        self._config = config
        self._learning_rate = config.learning_rate
        self._device = device
        self.arithmetic: Precision = arithmetic
        self.model = build_seeded(model, config.seed)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self._recipe.batch_norm_momentum
        self.model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in the stubs
        self._average = optim.MovingAverage(self.model) if self._recipe.average_epochs else None
        self._optimizer = optim.build(self._recipe, self.model, config.learning_rate)
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self._generator = torch.Generator(device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the loss, of the weight of its pixels
        self._parallel: nn.Module = self.model
        self._world_size = 1

    @property
    def judged(self) -> Network:
        """The network that is validated and kept: the average, where there is one."""
        return self.model if self._average is None else self._average.model

    def restore(self, judged: Network, state: TrainState) -> None:
        """Go on from the network that `judged` was when `state` was taken."""
        self.judged.load_state_dict(judged.state_dict())
        if state.moved is not None:
            self.model.load_state_dict(state.moved)
        self._optimizer.load_state_dict(state.optimizer)
        if self._is_first():
            self._sums += torch.tensor(state.sums, dtype=torch.float64, device=self._device)

    def state(self) -> TrainState:
        """What `restore` wants, beside the weights of `judged`."""
        moved = None if self._average is None else self.model.state_dict()
        return TrainState(self._optimizer.state_dict(), moved, tuple(self._sums.tolist()), self.arithmetic)

    def begin_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with these weights, which may lack some of the network's; those stay as they are."""
        self.model.load_state_dict(weights, strict=False)
        self.judged.load_state_dict(weights, strict=False)

    def join(self, parallel: nn.Module, world_size: int) -> None:
        """Train with `world_size` ranks, through the module that has wrapped `model` for that (DDP).

        Each rank keeps running statistics of its own; `agree` makes them equal.
        """
        self._parallel, self._world_size = parallel, world_size

    def step(self, photos: Tensor, masks: Tensor, done: int, epoch_steps: int, draws: tuple[int, ...]) -> None:
        """Learn from a batch of this rank: photos uint8 (n, 3, H, W), class ids uint8 (n, H, W), on the device.

        `done` steps were before it, of `epoch_steps` in each epoch; what is done to the pairs at random follows from
        `draws`. The host waits for nothing.
        """
        share = optim.schedule(self._recipe, done, self._config.epochs * epoch_steps)
        optim.set_learning_rate(self._optimizer, self._learning_rate * share)
        if self._config.augment == "on":
            self._generator.manual_seed(int(np.random.SeedSequence(draws).generate_state(1, np.uint64)[0]))
            photos, masks = augment(photos, masks, self._generator)
        weight = losses.total_weight(masks, self._class_weights)
        total = weight.clone()
        all_reduce(total)
        self.model.train()
        self._optimizer.zero_grad()
        count = min(self._config.accumulate, len(photos))
        parts = list(zip(photos.tensor_split(count), masks.tensor_split(count), strict=True))
        loss = torch.zeros_like(weight)
        for number, (some_photos, some_masks) in enumerate(parts, 1):
            with self._alone() if number < len(parts) else contextlib.nullcontext():
                with precision.autocast(self.arithmetic, self._device):
                    logits = self._parallel(some_photos)
                part = losses.cross_entropy_sum(logits, some_masks, self._class_weights)
                # DDP takes the mean of the ranks' gradients; what is wanted is the mean over the pixels of all of them.
                (part * self._world_size / total.clamp(min=1)).backward()
            loss += part.detach()
        if self._config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            assert self._recipe.average_epochs is not None
            self._average.update(done, self._recipe.average_epochs * epoch_steps)
        self._sums += torch.stack([loss, weight])

    def mean_loss(self) -> float:
        """Training loss in nats per pixel over all ranks since this was last asked; the same on each."""
        all_reduce(self._sums)
        loss = (self._sums[0] / self._sums[1].clamp(min=1)).item()
        self._sums.zero_()
        return loss

    def agree(self) -> None:
        """Replace each rank's running statistics by the mean over the ranks, and leave the sums of the loss to the
        first: what `state` gives there is then all there is to keep.
        """
        all_reduce(self._sums)
        if not self._is_first():
            self._sums.zero_()
        for module in (*self.model.modules(), *(self._average.model.modules() if self._average else ())):
            if isinstance(module, nn.BatchNorm2d):
                for statistic in (module.running_mean, module.running_var):
                    assert statistic is not None
                    all_reduce(statistic)
                    statistic /= self._world_size

    def _is_first(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    def _alone(self) -> Any:
        """The context in which gradients stay with their rank."""
        parallel = self._parallel
        is_ddp = isinstance(parallel, nn.parallel.DistributedDataParallel)
        return parallel.no_sync() if is_ddp else contextlib.nullcontext()


def all_reduce(tensor: Tensor) -> None:
    """Sum over the ranks, in place; on one rank alone it is the sum already."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)


def validate(
    model: Network,
    batches: Iterator[tuple[Tensor, Tensor]],
    config: ModelConfig,
    arithmetic: Precision,
    device: torch.device,
) -> dict[str, Any]:
    """Loss and scores over the rows of all ranks together, each row once; equal on every rank.

    A score that is not defined, such as the IoU of a class that nowhere occurs, is None.
    """
    confusion = torch.zeros((config.num_classes, config.num_classes), dtype=torch.int64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    model.eval()
    with torch.inference_mode():
        for photos, masks in batches:
            with precision.autocast(arithmetic, device):
                logits = model(photos)
            loss_sum += losses.cross_entropy_sum(logits, masks)
            confusion += metrics.confusion_matrix(logits.argmax(1), masks, config.num_classes)
    all_reduce(confusion)
    all_reduce(loss_sum)
    return {
        "val_loss": metrics.defined((loss_sum / confusion.sum()).item()),
        "val_pixel_accuracy": metrics.defined(metrics.pixel_accuracy(confusion)),
        "val_miou": metrics.defined(metrics.mean_iou(confusion)),
        "val_iou": dict(zip(config.class_names, map(metrics.defined, metrics.iou(confusion)), strict=True)),
    }
