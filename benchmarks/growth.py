"""Measure what grows with the number of photos, pairs and workers, and what does not.

python benchmarks/growth.py --parts predict train workers

predict: one job on each of --counts photos, run once. The rate is that between the commits of the first and the last
shard; the time before is start-up. Peaks of memory are private memory (RssAnon) of the largest process of each kind,
sampled every half a second. The object store is the increase of the machine's shared memory, so other jobs would be
counted too. This part also measures the cost of a shard: the same photos in few shards and in many. The runs differ in
nothing else, so the difference of the total times (including listing and finishing), divided by the difference of the
numbers of shards and multiplied by the number of cores, is the cost of one shard. The time between the first and the
last commit would not do: of few shards, most are nearly done at the first commit.

train: one job on each of --pairs pairs, always with the same number of validation pairs, run once. An epoch is the time
between two writes of `metrics.jsonl`. The part of it that is neither in the steps nor in the validation (both as the
job reports them) is spent on samples, logs, the checkpoint and Ray's report. A worker holds its decoded pairs, so its
memory grows by 0.1 MB per pair at 160 × 160, up to --feed-budget-gb.

workers: the same run with one process and with two (DDP). Their losses differ, because each worker draws from its own
half of the pairs, and its batch norms see its half of a batch. A comparison without Ray shows that the computation is
the same: two processes with half a batch each, and one process that takes the halves as two parts (`--accumulate 2`),
in fp32 and in fp64, where rounding is half a billionth of that. The running statistics of batch norm are not compared:
the single process updates them twice per step, each of the two processes once. The cost of waiting for each other is
measured against the same two processes on the same cores without DDP.
"""

import argparse
import itertools
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import beside
import drawn
import numpy as np
import predict_memory
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from petseg.config.model import ModelConfig
from petseg.config.train import TrainConfig
from petseg.data import demo, labels
from petseg.training import recipes, run_folder
from petseg.training.trainer import Trainer

VAL_COUNT = 32
BATCH = 32
SIZE = (160, 160)
WORKER = "RayTrainWorker"
"""Part of the command line of a training process."""

Pairs = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"predict": predicting, "train": training, "workers": working}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="parts to run. Default: all")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 5000, 50_000], help="photos of each job")
    parser.add_argument("--shard-size", type=int, default=256, help="photos per shard, except in small shards")
    parser.add_argument("--small-shard", type=int, default=4, help="photos per small shard, for the cost of a shard")
    parser.add_argument("--shard-photos", type=int, default=1024, help="photos, for the cost of a shard")
    parser.add_argument("--pairs", type=int, nargs="+", default=[160, 320, 640], help="pairs; workers: the last")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each training run, at least 2")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="the same for all runs")
    parser.add_argument("--steps", type=int, default=5, help="training steps in the comparison of one process and two")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for the cost of a shard and of waiting")
    given = parser.parse_args()
    if given.epochs < 2:
        parser.error("--epochs: give at least 2; the epochs after the first are measured")
    if any(count % BATCH for count in given.pairs):
        parser.error(f"--pairs: give multiples of the batch size {BATCH}")
    beside.quiet_ray()
    print(beside.about())
    for part in given.parts:
        with tempfile.TemporaryDirectory(prefix="petseg-growth-") as name:
            parts[part](given, Path(name))


