"""The training loop of one worker, top to bottom, and the call that starts the workers.

The only file with `ray.train`. Checkpoints go through `checkpoint.save`, not through `ray.train.report`: a worker that
is started again, a driver that is started again with --resume, and a job that never saw Ray find the same folder.
"""

import contextlib
import dataclasses
import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.exceptions
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from petseg.cluster import connect
from petseg.config.base import ModelConfig, Precision
from petseg.config.train import TrainConfig
from petseg.errors import InputError, JobError, UnavailableError
from petseg.models import checkpoint, precision
from petseg.models.checkpoint import TrainState
from petseg.models.network import Network
from petseg.pipelines.decode import Decoded
from petseg.training import run_folder
from petseg.training.rank_data import Share
from petseg.training.recipes import RECIPES
from petseg.training.trackers import Logs, sample_sheet
from petseg.training.trainer import Learner, validate

SHEET_ROWS = 8
"""Validation pairs on the sheet of samples that is logged after each epoch."""

NOTICE_STEPS = 50
"""Steps between two looks for a notice of preemption: all workers wait for one another to agree on it."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """All that a worker is told; the same for every one."""

    config: TrainConfig
    """With the recipe's settings in it, as `recipes.resolve` gives it."""
    model: ModelConfig
    run: str
    """The run's folder, absolute."""
    cpus: int
    train: Decoded
    val: Decoded
    class_weights: Tensor | None = None
    """float32 (C,)."""
    init_from: dict[str, Tensor] | None = None
    """Weights to begin a new run with."""


def fit(setup: WorkerSetup, say: Callable[[str], None] = print) -> None:
    """Train with Ray Train until `epochs` are done; a resumed run goes on from the last checkpoint in `run`.

    Where a worker or its node dies, all are started again from there, up to `max_failures` times in a row without a
    new checkpoint between them; where a node has been taken away after a notice, as often as that happens. `say` is
    told of it.

    Raises `InputError` where the loss is no longer a number or a checkpoint cannot be loaded, `JobError` where a
    checkpoint cannot be written or workers keep dying, and `ray.train.WorkerGroupError`, with the worker's traceback,
    where one keeps failing in another way.
    """
    failures, seen = 0, None
    while True:
        try:
            return _fit_once(setup)
        except ray.train.PreemptionError:
            what = "a node has been taken away"
        except ray.train.WorkerGroupError as error:
            causes = [_cause(failure) for failure in error.worker_failures.values()]
            for cause in causes:
                if isinstance(cause, InputError | JobError):
                    raise cause from None
                if isinstance(cause, UnavailableError):
                    raise JobError(f"{cause}; --resume goes on") from None
            deaths = [cause for cause in causes if isinstance(cause, ray.exceptions.RayError)]
            # The others lose their connection to one that has died, and may be the first to say so.
            what = f"a worker has died ({_first_line((deaths or causes)[0])})"
            reached = _reached(setup.run)
            failures, seen = (failures + 1 if reached == seen else 1), reached
            if failures > setup.config.max_failures:
                if not deaths:
                    raise
                raise JobError(f"{what}, {failures} times since the last checkpoint; --resume goes on") from error
        say(f"{what}; going on after epoch {_reached(setup.run)[0]}")
        require_workers(setup.config, setup.cpus)
        # What a lost node held of the decoded pairs is decoded again: now, as workers may take every core.
        blocks = [*setup.train.blocks, *setup.val.blocks]
        ray.wait(blocks, num_returns=len(blocks), fetch_local=False)


def require_workers(config: TrainConfig, cpus: int) -> None:
    """See that the cluster has what the fewest workers need, as `cluster.require` does."""
    flags, limit_s = "--num-workers", config.wait_min * 60
    if config.use_gpu:
        connect.require({"GPU": 1, "CPU": cpus}, config.min_workers, f"{flags} with --use-gpu", limit_s)
    else:
        connect.require({"CPU": cpus}, config.min_workers, flags, limit_s)


