"""The training loop of one worker, top to bottom, and the call that starts the workers.

This is the only file with `ray.train`. Checkpoints go through `checkpoint.save`, not through `ray.train.report`.
A restarted worker, a driver restarted with --resume, and a job that does not use Ray all find the same folder.
"""

import dataclasses
import math
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.exceptions
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from petseg.cluster import ray_compat, resources
from petseg.config.base import Precision
from petseg.config.model import ModelConfig
from petseg.config.train import TrainConfig
from petseg.errors import InputError, JobError, UnavailableError
from petseg.models import checkpoint, precision
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


def fit(setup: WorkerSetup, log: Callable[[str], None] = print) -> None:
    """Train with Ray Train until `epochs` are done. A resumed run continues from the last checkpoint in `run`.

    If a worker or its node dies, all workers are restarted from there, up to `max_failures` times in a row without a
    new checkpoint between them. If a node was taken away after a notice, they are restarted as often as that happens.
    `log` receives a line about each restart.

    Raises `InputError` if the loss is no longer a number or a checkpoint cannot be loaded, `JobError` if a checkpoint
    cannot be written or workers keep dying, and `ray.train.WorkerGroupError`, with the worker's traceback, if a worker
    keeps failing in another way.
    """
    failures, reached_before = 0, None
    while True:
        try:
            return _fit_once(setup)
        except ray.train.PreemptionError:
            event = "a node was taken away"
        except ray.train.WorkerGroupError as error:
            event, is_death = _explain(error)
            reached = _reached(setup.run)
            failures, reached_before = (failures + 1 if reached == reached_before else 1), reached
            if failures > setup.config.max_failures:
                if not is_death:
                    raise
                raise JobError(f"{event}, {failures} times since the last checkpoint; --resume continues") from error
        log(f"{event}; continuing after epoch {_reached(setup.run)[0]}")
        require_workers(setup.config, setup.cpus)
        # Decoded pairs that were lost with a node are decoded again: now, because workers may take every core.
        blocks = [*setup.train.blocks, *setup.val.blocks]
        ray.wait(blocks, num_returns=len(blocks), fetch_local=False)


def require_workers(config: TrainConfig, cpus: int) -> None:
    """Wait, as `resources.require` does, until the cluster can hold the minimum number of workers."""
    flags, limit_s = "--num-workers", config.wait_min * 60
    if config.use_gpu:
        resources.require({"GPU": 1, "CPU": cpus}, config.min_workers, f"{flags} with --use-gpu", limit_s)
    else:
        resources.require({"CPU": cpus}, config.min_workers, flags, limit_s)


def _explain(error: ray.train.WorkerGroupError) -> tuple[str, bool]:
    """Return (description of the failure, True if a worker died).

    Raises the cause itself if restarting the workers cannot help.
    """
    causes = [ray_compat.worker_failure_cause(failure) for failure in error.worker_failures.values()]
    for cause in causes:
        if isinstance(cause, InputError | JobError):
            raise cause from None
        if isinstance(cause, UnavailableError):
            raise JobError(f"{cause}; --resume continues") from None
    deaths = [cause for cause in causes if isinstance(cause, ray.exceptions.RayError)]
    # The others lose their connection to a worker that has died, and may be the first to report it.
    first = next(iter([*deaths, *causes]), error)
    reason = (str(first).strip() or repr(first)).splitlines()[0]
    return f"a worker has died ({reason})", bool(deaths)


def _reached(run: str) -> tuple[int, int]:
    """Return (epochs, steps of the next epoch) of the last checkpoint."""
    last = checkpoint.last(run)
    return (last.epoch, last.step) if last else (0, 0)


def _fit_once(setup: WorkerSetup) -> None:
    config = setup.config
    per_worker = {"CPU": setup.cpus} | ({"GPU": 1} if config.use_gpu else {})
    # Ray Train requires a folder for its own notes. It holds nothing of ours, and workers never read it, so it need not
    # be reachable from all machines.
    with tempfile.TemporaryDirectory(prefix="petseg-ray-", ignore_cleanup_errors=True) as notes:
        trainer = ray.train.torch.TorchTrainer(
            train_loop_per_worker,
            train_loop_config={"setup": setup},
            scaling_config=ray.train.ScalingConfig(
                num_workers=(config.min_workers, config.max_workers) if config.elastic else config.min_workers,
                use_gpu=config.use_gpu,
                resources_per_worker=per_worker,
            ),
            run_config=ray.train.RunConfig(
                name="notes",
                storage_path=notes,
                worker_runtime_env={"env_vars": resources.KEEP_MEMORY},
                # `fit` restarts the workers itself
                failure_config=ray.train.FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit()
        except SystemExit as error:  # Ray's own response to Ctrl-C, once it has ended the workers
            raise KeyboardInterrupt from error
        finally:
            signal.signal(signal.SIGINT, on_ctrl_c)  # Ray leaves a handler of its own


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
        self._steps = self._train.smallest // self._batch_size
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
