"""Compare training on a CPU with the Keras program that the network comes from, on the same photos in alternating runs.

python benchmarks/train_cpu.py --images FOLDER --masks FOLDER

Each round runs `jobs/train.py` and `keras_unet.py` in turn, each as a user starts it, on the same cores. Then it times
the training step of each alone, on arrays in memory. Ratios are taken round by round.

The first epoch includes reading the files. Keras reads them in every epoch, so this is its first epoch. The job decodes
them before training, so this is its first epoch plus the decoding of all pairs, those for validation included. The job
does not report its decoding time. It is measured separately, once a round, in a Ray of its own whose workers have
started. Start-up is the rest of the total time: Python, Ray, Ray Train's workers and the checkpoints for the job;
TensorFlow and the building of its graph for Keras. The job validates after each epoch, which counts only in the total
time; the Keras program does not validate.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import beside
import torch
import torch.nn.functional as F
from torch import Tensor

from petseg.config.base import Precision
from petseg.config.train import TrainConfig
from petseg.data import demo, labels, manifest, splits
from petseg.models import precision, unet
from petseg.training import run_folder

VARIANTS = {"keras recipe": ["--recipe", "keras"], "best recipe": ["--recipe", "best"]}
"""Variants of `jobs/train.py` that are measured, and their flags."""

PEER = "Keras"
BATCHES = (16, 32)
ARITHMETIC: tuple[Precision, ...] = ("fp32", "bf16")

RATE = "images/s"
FIRST, LATER = f"first epoch, from files, {RATE}", f"later epochs, {RATE}"
WHOLE, START, LOSS = "the whole, s", "of it start-up, s", "training loss of the last epoch"

Measured = dict[str, dict[str, list[float]]]
"""One value per round, by row and then by column of the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photos. Default: drawn photos, which are smaller")
    parser.add_argument("--masks", type=Path, help="folder of their trimaps: 1 pet, 2 background, 3 border")
    parser.add_argument("--pairs", type=int, default=480, help="number of pairs to use")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of the step alone")
    parser.add_argument("--threads", type=int, help="cores and threads of every program. Default: all cores")
    given = parser.parse_args()
    if (given.images is None) != (given.masks is None):
        parser.error("--images and --masks: give both or neither")
    if given.epochs < 2:
        parser.error("--epochs: give at least 2; the first and the later epochs are measured separately")
    cores = beside.cores()[: given.threads]
    os.sched_setaffinity(0, cores)  # child processes use the same cores
    print(beside.about(), flush=True)
    beside.quiet_ray()
    python = beside.peer_python("keras-env", beside.KERAS_NEEDS)

    measured: Measured = {}
    versions = ""
    with tempfile.TemporaryDirectory(prefix="petseg-train-") as name:
        folder = Path(name)
        if given.images is None:
            sources = demo.draw_set(str(folder / "drawn"), count=given.pairs, seed=1)
        else:
            sources = str(given.images.absolute()), str(given.masks.absolute())
        images, masks, count = link_pairs(folder, *sources, given.pairs)
        if count <= max(BATCHES):
            parser.error(f"{count} pairs: more than {max(BATCHES)} are needed")
        # Both programs drop the last, incomplete batch. Choose the numbers so that there is none.
        val_count = count % max(BATCHES) or max(BATCHES)
        config = TrainConfig(images=images, masks=masks, epochs=given.epochs, val_count=val_count)
        for number in range(1, given.rounds + 1):
            done, versions = one_round(config, folder / f"round-{number}", python, len(cores), given.steps)
            for row, columns in done.items():
                for column, value in columns.items():
                    measured.setdefault(row, {}).setdefault(column, []).append(value)
            print(
                f"round {number}: " + ", ".join(f"{column} {value:.1f}" for column, value in done[LATER].items()),
                flush=True,
            )
    print(
        f"\n{count - val_count} photos to train on and {val_count} to validate, {given.epochs} epochs, {len(cores)} "
        f"cores, {versions}; medians of {given.rounds} rounds (lowest to highest)\n"
    )
    print("\n\n".join(tables(measured)))


def one_round(
    config: TrainConfig, folder: Path, python: Path, threads: int, count: int
) -> tuple[dict[str, dict[str, float]], str]:
    """Run everything once. Return values by row and column, and the versions of the peer."""
    assert config.images is not None and config.masks is not None and config.val_count is not None
    folder.mkdir()
    train_pairs, _ = splits.split(
        manifest.discover(config.images, config.masks), seed=config.seed, val_count=config.val_count
    )
    listed = folder / "pairs"
    listed.write_text("".join(f"{pair['image']}\t{pair['mask']}\n" for pair in train_pairs.to_pylist()))
    # -E: ignore PYTHONPATH, which is for this environment.
    keras = [str(python), "-E", str(Path(__file__).parent / "keras_unet.py"), "--threads", str(threads)]
    job = [sys.executable, str(beside.ROOT / "jobs" / "train.py"), "--images", config.images, "--masks", config.masks]
    job += ["--val-count", str(config.val_count), "--epochs", str(config.epochs), "--cpus-per-worker", str(threads)]
    job += ["--seed", str(config.seed), "--storage", str(folder)]

    decode_s = alone(decode, config)
    done: dict[str, dict[str, float]] = {}
    programs = list(VARIANTS)
    programs.insert(1, PEER)  # run the peer between our variants
    for program in programs:
        started = time.perf_counter()
        if program == PEER:
            result = beside.answer([*keras, "train", "--pairs", str(listed), "--epochs", str(config.epochs)])
            found = figures(result["epochs"], train_pairs.num_rows, 0.0, time.perf_counter() - started)
        else:
            name = program.replace(" ", "-")
            beside.run([*job, "--name", name, *VARIANTS[program]])
            whole_s = time.perf_counter() - started
            found = figures(run_folder.read_metrics(str(folder / name)), train_pairs.num_rows, decode_s, whole_s)
        for row, value in found.items():
            done.setdefault(row, {})[program] = value

    ours = alone(steps, count, threads)
    theirs = beside.answer([*keras, "steps", "--steps", str(count), "--batches", *map(str, BATCHES)])
    for what in ("training", "inference"):
        for batch in BATCHES:
            row = f"{what} alone, batches of {batch}, {RATE}"
            done[row] = {arithmetic: ours[arithmetic, what, batch] for arithmetic in ARITHMETIC}
            done[row][PEER] = theirs[what][str(batch)]  # keys are strings in JSON
    return done, f"TensorFlow {theirs['tensorflow']}, Keras {theirs['keras']}"


