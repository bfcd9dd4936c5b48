"""Start the workers of a training run with Ray Train, and restart them after a failure. Note a changed schedule."""

import signal
import tempfile
from collections.abc import Callable
from typing import Literal

import ray.exceptions
import ray.train
import ray.train.torch

from petseg.cluster import ray_compat, resources
from petseg.cluster.memory import MAX_KILLS, usage
from petseg.config.train import TrainConfig
from petseg.errors import InputError, JobError, UnavailableError
from petseg.models import checkpoint
from petseg.training import epoch_printer, optim
from petseg.training.loop import WorkerSetup, train_loop_per_worker
from petseg.training.recipes import RECIPES

_IF_OUT_OF_MEMORY = "lower --batch-size or --num-workers, or use machines with more memory"

_FitError = ray.train.WorkerGroupError | ray.train.ControllerError | ray.exceptions.OutOfMemoryError


class _EpochCallback(ray.train.UserCallback):
    """Tell the driver that an epoch is finished. Ray Train calls this in a process on the driver's machine."""

    def __init__(self, pipe: str) -> None:
        self._pipe = pipe

    def after_report(self, *_: object, **__: object) -> None:
        epoch_printer.notify(self._pipe)


def fit(
    setup: WorkerSetup,
    log: Callable[[str], None] = print,
    pipe: str = "",
    on_wait: Callable[[int], None] = lambda missing: None,
) -> None:
    """Train with Ray Train until `epochs` are done. A resumed run continues from the last checkpoint in `run`.

    If a worker or its node dies, all workers are restarted from there, up to `max_failures` times in a row without a
    new checkpoint between them, and where memory is full, not after the third time. If a node was taken away after a
    notice, they are restarted as often as that happens. `log` receives a line about each restart. `pipe` is that of an
    `EpochPrinter`, or "". `on_wait` is that of `resources.require`.

    Raises `InputError` if the loss is no longer a number or a checkpoint cannot be loaded, `JobError` if a checkpoint
    cannot be written, workers keep dying or memory stays full, and `ray.train.WorkerGroupError`, with the worker's
    traceback, if a worker keeps failing in another way.
    """
    failures, before = 0, None
    while True:
        try:
            return _fit_once(setup, pipe)
        except ray.train.PreemptionError:
            event = "a node was taken away"
        except (ray.train.WorkerGroupError, ray.train.ControllerError, ray.exceptions.OutOfMemoryError) as error:
            event, kind = _explain(error)
            reached = _reached(setup.run)
            if kind == "error" and before == (reached, event):  # the same at the same step: a third try is useless
                raise
            failures = failures + 1 if before and before[0] == reached else 1
            before = reached, event
            limit = setup.config.max_failures
            if failures > (min(limit, MAX_KILLS - 1) if kind == "memory" else limit):
                if kind == "error":
                    raise
                remedy = f"{_IF_OUT_OF_MEMORY}: " if kind == "memory" else ""
                text = f"{event}, {failures} times since the last checkpoint; {remedy}--resume continues"
                raise JobError(text) from error
        log(f"{event}; continuing after epoch {_reached(setup.run)[0]}")
        require_workers(setup.config, setup.cpus, on_wait)
        # Decoded pairs that were lost with a node are decoded again: now, because workers may take every core.
        blocks = [*setup.train.blocks, *setup.val.blocks]
        ray.wait(blocks, num_returns=len(blocks), fetch_local=False)


def require_workers(config: TrainConfig, cpus: int, on_wait: Callable[[int], None] = lambda missing: None) -> None:
    """Wait, as `resources.require` does, until the cluster can hold the minimum number of workers."""
    flags, limit_s = "--num-workers", config.wait_min * 60
    if config.use_gpu:
        resources.require({"GPU": 1, "CPU": cpus}, config.min_workers, f"{flags} with --use-gpu", limit_s, on_wait)
    else:
        resources.require({"CPU": cpus}, config.min_workers, flags, limit_s, on_wait)


def schedule_note(setup: WorkerSetup, epochs_before: int) -> str:
    """Return a note if another number of epochs changes the learning rate at which the run continues, else "".

    `epochs_before` is the number that the run had until now. If the number of workers is elastic, the note assumes the
    maximum.
    """
    config, last = setup.config, checkpoint.last(setup.run)
    if last is None or last.epoch >= config.epochs:
        return ""
    recipe, epoch_steps = RECIPES[config.recipe], setup.epoch_steps(config.max_workers)
    step = last.epoch * epoch_steps + last.step
    totals = (epochs_before * epoch_steps, config.epochs * epoch_steps)
    before, now = (optim.schedule(recipe, min(step, total), total) for total in totals)
    if before == now:
        return ""
    return (
        f"note: --epochs {config.epochs} instead of {epochs_before}: the learning rate continues on the schedule of "
        f"{config.epochs} epochs, at {now:.2g} instead of {before:.2g} of --learning-rate"
    )


def _explain(error: _FitError) -> tuple[str, Literal["error", "death", "memory"]]:
    """Return a description of the failure and its kind: an exception of a worker, the death of a worker, or a process
    that Ray ended because the memory was full.

    Raises the cause itself if restarting the workers cannot help.
    """
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, InputError | JobError):
            raise cause from None
        if isinstance(cause, UnavailableError):
            raise JobError(f"{cause}; --resume continues") from None
    deaths = [cause for cause in causes if isinstance(cause, ray.exceptions.RayError)]
    kills = [kill for cause in deaths if (kill := ray_compat.parse_memory_kill(str(cause)))]
    if kills:
        return f"out of memory: Ray ended a worker ({usage(kills[0])})", "memory"
    if not isinstance(error, ray.train.WorkerGroupError):
        raise error
    # The others lose their connection to a worker that has died, and may be the first to report it.
    first = next(iter([*deaths, *causes]), error)
    reason = (str(first).strip() or repr(first)).splitlines()[0]
    return f"a worker has died ({reason})", "death" if deaths else "error"


def _causes(error: _FitError) -> list[Exception]:
    """Return the exceptions of the workers, or of the process that starts and supervises them."""
    match error:
        case ray.train.WorkerGroupError():
            return [ray_compat.worker_failure_cause(failure) for failure in error.worker_failures.values()]
        case ray.train.ControllerError():
            return [error.controller_failure]
    return [error]


def _reached(run: str) -> tuple[int, int]:
    """Return (epochs, steps of the next epoch) of the last checkpoint."""
    last = checkpoint.last(run)
    return (last.epoch, last.step) if last else (0, 0)


def _fit_once(setup: WorkerSetup, pipe: str) -> None:
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
                callbacks=[_EpochCallback(pipe)] if pipe else None,
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
