"""Plant errors in 5% of the masks, and count how many of them `petseg prepare check --checkpoint` ranks first.

python benchmarks/label_errors.py --images FOLDER --masks FOLDER     trimaps of the Oxford pets
python benchmarks/label_errors.py                                    generated pets

Two runs of `petseg train --val-fold` and the checks with their networks are started as a user starts them. A mask is
ranked by the network that was not trained on it; in the last column by the other one. Mean cross-entropy and mIoU are
those of `petseg evaluate` with the same networks. Finished runs in --output are kept, so a second start continues.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

import beside
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from petseg.data import demo, manifest
from petseg.data.classes import write_classes
from petseg.data.oxford_pets import CLASSES

FRACTION = 0.05
"""Fraction of the masks that get an error."""

FIRST = 0.1
"""Fraction of the ranked masks that a person would look through."""

PETSEG = [sys.executable, "-m", "petseg"]

SWAPPED = np.array([0, demo.BACKGROUND, demo.PET, demo.BORDER], np.uint8)

Scores = dict[str, float]
"""Score of each pair by its id; a higher score is a more likely error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photos of the Oxford pets")
    parser.add_argument("--masks", type=Path, help="folder of their trimaps")
    parser.add_argument("--pairs", type=int, default=demo.COUNT, help="number of generated pets without --images")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each run")
    parser.add_argument("--side", type=int, default=160, help="height and width of the networks' input")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the planted errors")
    parser.add_argument("--output", type=Path, default=Path("runs/label-errors"), help="folder of the runs")
    given = parser.parse_args()
    beside.quiet_ray()
    given.output /= f"seed-{given.seed}"  # the runs are kept, and belong to the masks
    given.output.mkdir(parents=True, exist_ok=True)
    images, masks = given.images, given.masks
    if images is None or masks is None:
        images, masks = map(Path, demo.draw_set(str(given.output / "pets"), count=given.pairs))
    planted = plant(images, masks, given.output / "masks", given.seed)
    source = ["--images", str(images), "--masks", str(given.output / "masks")]
    runs = [train(given, source, fold) for fold in (1, 2)]
    columns = rank(given.output, source, runs)
    heads = ["planted error: found in the first 10%", "masks", *(f"by {title}" for title in columns)]
    print(f"{beside.about()}\n\n{beside.table(heads, table(planted, columns))}")


def plant(images: Path, masks: Path, target: Path, seed: int) -> dict[str, str]:
    """Write the masks to `target`, some of them with an error, and return {id: kind of its error}."""
    pairs = manifest.discover(str(images.absolute()), str(masks.absolute())).to_pylist()
    rng = np.random.default_rng(seed)
    planted: dict[str, str] = {}
    chosen = rng.choice(len(pairs), max(len(KINDS), round(FRACTION * len(pairs))), replace=False)
    for number, index in enumerate(chosen):
        planted[pairs[index]["id"]] = list(KINDS)[number % len(KINDS)]
    for pair in pairs:
        location = target / f"{pair['id']}.png"
        location.parent.mkdir(parents=True, exist_ok=True)
        mask = np.asarray(Image.open(pair["mask"]))
        if pair["id"] in planted:
            mask = KINDS[planted[pair["id"]]](mask, rng)
        Image.fromarray(np.ascontiguousarray(mask)).save(location)
    write_classes(str(target), CLASSES)
    return planted