def _reached(run: str) -> tuple[int, int]:
    """Epochs, and steps of the next one, that the last checkpoint has seen."""
    last = checkpoint.last(run)
    return (last.epoch, last.step) if last else (0, 0)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _cause(failure: Exception) -> Exception:
    """What a worker raised, or how it died: Ray wraps both."""
    for wrapped in ("_base_exc", "health_check_failure"):
        failure = getattr(failure, wrapped, failure)
    return failure


def _fit_once(setup: WorkerSetup) -> None:
    config = setup.config
    resources = {"CPU": setup.cpus} | ({"GPU": 1} if config.use_gpu else {})
    # Ray Train wants a place for notes of its own. Nothing of ours is in it, and workers never look there, so it need
    # not be one that all machines reach.
    with tempfile.TemporaryDirectory(prefix="petseg-ray-", ignore_cleanup_errors=True) as notes:
        trainer = ray.train.torch.TorchTrainer(
            _train_worker,
            train_loop_config={"setup": setup},
            scaling_config=ray.train.ScalingConfig(
                num_workers=(config.min_workers, config.max_workers) if config.elastic else config.min_workers,
                use_gpu=config.use_gpu,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name="notes",
                storage_path=notes,
                worker_runtime_env={"env_vars": connect.KEEP_MEMORY},
                # `fit` starts again
                failure_config=ray.train.FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit()
        except SystemExit as error:  # Ray's own answer to Ctrl-C, once it has ended the workers
            raise KeyboardInterrupt from error
        finally:
            signal.signal(signal.SIGINT, on_ctrl_c)  # Ray leaves one of its own


def _train_worker(loop_config: dict[str, WorkerSetup]) -> None:
    setup = loop_config["setup"]
    try:
        _train(setup)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the GPU has too little memory for --batch-size {setup.config.batch_size}: lower it, or cut it with "
            f"--accumulate; --feed-budget-gb (now {setup.config.feed_budget_gb:g}) is kept there, too"
        ) from error


def _train(setup: WorkerSetup) -> None:
    config, run = setup.config, setup.run
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device) and config.batch_size is not None
    torch.set_num_threads(setup.cpus)
    learner, history, (from_step, of_steps) = _begin(setup, device, rank, world_size)

    batch_size = config.batch_size // world_size
    train_share = Share(setup.train, rank, world_size, device, config.feed_budget_gb * 1e9)
    left_bytes = config.feed_budget_gb * 1e9 - train_share.resident_bytes
    val_share = Share(setup.val, rank, world_size, device, left_bytes)
    steps = train_share.smallest // batch_size
    keep_batches = RECIPES[config.recipe].keep_batches
    skip = from_step * steps // of_steps  # as far into the epoch, if the ranks are others now
    logs = Logs(config, run) if rank == 0 else None
    with logs or contextlib.nullcontext():
        for epoch in range(len(history) + 1, config.epochs + 1):
            started = time.perf_counter()
            batches = train_share.train_batches(batch_size, config.seed, epoch, skip=skip, keep_batches=keep_batches)
            for number, (photos, masks) in enumerate(batches, skip):
                done = (epoch - 1) * steps + number
                if done % NOTICE_STEPS == NOTICE_STEPS - 1 and number > skip and _preempted():
                    learner.agree()
                    if rank == 0:
                        _save(setup, learner, history, number, steps)
                learner.step(photos, masks, done, steps, draws=(config.seed, rank, epoch, number))
            train_loss = learner.mean_loss()
            rate = (steps - skip) * batch_size * world_size / (time.perf_counter() - started)
            skip = 0
            if not math.isfinite(train_loss):
                raise InputError(f"the training loss of epoch {epoch} is {train_loss}; lower --learning-rate")

            learner.agree()
            scores = validate(
                learner.judged, val_share.eval_batches(batch_size), setup.model, learner.arithmetic, device
            )
            of_epoch: dict[str, Any] = {"epoch": epoch, "train_loss": train_loss, **scores}
            history.append(of_epoch | {"train_images_per_s": rate, "seconds": time.perf_counter() - started})
            if logs is not None:
                with _writing(run):
                    logs.epoch(history[-1], _sheet(learner.judged, val_share, setup.model))
                _save(setup, learner, history)
                with _writing(run):
                    run_folder.write_metrics(run, history)
            ray.train.report({key: value for key, value in history[-1].items() if isinstance(value, int | float)})


