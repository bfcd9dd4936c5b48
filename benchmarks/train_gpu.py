"""Measure the speed of training on a GPU, and compare it with the same step on data that is already on the device.

python benchmarks/train_gpu.py                                         a table, then a whole run; some minutes
python benchmarks/train_gpu.py --device cpu --pairs 64 --batches 8 --steps 3 --epochs 1     to try the script

For each batch size it times: the step alone, on one batch on the device; the step with the feed whose data is on the
device; the step with the feed that streams from Ray's object store. Rounds alternate between them. Then it times a
whole run of `jobs/train.py` on drawn pets, from start to end.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from torch.profiler import ProfilerActivity, profile

from petseg.cluster import connect
from petseg.config.model import ModelConfig
from petseg.config.train import RecipeName, TrainConfig
from petseg.data import demo, labels
from petseg.models import precision
from petseg.models.encoder_weights import with_encoder
from petseg.pipelines.decode import Decoded
from petseg.training import recipes, run_folder
from petseg.training.rank_data import Batch, RankData
from petseg.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
SIZE = (160, 160)
MODEL = ModelConfig(
    num_classes=3,
    image_size=SIZE,
    class_names=("pet", "background", "border"),
    palette=labels.palette(3),
    label_map="1:0,2:1,3:2",
)
WARM_STEPS = 5
"""Warm-up steps before the timed ones: they compile, choose kernels and allocate memory."""

Way = Callable[[], Iterator[Batch]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pairs", type=int, default=6390, help="default: the published training split")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--steps", type=int, default=100, help="timed steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15, help="epochs of the whole run. 0: no whole run")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    given = parser.parse_args()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, Ray {ray.__version__}, {time.strftime('%Y-%m-%d')}\n")
    connect.connect()
    decoded = random_pairs(given.pairs)
    resident = RankData(decoded, 0, 1, device, budget_bytes=float("inf"))
    streamed = RankData(decoded, 0, 1, device, budget_bytes=0)
    print("| recipe, batch | step alone, images/s | with the feed | streamed | device busy | peak memory, GB |")
    print("|---|---|---|---|---|---|")
    for recipe in recipes.RECIPES:
        for batch_size in given.batches:
            config = recipes.resolve(TrainConfig(recipe=recipe, batch_size=batch_size, use_gpu=device.type == "cuda"))
            print(row(config, resident, streamed, device, given.steps, given.rounds, given.compile), flush=True)
    ray.shutdown()
    if given.epochs:
        whole_run(given.pairs, given.epochs, device)


def model_config(recipe: RecipeName, size: tuple[int, int]) -> ModelConfig:
    """Return the settings of the network that a recipe trains."""
    chosen = recipes.RECIPES[recipe]
    scaling = {"input_scale": chosen.input_scale, "input_offset": chosen.input_offset}
    model = dataclasses.replace(MODEL, image_size=size, **scaling)
    return model if chosen.network == "unet" else with_encoder(model, chosen.network)


def random_pairs(count: int, size: tuple[int, int] = SIZE) -> Decoded:
    """Put random pairs into Ray's object store, in blocks of the same size as those of `decode`."""
    generator = np.random.default_rng(0)
    area, blocks, rows = size[0] * size[1], [], []
    for start in range(0, count, 81):
        rows.append(min(81, count - start))
        columns = []
        for width, values in ((area * 3, 256), (area, 3)):
            content = generator.integers(0, values, rows[-1] * width, np.uint8)
            columns.append(
                pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows[-1], [None, pa.py_buffer(content)])
            )
        blocks.append(ray.put(pa.table(columns, names=["image", "mask"])))
    return Decoded(blocks, tuple(rows), size, (1, 1, 1))