def swap(mask: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return SWAPPED[mask]


def shift(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mask moved by 10 to 20% of its shorter side, in any direction, with background behind it."""
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.2) * min(mask.shape)
    down, right = round(distance * np.sin(angle)), round(distance * np.cos(angle))
    height, width = mask.shape
    shifted = np.full_like(mask, demo.BACKGROUND)
    shifted[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = mask[
        max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)
    ]
    return shifted


def erase(mask: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.full_like(mask, demo.BACKGROUND)


def erase_part(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mask without the pet in a disc whose diameter is a fifth of the shorter side, around a pet's pixel."""
    rows, columns = np.nonzero(mask == demo.PET)
    centre = rng.integers(len(rows))
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    within = (y - rows[centre]) ** 2 + (x - columns[centre]) ** 2 < (0.1 * min(mask.shape)) ** 2
    return np.where(within, demo.BACKGROUND, mask).astype(np.uint8)


def mirror(mask: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return mask[:, ::-1]


KINDS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "pet and background swapped": swap,
    "shifted by 10 to 20%": shift,
    "pet missing": erase,
    "part of the pet missing": erase_part,
    "mirrored": mirror,
}


def train(given: argparse.Namespace, source: list[str], fold: int) -> Path:
    """Train on the pairs outside a fold, unless an earlier start has done so, and return the run."""
    name = f"fold-{fold}"
    run = given.output / name
    if not (run / "report.html").exists():
        flags = [*source, "--recipe", "pretrained", "--epochs", str(given.epochs), "--val-fold", f"{fold}/2"]
        flags += ["--image-size", str(given.side), str(given.side)]
        resume = ["--resume"] if (run / "config.json").exists() else flags
        beside.run([*PETSEG, "train", *resume, "--storage", str(given.output), "--name", name])
    return run


def rank(output: Path, source: list[str], runs: list[Path]) -> dict[str, Scores]:
    """Return the scores of all pairs by the title of their column."""
    columns: dict[str, Scores] = {"disagreement": check(output / "check", source, runs, out_of_fold=True)}
    by_loss, by_iou, in_fold = Scores(), Scores(), Scores()
    for run in runs:
        trained = check(run / "check", source, [run], out_of_fold=False)
        in_fold |= trained
        flags = ["--checkpoint", str(run), "--output", str(run / "scores"), "--overwrite"]
        beside.run([*PETSEG, "evaluate", *source, *flags])
        for row in pq.read_table(run / "scores" / "per_image.parquet").to_pylist():
            if row["id"] not in trained:
                by_loss[row["id"]], by_iou[row["id"]] = row["cross_entropy"], 1 - row["miou"]
    columns |= {"mean cross-entropy": by_loss, "1 − mIoU": by_iou}
    return columns | {"disagreement of the network that trained on it": in_fold}


def check(output: Path, source: list[str], runs: list[Path], *, out_of_fold: bool) -> Scores:
    """Check with the networks of these runs, and return the disagreement of the pairs that are in or out of fold."""
    flags = ["--output", str(output), "--overwrite", "--checkpoint", *map(str, runs)]
    beside.run([*PETSEG, "prepare", "check", *source, *flags])
    rows = pq.read_table(output / "check.parquet").to_pylist()
    return {row["id"]: row["disagreement"] for row in rows if row["out_of_fold"] is out_of_fold}


def table(planted: Mapping[str, str], columns: Mapping[str, Scores]) -> list[list[str]]:
    """Return a row for each kind of error, one for all errors, and one with the average precision."""
    ranked = [sorted(scores, key=lambda row_id: (-scores[row_id], row_id)) for scores in columns.values()]
    first = [set(ids[: round(FIRST * len(ids))]) for ids in ranked]
    rows = []
    for title in (*KINDS, "all"):
        ids = {row_id for row_id, kind in planted.items() if title in (kind, "all")}
        rows.append([title, str(len(ids)), *(f"{100 * len(ids & found) / len(ids):.0f}%" for found in first)])
    precisions = [f"{average_precision(ids, planted):.2f}" for ids in ranked]
    return [*rows, ["average precision of all", "", *precisions]]


def average_precision(ranked: Sequence[str], planted: Container[str]) -> float:
    """Return the mean, over the planted errors, of the precision of the ranking down to each of them."""
    ranks = [rank for rank, row_id in enumerate(ranked, 1) if row_id in planted]
    return statistics.fmean(found / rank for found, rank in enumerate(ranks, 1))


if __name__ == "__main__":
    main()
