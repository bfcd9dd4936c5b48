"""The training loop of one worker, top to bottom. `fit` starts the workers.

Checkpoints go through `checkpoint.save`, not through `ray.train.report`.
A restarted worker, a driver restarted with --resume, and a job that does not use Ray all find the same folder.
"""

import dataclasses
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from petseg.config.base import Precision
from petseg.config.model import ModelConfig
from petseg.config.train import TrainConfig
from petseg.errors import InputError
from petseg.models import best, checkpoint, precision
from petseg.models.checkpoint import TrainState
from petseg.pipelines.decode import Decoded
from petseg.storage import checks
from petseg.training import run_folder
from petseg.training.rank_data import RankData
from petseg.training.recipes import RECIPES
from petseg.training.trackers import Logs, sample_sheet
from petseg.training.trainer import Trainer, validate

SHEET_ROWS = 8
"""Number of validation pairs on the sheet of samples that is logged after each epoch."""

NOTICE_STEPS = 50
"""Steps between two checks for a preemption notice. All workers wait for one another to agree on the answer."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """Everything that a worker needs; the same for all workers."""

    config: TrainConfig
    """Settings with the recipe's values filled in by `recipes.resolve`."""
    model: ModelConfig
    run: str
    """Absolute location of the run's folder."""
    cpus: int
    """CPU cores per worker."""
    train: Decoded
    val: Decoded
    class_weights: Tensor | None = None
    """Weights of the classes in the loss, float32 (C,), or None."""
    init_from: dict[str, Tensor] | None = None
    """Weights to start a new run with, or None for random ones."""

    def epoch_steps(self, world_size: int) -> int:
        """Return the number of steps of an epoch: the batches of the rank that has the fewest pairs."""
        assert self.config.batch_size is not None
        return self.train.num_rows // world_size // (self.config.batch_size // world_size)


def train_loop_per_worker(loop_config: dict[str, WorkerSetup]) -> None:
    """Train on one worker until `epochs` are done. Ray Train calls this in every worker."""
    setup = loop_config["setup"]
    try:
        worker = _Worker(setup)
        with worker.logs or nullcontext():
            for epoch in range(worker.next_epoch, setup.config.epochs + 1):
                started = time.perf_counter()
                trained = worker.train_epoch(epoch)
                validated = worker.validate_epoch()
                worker.save_epoch({"epoch": epoch, **trained, **validated, "seconds": time.perf_counter() - started})
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the GPU has too little memory for --batch-size {setup.config.batch_size}: lower it, or split it with "
            f"--accumulate; --feed-budget-gb (now {setup.config.feed_budget_gb:g}) is kept on the GPU, too"
        ) from error