def row(
    config: TrainConfig,
    resident: RankData,
    streamed: RankData,
    device: torch.device,
    steps: int,
    rounds: int,
    compiled: bool,
) -> str:
    """Return one row of the table: medians over the rounds, and (lowest to highest)."""
    assert config.batch_size is not None
    trainer = Trainer(config, model_config(config.recipe, SIZE), device, precision.resolve("auto", device))
    if compiled and device.type == "cuda":
        trainer.model.compile()
    photos, masks = next(resident.eval_batches(config.batch_size))
    ways: dict[str, Way] = {
        "alone": lambda: iter(lambda: (photos, masks), None),
        "resident": functools.partial(endless, resident, config.batch_size),
        "streamed": functools.partial(endless, streamed, config.batch_size),
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, batches in ways.items():
            rates[name].append(steps * config.batch_size / seconds(trainer, batches(), steps, device))
    shown = [f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})" for found in rates.values()]
    for number in (1, 2):
        share = statistics.median(list(rates.values())[number]) / statistics.median(rates["alone"])
        shown[number] += f", {share:.0%}"
    busy, peak = "–", "–"
    if device.type == "cuda":
        peak = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}"
        busy = f"{busy_share(trainer, ways['resident'](), steps, device):.0%}"
    return f"| {config.recipe}, {config.batch_size} | {' | '.join(shown)} | {busy} | {peak} |"


def endless(share: RankData, batch_size: int) -> Iterator[Batch]:
    for epoch in range(1, 10**6):
        yield from share.train_batches(batch_size, 1337, epoch)


def seconds(trainer: Trainer, batches: Iterator[Batch], steps: int, device: torch.device) -> float:
    """Return the seconds of `steps` training steps, after the warm-up."""
    for number in range(WARM_STEPS):
        trainer.train_step(*next(batches), number, steps, (0, number))
    synchronize(device)
    started = time.perf_counter()
    for number in range(steps):
        trainer.train_step(*next(batches), number, steps, (1, number))
    synchronize(device)
    return time.perf_counter() - started


def busy_share(trainer: Trainer, batches: Iterator[Batch], steps: int, device: torch.device) -> float:
    """Return the fraction of time in which the device runs a kernel. The profiler makes the rest a little longer."""
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        taken = seconds(trainer, batches, steps, device)
    kernels_us = sum(event.self_device_time_total for event in watched.key_averages())
    return kernels_us / 1e6 * steps / (steps + WARM_STEPS) / taken


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def whole_run(pairs: int, epochs: int, device: torch.device) -> None:
    """Time `jobs/train.py` on `pairs` drawn pets, and a seventh of that for validation."""
    with tempfile.TemporaryDirectory(prefix="petseg-train-") as name:
        folder, val_count = Path(name), max(1, pairs // 7)
        drawn = min(480, pairs + val_count)  # drawing is slower than training, so the rest are links
        demo.draw_set(str(folder / "drawn"), drawn)
        for kind, ending in (("images", "jpg"), ("trimaps", "png")):
            (folder / kind).mkdir()
            for number in range(pairs + val_count):
                source = folder / "drawn" / kind / f"pet_{number % drawn:04}.{ending}"
                (folder / kind / f"{number:06}.{ending}").symlink_to(source)
        command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--images", str(folder / "images")]
        command += ["--masks", str(folder / "trimaps"), "--val-count", str(val_count), "--epochs", str(epochs)]
        command += ["--storage", str(folder / "runs"), "--name", "whole", "--batch-size", "32"]
        started = time.perf_counter()
        subprocess.run(command + ["--use-gpu"] * (device.type == "cuda"), check=True, stdout=subprocess.DEVNULL)
        taken = time.perf_counter() - started
        history = run_folder.read_metrics(str(folder / "runs" / "whole"))
        in_epochs = sum(epoch["seconds"] for epoch in history)
        rate = statistics.median(epoch["train_images_per_s"] for epoch in history)
        print(
            f"\n{epochs} epochs of {pairs} pairs, batch 32, from start to end: {taken:.0f} s, {in_epochs:.0f} s of it "
            f"in epochs with their validation and checkpoints; {rate:,.0f} images/s in the median epoch"
        )


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
