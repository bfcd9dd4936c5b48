"""Label in rounds: train, predict the rest, choose the photos to label next, and compare the ways to choose.

python benchmarks/rounds.py --images FOLDER --masks FOLDER

Each way begins with the same 50 pairs. Three times it trains the pretrained recipe on its pairs, predicts all
photos, chooses 50 of those without labels with `petseg prepare select`, or at random, and adds their masks. Every
training passes over about 3,000 photos. The scores are those of held-out pairs, which are neither trained on nor
chosen. They are those of `petseg train --val-count 330` with the default seed. Finished steps in --output are kept, so
a second start continues.
"""

import argparse
import csv
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accuracy
import beside

from petseg.config.train import TrainConfig
from petseg.data import manifest, splits

WAYS = ("random", "unsure", "spread", "class-share")
STEP = 50
ROUNDS = 3
PHOTOS = 3000
"""Photos that each training passes over."""

SELECTING = 80
"""Number of held-out pairs that choose the best epoch."""

Pair = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photos of the Oxford pets")
    parser.add_argument("--masks", type=Path, required=True, help="folder of their trimaps")
    parser.add_argument("--val-count", type=int, default=330, help="number of held-out pairs")
    parser.add_argument("--output", type=Path, default=Path("runs/rounds"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the first pairs")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to choose")
    given = parser.parse_args()
    beside.quiet_ray()
    output = given.output.absolute()
    pairs = manifest.discover(str(given.images.absolute()), str(given.masks.absolute()))
    pool, val = splits.split(pairs, seed=TrainConfig.seed, val_count=given.val_count)
    held_out = accuracy.link(output / "held-out", val.to_pylist())
    rows = []
    for seed in given.seeds:
        for way in given.ways:
            scores = follow(given, output / f"seed-{seed}", way, pool.to_pylist(), held_out, seed)
            rows.append([f"{way}, seed {seed}", *(f"{score:.3f}" for score in scores)])
            print(beside.line(rows[-1]), flush=True)
    heads = ["mIoU after labelling", *(f"{STEP * (number + 1)} pairs" for number in range(ROUNDS + 1))]
    print(f"\n{beside.about()}\n\n{beside.table(heads, rows)}")


def follow(
    given: argparse.Namespace, folder: Path, way: str, pool: list[Pair], held_out: tuple[Path, Path], seed: int
) -> list[float]:
    """Return the mIoU before the first round and after each."""
    generator = random.Random(seed)
    by_id = {pair["id"]: pair for pair in pool}
    labelled = generator.sample(sorted(by_id), STEP)
    scores = []
    for number in range(ROUNDS + 1):
        name = f"{way}-{number}" if number else "start"  # all ways share the first training
        scores.append(train(given, folder, name, labelled, held_out)["miou"])
        if number < ROUNDS:
            left = sorted(by_id.keys() - set(labelled))
            random_ones = generator.sample(left, STEP)
            labelled += random_ones if way == "random" else choose(folder, name, way, pool, labelled)
    return scores


def train(
    given: argparse.Namespace, folder: Path, name: str, labelled: list[str], held_out: tuple[Path, Path]
) -> dict[str, Any]:
    """Return the scores of a network that is trained on these pairs."""
    validated = sorted(path.stem for path in held_out[0].iterdir())
    lists = {"train": labelled, "val": random.Random(0).sample(validated, SELECTING)}
    folder.mkdir(parents=True, exist_ok=True)
    for part, ids in lists.items():
        (folder / f"{name}-{part}.txt").write_text("".join(f"{row_id}\n" for row_id in ids))
    flags = ["--images", str(given.images), "--masks", str(given.masks), "--classes", "pet,background,border"]
    flags += ["--split-file", *(f"{part}={folder / f'{name}-{part}.txt'}" for part in lists)]
    flags += ["--recipe", "pretrained", "--epochs", str(PHOTOS // len(labelled))]
    return accuracy.score(folder, name, flags, held_out)


def choose(folder: Path, name: str, way: str, pool: list[Pair], labelled: list[str]) -> list[str]:
    """Return the ids of the photos that `petseg prepare select` chooses with the network of this name."""
    write_table(folder / "pool.csv", {pair["id"]: pair["image"] for pair in pool})
    masks = {pair["id"]: pair["mask"] for pair in pool}
    write_table(folder / f"{way}-{name}.csv", {row_id: masks[row_id] for row_id in labelled})
    petseg = [sys.executable, "-m", "petseg"]
    predicted, selected = folder / f"{name}-predicted", folder / f"{way}-{name}-selected"
    photos = ["--images", str(folder / "pool.csv"), "--output", str(predicted), "--no-png"]
    beside.run([*petseg, "predict", "--checkpoint", str(folder / name), *photos])
    shutil.rmtree(selected, ignore_errors=True)
    flags = ["--by", way, "--count", str(STEP), "--labelled", str(folder / f"{way}-{name}.csv")]
    beside.run([*petseg, "prepare", "select", "--from", str(predicted), *flags, "--output", str(selected)])
    with (selected / "photos.csv").open(newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]


def write_table(path: Path, locations: Mapping[str, str]) -> None:
    """Write a table of photos or masks, as --images and --labelled take it."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "uri"), *locations.items()])


if __name__ == "__main__":
    main()