def _begin(
    setup: WorkerSetup, device: torch.device, rank: int, world_size: int
) -> tuple[Learner, checkpoint.History, tuple[int, int]]:
    """The network as the last checkpoint left it, or new, joined with those of the other workers; the epochs so far;
    and how many steps, of how many, the next one has had.
    """
    config = setup.config
    resumed_from = checkpoint.last(setup.run)
    state = checkpoint.load_train_state(resumed_from) if resumed_from else None
    learner = Learner(config, setup.model, device, _arithmetic(config, state, device), setup.class_weights)
    history, done = [], (0, 1)
    if resumed_from is not None and state is not None:
        learner.restore(checkpoint.load_model(resumed_from), state)
        history, done = resumed_from.history, (resumed_from.step, max(1, state.epoch_steps))
        if rank == 0:  # a kill between the two writes at an epoch's end left this one behind
            run_folder.write_metrics(setup.run, history)
    elif setup.init_from is not None:
        learner.begin_from(setup.init_from)
    if config.compile == "on" or (config.compile == "auto" and config.use_gpu):
        learner.model.compile()
    # Statistics of batch norms are each rank's own within an epoch: `agree` averages them.
    settings = {"broadcast_buffers": False}
    joined = ray.train.torch.prepare_model(learner.model, move_to_device=False, parallel_strategy_kwargs=settings)
    learner.join(joined, world_size)
    return learner, history, done


def _arithmetic(config: TrainConfig, state: TrainState | None, device: torch.device) -> Precision:
    """Return the precision that was asked for, or that the run began with, or that suits the hardware of rank 0."""
    if config.precision != "auto":
        return config.precision
    if state is not None:
        return "bf16" if state.arithmetic == "bf16" else "fp32"
    is_bf16 = torch.tensor(int(precision.resolve("auto", device) == "bf16"), device=device)
    if dist.is_initialized():
        dist.broadcast(is_bf16, 0)
    return "bf16" if is_bf16.item() else "fp32"


def _preempted() -> bool:
    """Whether a node of this run is about to be taken away; equal on all workers, which wait for one another."""
    return ray.train.get_preemption_info() is not None


def _save(
    setup: WorkerSetup, learner: Learner, history: checkpoint.History, step: int = 0, epoch_steps: int = 0
) -> None:
    state = dataclasses.replace(learner.state(), epoch_steps=epoch_steps)
    with _writing(setup.run):
        checkpoint.save(setup.run, learner.judged, state, setup.model, history, step)


@contextlib.contextmanager
def _writing(run: str) -> Iterator[None]:
    """What storage refuses ends the run with one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise JobError(
            f"{run} cannot be written: {reason}; the last checkpoint in it is whole. Make room, and go on with --resume"
        ) from error


def _sheet(model: Network, val_share: Share, config: ModelConfig) -> np.ndarray | None:
    """The first validation pairs and what the network says of them; None where this rank has none."""
    if not val_share.num_rows:
        return None
    photos, masks = val_share.some(np.arange(min(SHEET_ROWS, val_share.num_rows)))
    with torch.inference_mode():
        predicted = model(photos).argmax(1)
    hwc = photos.permute(0, 2, 3, 1)
    return sample_sheet(hwc.cpu().numpy(), masks.cpu().numpy(), predicted.to(torch.uint8).cpu().numpy(), config.palette)