def figures(epochs: list[dict[str, Any]], images: int, decode_s: float, whole_s: float) -> dict[str, float]:
    """Return the rows of one program, from its epochs in the format of `metrics.jsonl`."""
    rates = [epoch["train_images_per_s"] for epoch in epochs]
    return {
        FIRST: images / (decode_s + images / rates[0]),
        LATER: statistics.median(rates[1:]),
        WHOLE: whole_s,
        START: whole_s - decode_s - sum(epoch["seconds"] for epoch in epochs),
        LOSS: epochs[-1]["train_loss"],
    }


def tables(measured: Measured) -> list[str]:
    """Return one table for each set of columns, with the rows that have these columns."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for row, columns in measured.items():
        ours = [column for column in columns if column != PEER]
        cells = [beside.cell(columns[column], 3 if row == LOSS else 1) for column in [*ours, PEER]]
        ratios = [beside.ratio(columns[column], columns[PEER]) if row.endswith(RATE) else "" for column in ours]
        found.setdefault(tuple(ours), []).append([row, *cells, *ratios])
    return [
        beside.table(["", *ours, PEER, *(f"{column} ÷ {PEER}" for column in ours)], rows)
        for ours, rows in found.items()
    ]


def link_pairs(folder: Path, images: str, masks: str, count: int) -> tuple[str, str, int]:
    """Create folders of links to `count` pairs, or to all if there are fewer. Return the folders and the number."""
    pairs = manifest.sample(manifest.discover(images, masks), count)
    for number, pair in enumerate(pairs.to_pylist()):
        for kind in ("image", "mask"):
            target = Path(pair[kind])
            link = folder / f"{kind}s" / f"{number:06}{target.suffix}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target)
    return str(folder / "images"), str(folder / "masks"), pairs.num_rows


def alone(work: Callable[..., Any], *given: object) -> Any:
    """Run a function in a process of its own, and return its result."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def decode(config: TrainConfig) -> float:
    """Return the seconds to decode all pairs as `jobs/train.py` does."""
    import ray

    from petseg.cluster import connect
    from petseg.pipelines.decode import decode

    assert config.images is not None and config.masks is not None and config.val_count is not None
    pairs = manifest.discover(config.images, config.masks)
    train, val = splits.split(pairs, seed=config.seed, val_count=config.val_count)
    parts = {"training": train, "validation": val}
    label_map = labels.LabelMap.parse(config.label_map, 3)
    connect.connect()
    try:
        decode(parts, config.image_size, label_map)  # Ray's workers start and load their modules
        started = time.perf_counter()
        decode(parts, config.image_size, label_map)
        return time.perf_counter() - started
    finally:
        ray.shutdown()


def steps(count: int, threads: int) -> dict[tuple[Precision, str, int], float]:
    """Return images per second of this network by (precision, "training" or "inference", batch size), from memory.

    Training uses Keras's optimizer and loss. Inference computes probabilities with folded batch norms, as the
    prediction job does, but one batch at a time on all threads.
    """
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    height, width = TrainConfig().image_size
    rates: dict[tuple[Precision, str, int], float] = {}
    for arithmetic in ARITHMETIC:
        for batch in BATCHES:
            pixels = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
            photos = pixels.permute(0, 3, 1, 2)
            masks = torch.randint(0, 3, (batch, height, width), dtype=torch.uint8, generator=generator)
            model = unet.UNet(3)
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - missing in the stubs
            optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
            seconds = timed(partial(train_step, model, optimizer, photos, masks, arithmetic), count)
            rates[arithmetic, "training", batch] = batch * count / seconds
            folded = model.for_inference()
            folded.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            seconds = timed(partial(probabilities, folded, photos, arithmetic), count)
            rates[arithmetic, "inference", batch] = batch * count / seconds
    return rates


def train_step(
    model: unet.UNet, optimizer: torch.optim.Optimizer, photos: Tensor, masks: Tensor, arithmetic: Precision
) -> None:
    with precision.autocast(arithmetic, photos.device):
        logits = model(photos)
    loss = F.cross_entropy(logits.float(), masks.long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def probabilities(model: torch.nn.Module, photos: Tensor, arithmetic: Precision) -> Tensor:
    with precision.autocast(arithmetic, photos.device):
        logits = model(photos)
    return logits.float().softmax(1)


def timed(work: Callable[[], object], count: int) -> float:
    """Return the seconds of `count` calls, after as many warm-up calls."""
    for _ in range(count):
        work()
    started = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