def predicting(given: argparse.Namespace, folder: Path) -> None:
    run, source = drawn.untrained(folder, SIZE), drawn.photos(folder, 64)
    rows = []
    for count in given.counts:
        photos, output = drawn.repeated(folder / str(count), source, count, (160, 120)), folder / f"out-{count}"
        started = time.time()
        peaks = predict_memory.watch(run, photos, output, ["--shard-size", str(given.shard_size)])
        whole_s = time.time() - started
        files = sorted(output.glob("part-*"), key=lambda file: file.stat().st_mtime)
        first_s, last_s = (files[number].stat().st_mtime - started for number in (0, -1))
        after = sum(pq.read_metadata(file).num_rows for file in files[1:])
        rate = f"{after / (last_s - first_s):.0f}" if after else ""
        rows.append([f"{count:,}", f"{whole_s:.0f}", f"{first_s:.1f}", rate, *(f"{mb:.0f}" for mb in peaks.values())])
    heads = ["photos", "whole, s", "to the first shard, s", "photos/s to the last"]
    heads += [f"{kind}, MB" for kind in predict_memory.KINDS]
    print(f"\nphotos of 160 × 120, network at 160 × 160, shards of {given.shard_size}, one run each\n")
    print(beside.table(heads, rows), flush=True)

    photos = drawn.repeated(folder / "shards", source, given.shard_photos, (160, 120))
    command = [sys.executable, str(beside.ROOT / "jobs" / "predict.py"), "--checkpoint", str(run)]
    command += ["--images", str(photos), "--output", str(folder / "{}-{}"), "--shard-size", "{}"]
    sizes = (given.shard_size, given.small_shard)
    measured: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(given.rounds):
        for size in sizes if number % 2 == 0 else reversed(sizes):
            started = time.perf_counter()
            beside.run([part.format(size, number) for part in command])
            measured[size].append(time.perf_counter() - started)
    few, many = (-(-given.shard_photos // size) for size in sizes)
    core_ms = 1000 * len(beside.cores()) / (many - few)
    costs = [(b - a) * core_ms for a, b in zip(*measured.values(), strict=True)]
    print(f"\n{given.shard_photos:,} photos, medians of {given.rounds} rounds (lowest to highest)\n")
    heads = [f"whole, {few} shards, s", f"whole, {many} shards, s", "core-ms for one shard more"]
    print(beside.table(heads, [[*(beside.cell(times, 1) for times in measured.values()), beside.cell(costs, 1)]]))


def training(given: argparse.Namespace, folder: Path) -> None:
    rows = []
    for count in given.pairs:
        epochs, written, peaks, whole_s = train(given, count, folder, f"pairs-{count}", [])
        later, gaps = epochs[1:], [after - before for before, after in itertools.pairwise(written)]
        rate = statistics.median(epoch["train_images_per_s"] for epoch in later)
        validation_s = statistics.median(e["seconds"] - count / e["train_images_per_s"] for e in later)
        kept_s = statistics.median(gap - epoch["seconds"] for gap, epoch in zip(gaps, later, strict=True))
        epoch_s = statistics.median(gaps)
        cells = [f"{epoch_s:.1f}", f"{rate:.1f}", f"{validation_s:.2f}", f"{kept_s:.2f}"]
        cells.append(f"{1 - count / rate / epoch_s:.0%}")
        rows.append([str(count), *cells, *(f"{mb:.0f}" for mb in peaks.values()), f"{whole_s:.0f}"])
    heads = ["pairs", "an epoch, s", "images/s in its steps", "validation, s", "logs, checkpoint, report, s"]
    heads += ["not steps", "worker, MB", "driver, MB", "object store, MB", "whole, s"]
    print(f"\n{VAL_COUNT} pairs to validate on, {given.precision}, one run each, medians of the later epochs\n")
    print(beside.table(heads, rows), flush=True)


def train(
    given: argparse.Namespace, count: int, folder: Path, name: str, flags: Sequence[str]
) -> tuple[list[dict[str, Any]], list[float], dict[str, float], float]:
    """Train with the keras recipe. Return its epochs, the time when each was written, peaks of memory, and seconds."""
    images, masks = link_pairs(folder, count + VAL_COUNT)
    command = [sys.executable, str(beside.ROOT / "jobs" / "train.py"), "--images", images, "--masks", masks]
    command += ["--recipe", "keras", "--val-count", str(VAL_COUNT), "--epochs", str(given.epochs), "--precision"]
    command += [given.precision, "--storage", str(folder / "runs"), "--name", name, *flags]
    metrics, written = folder / "runs" / name / "metrics.jsonl", set()
    peaks = dict.fromkeys(["worker", "driver", "object store"], 0.0)
    before = {pid for pid, _ in predict_memory.processes()}  # processes of other Rays on this machine
    shared_before = shutil.disk_usage(predict_memory.SHARED_MEMORY).used
    started = time.time()
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while job.poll() is None:
        if metrics.exists():
            written.add(metrics.stat().st_mtime)
        now = [("driver", predict_memory.megabytes(job.pid, "RssAnon"))]
        now.append(("object store", (shutil.disk_usage(predict_memory.SHARED_MEMORY).used - shared_before) / 1e6))
        for pid, text in predict_memory.processes():
            if WORKER in text and pid not in before:
                now.append(("worker", predict_memory.megabytes(pid, "RssAnon")))
        for kind, value in now:
            peaks[kind] = max(peaks[kind], value)
        time.sleep(0.2)
    whole_s = time.time() - started
    if job.returncode:
        assert job.stderr is not None
        sys.exit(job.stderr.read().decode())
    return run_folder.read_metrics(str(metrics.parent)), sorted(written), peaks, whole_s


def link_pairs(folder: Path, count: int) -> tuple[str, str]:
    """Return folders of `count` drawn photos and masks. Beyond 480 they are repeated as links."""
    drawn_count, target = min(480, count), folder / f"pairs-{count}"
    if not target.exists():
        demo.draw_set(str(folder / f"drawn-{drawn_count}"), drawn_count)
        for kind, ending in (("images", "jpg"), ("trimaps", "png")):
            (target / kind).mkdir(parents=True)
            for number in range(count):
                source = folder / f"drawn-{drawn_count}" / kind / f"pet_{number % drawn_count:04}.{ending}"
                (target / kind / f"{number:06}.{ending}").symlink_to(source)
    return str(target / "images"), str(target / "trimaps")


def working(given: argparse.Namespace, folder: Path) -> None:
    count, rows = given.pairs[-1], []
    for workers, cpus in ((1, 2), (2, 1), (1, 1)):
        flags = ["--num-workers", str(workers), "--cpus-per-worker", str(cpus)]
        epochs, *_ = train(given, count, folder, f"workers-{workers}-{cpus}", flags)
        rate = statistics.median(epoch["train_images_per_s"] for epoch in epochs[1:])
        rows.append([str(workers), str(cpus), f"{rate:.1f}", *(f"{epoch['train_loss']:.4f}" for epoch in epochs)])
    heads = ["workers", "cores each", "images/s", *(f"loss, epoch {number}" for number in range(1, given.epochs + 1))]
    print(f"\n{count} pairs, batches of {BATCH} over all workers, {given.precision}, one run each\n")
    print(beside.table(heads, rows), flush=True)

    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        start_processes(joined, (folder, given.steps, dtype), nprocs=2, start_method="spawn")
        two, one = torch.load(folder / f"{dtype}.pt"), learned(make(2, dtype), draw_batch(), given.steps)
        for steps in sorted({1, given.steps}):
            loss = max(abs(a / b - 1) for (a, _), (b, _) in zip(two[:steps], one[:steps], strict=True))
            ours, theirs = two[steps - 1][1], one[steps - 1][1]
            apart = (torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)).item()
            rows.append([str(dtype).removeprefix("torch."), str(steps), f"{loss:.1e}", f"{apart:.1e}"])
    torch.set_num_threads(threads)
    print(f"\na batch of {BATCH}: two processes with half of it each, and one that takes the halves as two parts\n")
    heads = ["", "steps", "largest relative difference of a loss", "relative difference of the weights (2-norm)"]
    print(beside.table(heads, rows), flush=True)

    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    start_processes(
        waiting, (folder, given.steps, given.rounds, barrier, results), nprocs=2, start_method="spawn", daemon=True
    )
    apart_ms, joined_ms = results.get()
    costs = [b - a for a, b in zip(apart_ms, joined_ms, strict=True)]
    rows = [[*(beside.cell(values) for values in (apart_ms, joined_ms, costs)), beside.ratio(costs, joined_ms)]]
    print(f"\na step of two processes, half a batch and a thread each: {given.rounds} rounds of {given.steps}\n")
    print(beside.table(["without DDP, ms", "with DDP, ms", "cost of DDP, ms", "÷ the step with DDP"], rows))


def make(accumulate: int, dtype: torch.dtype = torch.float32) -> Trainer:
    recipe = recipes.RECIPES["keras"]
    model = ModelConfig(
        num_classes=3,
        image_size=SIZE,
        class_names=("pet", "background", "border"),
        palette=labels.palette(3),
        label_map="",
        input_scale=recipe.input_scale,
        input_offset=recipe.input_offset,
    )
    config = recipes.resolve(TrainConfig(recipe="keras", batch_size=BATCH, accumulate=accumulate))
    trainer = Trainer(config, model, torch.device("cpu"), "fp32")
    trainer.model.to(dtype)
    return trainer


def draw_batch() -> Pairs:
    """Return a batch of drawn pairs, as the training feed returns them."""
    both = [demo.draw_pair(number) for number in range(BATCH)]
    photos = np.stack([np.asarray(photo.resize(SIZE)) for photo, _ in both])
    masks = np.stack([np.asarray(mask.resize(SIZE, Image.Resampling.NEAREST)) for _, mask in both])
    return torch.from_numpy(photos).permute(0, 3, 1, 2), torch.from_numpy(masks) - 1


def draw_half(rank: int) -> Pairs:
    photos, masks = (both.chunk(2)[rank] for both in draw_batch())
    return photos, masks


def learned(trainer: Trainer, batch: Pairs, steps: int) -> list[tuple[float, Tensor]]:
    """Return the loss and all weights after each step on the same batch."""
    found = []
    for number in range(steps):
        trainer.train_step(*batch, number, steps, (0, number))
        weights = [weight.detach().ravel() for weight in trainer.model.parameters()]
        found.append((trainer.mean_loss(), torch.cat(weights)))
    return found


def join(trainer: Trainer, rank: int, store: Path) -> None:
    """Join the process group and wrap the model in DDP, as `petseg.training` does."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    warnings.simplefilter("ignore", FutureWarning)  # `broadcast_buffers` has no successor yet
    trainer.wrap_ddp(DistributedDataParallel(trainer.model, broadcast_buffers=False), 2)


def joined(rank: int, folder: Path, steps: int, dtype: torch.dtype) -> None:
    """Train as one of two processes. Rank 0 writes the result to a file."""
    torch.set_num_threads(1)
    trainer = make(1, dtype)
    join(trainer, rank, folder / f"store-{dtype}")
    found = learned(trainer, draw_half(rank), steps)
    if rank == 0:
        torch.save(found, folder / f"{dtype}.pt")
    dist.destroy_process_group()


def waiting(rank: int, folder: Path, steps: int, rounds: int, barrier: Any, results: Any) -> None:
    """Time the steps of one of two processes. Rank 0 returns milliseconds per step, without DDP and with it."""
    torch.set_num_threads(1)
    batch, taken = draw_half(rank), ([], [])
    for number in range(rounds):
        for is_joined, times in enumerate(taken):
            trainer = make(1)
            if is_joined:
                join(trainer, rank, folder / f"round-{number}")
            trainer.train_step(*batch, 0, steps, (0, 0))  # DDP changes the order of its buckets after the first step
            barrier.wait()
            started = time.perf_counter()
            for step in range(steps):
                trainer.train_step(*batch, step, steps, (0, step))
            times.append(1000 * (time.perf_counter() - started) / steps)
            barrier.wait()
            if is_joined:
                dist.destroy_process_group()
    if rank == 0:
        results.put(taken)


if __name__ == "__main__":
    main()