class _Worker:
    """One rank of a run: its network, its rows and the epochs so far."""

    def __init__(self, setup: WorkerSetup) -> None:
        context = ray.train.get_context()
        self._setup, self._run = setup, setup.run
        self._rank, self._world_size = context.get_world_rank(), context.get_world_size()
        device = ray.train.torch.get_device()
        assert isinstance(device, torch.device) and setup.config.batch_size is not None
        self._device = device
        torch.set_num_threads(setup.cpus)
        self._trainer, self._history, done = self._restore()
        self._batch_size = setup.config.batch_size // self._world_size
        budget_bytes = setup.config.feed_budget_gb * 1e9
        self._train = RankData(setup.train, self._rank, self._world_size, device, budget_bytes)
        budget_bytes -= self._train.resident_bytes
        self._val = RankData(setup.val, self._rank, self._world_size, device, budget_bytes)
        self._steps = setup.epoch_steps(self._world_size)
        # Continue at the same fraction of the epoch, because the number of ranks may have changed.
        self._skip = done[0] * self._steps // done[1]
        self.logs = Logs(setup.config, self._run) if self._rank == 0 else None

    @property
    def next_epoch(self) -> int:
        """Number of the epoch to train, or to finish, first."""
        return len(self._history) + 1

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train for an epoch, or for the rest of an interrupted one; return its loss and speed.

        Raises `InputError` if the loss is not a number.
        """
        config, trainer, skip = self._setup.config, self._trainer, self._skip
        started = time.perf_counter()
        fixed_batches = RECIPES[config.recipe].fixed_batches
        batches = self._train.train_batches(
            self._batch_size, config.seed, epoch, skip=skip, fixed_batches=fixed_batches
        )
        for step, (photos, masks) in enumerate(batches, skip):
            total = (epoch - 1) * self._steps + step
            if total % NOTICE_STEPS == NOTICE_STEPS - 1 and step > skip and _is_preempted():
                trainer.sync_batch_norm_stats()
                self._save_checkpoint(step)
            trainer.train_step(photos, masks, total, self._steps, seeds=(config.seed, self._rank, epoch, step))
        loss = trainer.mean_loss()
        if not math.isfinite(loss):
            raise InputError(f"the training loss of epoch {epoch} is {loss}; lower --learning-rate")
        images = (self._steps - skip) * self._batch_size * self._world_size
        self._skip = 0
        return {"train_loss": loss, "train_images_per_s": images / (time.perf_counter() - started)}

    def validate_epoch(self) -> dict[str, Any]:
        """Return the loss and the scores over all validation pairs of all ranks."""
        trainer = self._trainer
        trainer.sync_batch_norm_stats()
        batches = self._val.eval_batches(self._batch_size)
        return validate(trainer.eval_model, batches, self._setup.model, trainer.dtype, self._device)

    def save_epoch(self, metrics: dict[str, Any]) -> None:
        """Add an epoch to the history and, on rank 0, to the trackers, the checkpoints and `metrics.jsonl`."""
        if self._setup.config.keep_best_by != best.DEFAULT:
            metrics[best.KEY] = self._setup.config.keep_best_by
        self._history.append(metrics)
        if self.logs is not None:
            with _translate_write_errors(self._run):
                self.logs.epoch(metrics, self._sample_sheet())
            self._save_checkpoint()
            with _translate_write_errors(self._run):
                run_folder.write_metrics(self._run, self._history)
        ray.train.report({key: value for key, value in metrics.items() if isinstance(value, int | float)})

    def _restore(self) -> tuple[Trainer, checkpoint.History, tuple[int, int]]:
        """Return the trainer as the last checkpoint left it, or new; the history; and the position in the next epoch.

        The position is (steps done, steps per epoch) of the interrupted epoch, or (0, 1).
        """
        config, model = self._setup.config, self._setup.model
        last = checkpoint.last(self._run)
        state = checkpoint.load_train_state(last) if last else None
        trainer = Trainer(config, model, self._device, self._resolve_dtype(state), self._setup.class_weights)
        history, done = [], (0, 1)
        if last is not None and state is not None:
            trainer.restore(checkpoint.load_model(last), state)
            history, done = last.history, (last.step, max(1, state.epoch_steps))
            if self._rank == 0:  # a kill between the two writes of `save_epoch` left an older one behind
                run_folder.write_metrics(self._run, history)
        elif self._setup.init_from is not None:
            trainer.load_pretrained(self._setup.init_from)
        if config.compile == "on" or (config.compile == "auto" and config.use_gpu):
            trainer.model.compile()
        # Each rank keeps its own batch-norm statistics within an epoch: `sync_batch_norm_stats` averages them.
        settings = {"broadcast_buffers": False}
        wrapped = ray.train.torch.prepare_model(trainer.model, move_to_device=False, parallel_strategy_kwargs=settings)
        trainer.wrap_ddp(wrapped, self._world_size)
        return trainer, history, done

    def _resolve_dtype(self, state: TrainState | None) -> Precision:
        """Return the precision asked for, else that of the checkpoint, else what suits the hardware of rank 0."""
        if self._setup.config.precision != "auto":
            return self._setup.config.precision
        if state is not None:
            return "bf16" if state.dtype == "bf16" else "fp32"
        is_bf16 = torch.tensor(int(precision.resolve("auto", self._device) == "bf16"), device=self._device)
        if dist.is_initialized():
            dist.broadcast(is_bf16, 0)
        return "bf16" if is_bf16.item() else "fp32"

    def _save_checkpoint(self, step: int = 0) -> None:
        """Save a checkpoint on rank 0: at the end of an epoch, or after `step` steps of the next one."""
        if self._rank == 0:
            state = dataclasses.replace(self._trainer.state(), epoch_steps=self._steps if step else 0)
            with _translate_write_errors(self._run):
                checkpoint.save(self._run, self._trainer.eval_model, state, self._setup.model, self._history, step)

    def _sample_sheet(self) -> np.ndarray | None:
        """Return the first validation pairs with the network's predictions; None if this rank has no pairs."""
        if not self._val.num_rows:
            return None
        photos, masks = self._val.take_rows(np.arange(min(SHEET_ROWS, self._val.num_rows)))
        with torch.inference_mode():
            predicted = self._trainer.eval_model(photos).argmax(1).to(torch.uint8)
        photos_nhwc = photos.permute(0, 2, 3, 1).cpu().numpy()
        return sample_sheet(photos_nhwc, masks.cpu().numpy(), predicted.cpu().numpy(), self._setup.model.palette)


def _is_preempted() -> bool:
    """Return True if a node of this run is about to be taken away. All workers get the same answer, and wait for it."""
    return ray.train.get_preemption_info() is not None


def _translate_write_errors(run: str) -> AbstractContextManager[None]:
    return checks.translate_write_errors(run, "--storage", run_folder.RESUME)
