"""What grows with the number of photos, pairs and workers, and what does not.

python benchmarks/growth.py --parts predict train workers

predict: a job on each of --counts photos, once each. Its rate is that between the commit of its first shard and of its
last; before is start-up. Peaks of memory are private (RssAnon), of the largest process of each kind, seen every half a
second; the object store is what the machine's shared memory has more of than before, so other jobs would count there.
And what a shard costs: the same photos in a few shards and in many. They differ in nothing else, so the difference of
the whole times, finding what there is and finishing included, over that of the shards is the cost of one, times the
cores. Between the first commit and the last would not do: of few shards, most are nearly done by the first commit.

train: a job on each of --pairs pairs, always with as many to validate on, once each. An epoch is the time from one
writing of `metrics.jsonl` to the next. What of it is in neither the steps nor the validation (both as the job counts
them) goes to samples, logs, the checkpoint and Ray's report. A worker holds its decoded pairs, so its memory grows, by
0.1 MB a pair at 160 × 160, up to --feed-budget-gb.

workers: the same run by one process and by two (DDP). Their losses are not the same numbers, as each worker draws from
its own half of the pairs and its batch norms see its half of a batch. That the arithmetic is the same is shown below
Ray: two processes with half of a batch each, beside one that takes the halves as two parts (`--accumulate 2`), in fp32
and, where rounding is half a billionth of that, in fp64. Batch norm's running statistics are not compared: the one
process moves them twice a step, of the two each does once. Waiting for one another is timed beside the same two
processes on the same cores that do not.
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

from petseg.config.base import ModelConfig
from petseg.config.train import TrainConfig
from petseg.data import demo, labels
from petseg.training import recipes, run_folder
from petseg.training.trainer import Learner

VAL_COUNT = 32
BATCH = 32
SIZE = (160, 160)
WORKER = "RayTrainWorker"
"""What the command line of a training process has in it."""

Pairs = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"predict": predicting, "train": training, "workers": working}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="default: all")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 5000, 50_000], help="photos to predict")
    parser.add_argument("--shard-size", type=int, default=256, help="of the jobs on --counts, and the larger one below")
    parser.add_argument("--small-shard", type=int, default=4, help="the size whose shards are many")
    parser.add_argument("--shard-photos", type=int, default=1024, help="photos in shards of both sizes")
    parser.add_argument("--pairs", type=int, nargs="+", default=[160, 320, 640], help="to train on; workers: the last")
    parser.add_argument("--epochs", type=int, default=3, help="of each training run, at least 2")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="runs could choose differently")
    parser.add_argument("--steps", type=int, default=5, help="of the comparison of one process and two")
    parser.add_argument("--rounds", type=int, default=3, help="of what a shard and what waiting costs")
    given = parser.parse_args()
    if given.epochs < 2:
        parser.error("--epochs: later ones than the first are measured, so give at least 2")
    if any(count % BATCH for count in given.pairs):
        parser.error(f"--pairs: give multiples of {BATCH}, a batch")
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
    """A run of the keras recipe: its epochs, when each was written, peaks of memory, seconds."""
    images, masks = link_pairs(folder, count + VAL_COUNT)
    command = [sys.executable, str(beside.ROOT / "jobs" / "train.py"), "--images", images, "--masks", masks]
    command += ["--recipe", "keras", "--val-count", str(VAL_COUNT), "--epochs", str(given.epochs), "--precision"]
    command += [given.precision, "--storage", str(folder / "runs"), "--name", name, *flags]
    metrics, written = folder / "runs" / name / "metrics.jsonl", set()
    peaks = dict.fromkeys(["worker", "driver", "object store"], 0.0)
    before = {pid for pid, _ in predict_memory.processes()}  # of other Rays on this machine, if there are any
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
    """Folders of so many photos and masks: drawn ones, beyond 480 over and over, as links."""
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
    print(f"\na batch of {BATCH}: two processes with half of it each, beside one that takes the halves as two parts\n")
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
    print(beside.table(["apart, ms", "joined by DDP, ms", "what joining costs, ms", "÷ the joined step"], rows))


def make(accumulate: int, dtype: torch.dtype = torch.float32) -> Learner:
    recipe = recipes.RECIPES["keras"]
    model = ModelConfig(
        num_classes=3,
        image_size=SIZE,
        class_names=labels.class_names(3),
        palette=labels.palette(3),
        label_map="",
        input_scale=recipe.input_scale,
        input_offset=recipe.input_offset,
    )
    config = recipes.resolve(TrainConfig(recipe="keras", batch_size=BATCH, accumulate=accumulate))
    learner = Learner(config, model, torch.device("cpu"), "fp32")
    learner.model.to(dtype)
    return learner


def draw_batch() -> Pairs:
    """Drawn pairs, as `feed` gives them."""
    both = [demo.draw_pair(number) for number in range(BATCH)]
    photos = np.stack([np.asarray(photo.resize(SIZE)) for photo, _ in both])
    masks = np.stack([np.asarray(mask.resize(SIZE, Image.Resampling.NEAREST)) for _, mask in both])
    return torch.from_numpy(photos).permute(0, 3, 1, 2), torch.from_numpy(masks) - 1


def draw_half(rank: int) -> Pairs:
    photos, masks = (both.chunk(2)[rank] for both in draw_batch())
    return photos, masks


def learned(learner: Learner, batch: Pairs, steps: int) -> list[tuple[float, Tensor]]:
    """The loss of every step on the same batch, and all weights after it."""
    found = []
    for number in range(steps):
        learner.step(*batch, number, steps, (0, number))
        weights = [weight.detach().ravel() for weight in learner.model.parameters()]
        found.append((learner.mean_loss(), torch.cat(weights)))
    return found


def join(learner: Learner, rank: int, store: Path) -> None:
    """As `petseg.train` joins it to the others."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    warnings.simplefilter("ignore", FutureWarning)  # of `broadcast_buffers`, which has no successor as yet
    learner.join(DistributedDataParallel(learner.model, broadcast_buffers=False), 2)


def joined(rank: int, folder: Path, steps: int, dtype: torch.dtype) -> None:
    """One of two processes: what both have learned goes to a file."""
    torch.set_num_threads(1)
    learner = make(1, dtype)
    join(learner, rank, folder / f"store-{dtype}")
    found = learned(learner, draw_half(rank), steps)
    if rank == 0:
        torch.save(found, folder / f"{dtype}.pt")
    dist.destroy_process_group()


def waiting(rank: int, folder: Path, steps: int, rounds: int, barrier: Any, results: Any) -> None:
    """One of two processes: milliseconds a step of every round, apart and joined, of the first."""
    torch.set_num_threads(1)
    batch, taken = draw_half(rank), ([], [])
    for number in range(rounds):
        for is_joined, times in enumerate(taken):
            learner = make(1)
            if is_joined:
                join(learner, rank, folder / f"round-{number}")
            learner.step(*batch, 0, steps, (0, 0))  # after its first, DDP sends in another order
            barrier.wait()
            started = time.perf_counter()
            for step in range(steps):
                learner.step(*batch, step, steps, (0, step))
            times.append(1000 * (time.perf_counter() - started) / steps)
            barrier.wait()
            if is_joined:
                dist.destroy_process_group()
    if rank == 0:
        results.put(taken)


if __name__ == "__main__":
    main()
