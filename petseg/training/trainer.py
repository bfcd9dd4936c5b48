"""One worker's network and everything that changes it, a step at a time. No Ray, no files."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from petseg.config.base import Precision
from petseg.config.model import ModelConfig
from petseg.config.train import TrainConfig
from petseg.evaluation import metrics
from petseg.models import precision
from petseg.models.build import build_seeded
from petseg.models.checkpoint import TrainState
from petseg.models.network import Network
from petseg.training import losses, optim
from petseg.training.augment import augment
from petseg.training.recipes import RECIPES


class Trainer:
    """Network, optimizer and moving average of the weights.

    Identical on all ranks except batch-norm statistics (see `sync_batch_norm_stats`). `config` has the recipe's values
    filled in by `recipes.resolve`, and `dtype` is resolved.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        device: torch.device,
        dtype: Precision,
        class_weights: Tensor | None = None,
    ) -> None:
        assert config.learning_rate is not None and config.augment != "auto"
        self._recipe = RECIPES[config.recipe]
        self._config = config
        self._learning_rate = config.learning_rate
        self._device = device
        self.dtype: Precision = dtype
        self.model = build_seeded(model, config.seed)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self._recipe.batch_norm_momentum
        self.model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in the stubs
        self._average = optim.MovingAverage(self.model) if self._recipe.average_epochs else None
        self._optimizer = optim.build(self._recipe, self.model, config.learning_rate)
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self._generator = torch.Generator(device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the loss, and of its pixels' weights
        self._parallel: nn.Module = self.model
        self._world_size = 1

    @property
    def eval_model(self) -> Network:
        """Network that is validated and saved: the average of the weights, if the recipe has one."""
        return self.model if self._average is None else self._average.model

    def restore(self, eval_model: Network, state: TrainState) -> None:
        """Continue from a checkpoint: its network, and the `state` that was saved with it."""
        self.eval_model.load_state_dict(eval_model.state_dict())
        if state.raw_weights is not None:
            self.model.load_state_dict(state.raw_weights)
        self._optimizer.load_state_dict(state.optimizer)
        if self._is_first_rank():
            self._sums += torch.tensor(state.sums, dtype=torch.float64, device=self._device)

    def state(self) -> TrainState:
        """Return what `restore` needs, in addition to the weights of `eval_model`."""
        raw_weights = None if self._average is None else self.model.state_dict()
        return TrainState(self._optimizer.state_dict(), raw_weights, tuple(self._sums.tolist()), self.dtype)

    def load_pretrained(self, weights: dict[str, Tensor]) -> None:
        """Start from these weights. Parameters that are missing in them keep their random values."""
        self.model.load_state_dict(weights, strict=False)
        self.eval_model.load_state_dict(weights, strict=False)

    def wrap_ddp(self, parallel: nn.Module, world_size: int) -> None:
        """Train with `world_size` ranks, through `parallel`, the module (DDP) that wraps `model` for that."""
        self._parallel, self._world_size = parallel, world_size

    def train_step(self, photos: Tensor, masks: Tensor, step: int, epoch_steps: int, seeds: tuple[int, ...]) -> None:
        """Train on a batch of this rank: photos uint8 (n, 3, H, W), class ids uint8 (n, H, W), on the device.

        `step` counts from 0 over all epochs of `epoch_steps` each. `seeds` determines the augmentation. The host waits
        for nothing.
        """
        factor = optim.schedule(self._recipe, step, self._config.epochs * epoch_steps)
        optim.set_learning_rate(self._optimizer, self._learning_rate * factor)
        if self._config.augment == "on":
            self._generator.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]))
            photos, masks = augment(photos, masks, self._generator, self._recipe.warp_fraction)
        self.model.train()
        self._optimizer.zero_grad()
        self._sums += self._backward(photos, masks)
        if self._config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            assert self._recipe.average_epochs is not None
            self._average.update(step, self._recipe.average_epochs * epoch_steps)

    def mean_loss(self) -> float:
        """Return the training loss in nats per pixel since the last call, over all ranks; the same on each rank."""
        all_reduce(self._sums)
        loss = (self._sums[0] / self._sums[1].clamp(min=1)).item()
        self._sums.zero_()
        return loss

    def sync_batch_norm_stats(self) -> None:
        """Replace each rank's running statistics by their mean over the ranks.

        The sums of the loss move to the first rank, so that its `state` is complete.
        """
        all_reduce(self._sums)
        if not self._is_first_rank():
            self._sums.zero_()
        for module in (*self.model.modules(), *(self._average.model.modules() if self._average else ())):
            if isinstance(module, nn.BatchNorm2d):
                for statistic in (module.running_mean, module.running_var):
                    assert statistic is not None
                    all_reduce(statistic)
                    statistic /= self._world_size

    def _backward(self, photos: Tensor, masks: Tensor) -> Tensor:
        """Add the gradients of a batch, in `accumulate` parts; return (sum of the loss, sum of the pixels' weights)."""
        weight = losses.total_weight(masks, self._class_weights)
        total_weight = weight.clone()
        all_reduce(total_weight)
        count = min(self._config.accumulate, len(photos))
        parts = list(zip(photos.tensor_split(count), masks.tensor_split(count), strict=True))
        loss = torch.zeros_like(weight)
        for index, (part_photos, part_masks) in enumerate(parts):
            with self._no_sync() if index < len(parts) - 1 else contextlib.nullcontext():
                with precision.autocast(self.dtype, self._device):
                    logits_nchw = self._parallel(part_photos)
                part_loss = self._loss(logits_nchw, part_masks)
                # DDP averages the gradients of the ranks. What is wanted is the mean over the pixels of all ranks.
                (part_loss * self._world_size / total_weight.clamp(min=1)).backward()
            loss += part_loss.detach()
        return torch.stack([loss, weight])

    def _loss(self, logits_nchw: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of --loss, summed over the pixels."""
        cross_entropy = losses.cross_entropy_sum(logits_nchw, masks, self._class_weights)
        if self._config.loss == "ce":
            return cross_entropy
        return cross_entropy + losses.dice_loss(logits_nchw, masks) * losses.total_weight(masks, self._class_weights)

    def _is_first_rank(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    def _no_sync(self) -> Any:
        """Return the context in which gradients are not exchanged between the ranks."""
        parallel = self._parallel
        is_ddp = isinstance(parallel, nn.parallel.DistributedDataParallel)
        return parallel.no_sync() if is_ddp else contextlib.nullcontext()


def all_reduce(tensor: Tensor) -> None:
    """Sum a tensor over the ranks, in place. With one rank it stays as it is."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)


def validate(
    model: Network,
    batches: Iterator[tuple[Tensor, Tensor]],
    config: ModelConfig,
    dtype: Precision,
    device: torch.device,
) -> dict[str, Any]:
    """Return the loss and the scores over the rows of all ranks, each row counted once; the same on every rank.

    An undefined score, such as the IoU of a class that never occurs, is None.
    """
    confusion = torch.zeros((config.num_classes, config.num_classes), dtype=torch.int64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    model.eval()
    with torch.inference_mode():
        for photos, masks in batches:
            with precision.autocast(dtype, device):
                logits_nchw = model(photos)
            loss_sum += losses.cross_entropy_sum(logits_nchw, masks)
            confusion += metrics.confusion_matrix(logits_nchw.argmax(1), masks, config.num_classes)
    all_reduce(confusion)
    all_reduce(loss_sum)
    return {
        "val_loss": metrics.finite_or_none((loss_sum / confusion.sum()).item()),
        "val_pixel_accuracy": metrics.finite_or_none(metrics.pixel_accuracy(confusion)),
        "val_miou": metrics.finite_or_none(metrics.mean_iou(confusion)),
        "val_iou": dict(zip(config.class_names, map(metrics.finite_or_none, metrics.iou(confusion)), strict=True)),
    }
