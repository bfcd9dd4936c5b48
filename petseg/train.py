"""The training loop of one worker, top to bottom, and the call that starts the workers.

The only file with `ray.train`. Checkpoints go through `checkpoint.save`, not through `ray.train.report`: a worker that
Ray restarts, a driver that is started again with --resume, and a job that never saw Ray find the same folder.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from petseg import checkpoint, feed, metrics, precision, storage
from petseg.config import InputError, ModelConfig, Precision, TrainConfig
from petseg.labels import IGNORE_ID
from petseg.unet import BN_MOMENTUM, UNet, init_seeded

WEIGHT_DECAY = 0.01
"""PyTorch's default for AdamW."""

WARMUP_SHARE = 0.1
"""Share of all steps in which the learning rate rises."""

_RAY_FOLDER = ".ray"  # Ray Train wants a folder for its own notes; nothing of ours is in it


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """All that a worker is told; the same for every one."""

    config: TrainConfig
    model: ModelConfig
    run: str
    """The run's folder, absolute."""
    cpus: int
    train: feed.Decoded
    val: feed.Decoded


def fit(setup: WorkerSetup) -> None:
    """Train with Ray Train until `epochs` are done; a resumed run goes on from the last checkpoint in `run`.

    Raises `InputError` where the loss is no longer a number or a checkpoint cannot be loaded, and
    `ray.train.WorkerGroupError`, with the worker's traceback, where one failed in another way.
    """
    config = setup.config
    resources = {"CPU": setup.cpus} | ({"GPU": 1} if config.use_gpu else {})
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"setup": setup},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(name=_RAY_FOLDER, storage_path=setup.run),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "_base_exc", failure)  # Ray wraps what a worker raised, with its traceback
            if isinstance(cause, InputError):
                raise cause from None
        raise
    finally:
        storage.remove_folder(storage.join(setup.run, _RAY_FOLDER))


def _train_worker(loop_config: dict[str, WorkerSetup]) -> None:
    setup = loop_config["setup"]
    config, model_config = setup.config, setup.model
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    torch.set_num_threads(setup.cpus)
    arithmetic = precision.resolve(config.precision, device)
    scaling = {"input_scale": model_config.input_scale, "input_offset": model_config.input_offset}
    model = init_seeded(model_config.num_classes, config.seed, **scaling)
    history: checkpoint.History = []

    resumed_from = checkpoint.last(setup.run)
    if resumed_from is not None:
        model = checkpoint.load_model(resumed_from)
        history = resumed_from.history
        if rank == 0:  # a kill between the two writes at an epoch's end left this one behind
            write_metrics(setup.run, history)
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - missing in the stubs
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    if resumed_from is not None:
        checkpoint.load_train_state(resumed_from, optimizer)
    # Each rank keeps its own running statistics; they are averaged before anyone uses them, instead of every step.
    parallel = ray.train.torch.prepare_model(
        model, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
    )

    batch_size = config.batch_size // world_size
    train_share = feed.Share(setup.train, rank, world_size, device, config.feed_budget_gb * 1e9)
    left_bytes = config.feed_budget_gb * 1e9 - train_share.resident_bytes
    val_share = feed.Share(setup.val, rank, world_size, device, left_bytes)
    steps = train_share.smallest // batch_size
    for epoch in range(len(history) + 1, config.epochs + 1):
        started = time.perf_counter()
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the loss, of the pixels that count
        model.train()
        for number, (photos, masks) in enumerate(train_share.train_batches(batch_size, config.seed, epoch)):
            done = (epoch - 1) * steps + number
            _set_learning_rate(optimizer, config.learning_rate * schedule(done, config.epochs * steps))
            _set_batch_norm_momentum(model, done)
            with precision.autocast(arithmetic, device):
                logits = parallel(photos)
            loss_sum, pixels = cross_entropy_sum(logits, masks), (masks != IGNORE_ID).sum()
            sums += torch.stack([loss_sum.detach(), pixels])
            # DDP takes the mean of the ranks' gradients; what is wanted is the mean over the pixels of all of them.
            _all_reduce(pixels)
            optimizer.zero_grad()
            (loss_sum * world_size / pixels.clamp(min=1)).backward()
            optimizer.step()
        _all_reduce(sums)
        train_loss = (sums[0] / sums[1].clamp(min=1)).item()
        trained_s = time.perf_counter() - started
        if not math.isfinite(train_loss):
            raise InputError(f"the training loss of epoch {epoch} is {train_loss}; lower --learning-rate")

        _average_batch_norm(model, world_size)
        scores = validate(model, val_share.eval_batches(batch_size), model_config, arithmetic, device)
        history.append(
            {"epoch": epoch, "train_loss": train_loss}
            | scores
            | {
                "train_images_per_s": steps * config.batch_size / trained_s,
                "seconds": time.perf_counter() - started,
            }
        )
        if rank == 0:
            checkpoint.save(setup.run, model, optimizer, model_config, history)
            write_metrics(setup.run, history)
        ray.train.report({key: value for key, value in history[-1].items() if isinstance(value, int | float)})


def validate(
    model: UNet,
    batches: Iterator[feed.Batch],
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
            loss_sum += cross_entropy_sum(logits, masks)
            confusion += metrics.confusion_matrix(logits.argmax(1), masks, config.num_classes)
    _all_reduce(confusion)
    _all_reduce(loss_sum)
    return {
        "val_loss": _defined((loss_sum / confusion.sum()).item()),
        "val_pixel_accuracy": _defined(metrics.pixel_accuracy(confusion)),
        "val_miou": _defined(metrics.mean_iou(confusion)),
        "val_iou": dict(zip(config.class_names, map(_defined, metrics.iou(confusion)), strict=True)),
    }


def cross_entropy_sum(logits_nchw: Tensor, target_nhw: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the pixels that are not ignored, in fp32; target is uint8 (N, H, W)."""
    return F.cross_entropy(logits_nchw.float(), target_nhw.long(), ignore_index=IGNORE_ID, reduction="sum")


def schedule(step: int, total_steps: int) -> float:
    """The learning rate of a step (from 0) as a share of the highest: a linear rise, then a cosine down to zero.

    The cosine is that of SGDR (Loshchilov and Hutter, 2017) without restarts.
    """
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def write_metrics(run: str, history: checkpoint.History) -> None:
    """Write `metrics.jsonl`, one object per epoch, whole: an object store cannot append."""
    lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
    storage.write(storage.join(run, "metrics.jsonl"), lines.encode())


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _set_batch_norm_momentum(model: UNet, step: int) -> None:
    """Let the running statistics be a plain mean of the first hundred steps, and the network's moving mean after.

    A moving mean that keeps 0.99 still holds a third of its arbitrary start after a hundred steps, which are several
    epochs of a small set. The training itself does not see these statistics; validation and prediction do.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = max(BN_MOMENTUM, 1 / (step + 1))


def _average_batch_norm(model: UNet, world_size: int) -> None:
    """Replace each rank's running statistics by the mean over the ranks."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for statistic in (module.running_mean, module.running_var):
                assert statistic is not None
                _all_reduce(statistic)
                statistic /= world_size


def _all_reduce(tensor: Tensor) -> None:
    """Sum over the ranks, in place; on one rank alone it is the sum already."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN
