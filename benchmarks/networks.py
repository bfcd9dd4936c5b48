"""Compare the network of the Keras example with that of the pretrained recipe: training step, prediction and memory.

python benchmarks/networks.py
python benchmarks/networks.py --size 320 320

Each round measures every network in a process of its own, on all cores, on random photos in memory. A training step is
that of `petseg train` with batches of 8. A prediction is that of the job's predictor, up to the probabilities. The
column "all in bf16" is the pretrained network without the exception for depthwise convolutions in training.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import beside
import numpy as np
import torch
import train_gpu

from petseg.config.train import RecipeName, TrainConfig
from petseg.data.decode import Photo
from petseg.inference.predictor import Predictor
from petseg.models import encoder_unet
from petseg.training import recipes
from petseg.training.trainer import Trainer

NETWORKS: dict[str, RecipeName] = {
    "Keras example's": "best",
    "pretrained": "pretrained",
    "pretrained, all in bf16": "pretrained",
}
"""Networks and the recipes that train them."""

BATCH = 8
ROWS = {"train": "training step, images/s", "predict": "prediction, images/s", "memory_mb": "peak memory, MB"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 160), help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20, help="training steps in a round; predicted batches twice that")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", choices=NETWORKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.network:
        print(json.dumps(measure(given.network, (given.size[0], given.size[1]), given.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in NETWORKS}
    for _ in range(given.rounds):
        for name in NETWORKS:
            own = ["--size", *map(str, given.size), "--steps", str(given.steps), "--network", name]
            found[name].append(beside.answer([sys.executable, str(Path(__file__)), *own]))
    rows = []
    for key, title in ROWS.items():
        values = {name: [one[key] for one in of_name] for name, of_name in found.items()}
        first, second, _ = values.values()
        rows.append([title, *map(beside.cell, values.values()), beside.ratio(second, first)])
    print(f"{beside.about()}\n\n{beside.table(['', *NETWORKS, 'pretrained ÷ Keras example'], rows)}")


def measure(name: str, size: tuple[int, int], steps: int) -> dict[str, float]:
    """Return the values of `ROWS` for one network."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    if name.endswith("all in bf16"):
        encoder_unet._trained_in_fp32 = lambda kind: kind
    config = recipes.resolve(TrainConfig(recipe=NETWORKS[name], batch_size=BATCH))
    device = torch.device("cpu")
    trainer = Trainer(config, train_gpu.model_config(config.recipe, size), device, "bf16")
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (BATCH, *size, 3), np.uint8)
    photos = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    masks = torch.from_numpy(generator.integers(0, 3, (BATCH, *size), np.uint8))
    step_s = []
    for step in range(steps + 3):
        began = time.perf_counter()
        trainer.train_step(photos, masks, step, steps + 3, (1, 0, 1, step))
        step_s.append(time.perf_counter() - began)
    torch.set_num_threads(1)
    predictor = Predictor(trainer.eval_model, device, BATCH, size, "bf16", threads=threads)
    batch = [Photo(photo, *size) for photo in pixels]
    list(predictor(batch * threads))
    began = time.perf_counter()
    count = sum(1 for _ in predictor(batch * 2 * steps))
    predicted_s = time.perf_counter() - began
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"train": BATCH / statistics.median(step_s[3:]), "predict": count / predicted_s, "memory_mb": memory_mb}


if __name__ == "__main__":
    main()
