"""Train on real pairs in several ways, and compare the scores on the same held-out pairs.

python benchmarks/accuracy.py --images FOLDER --masks FOLDER recipes     each recipe, from all pairs
python benchmarks/accuracy.py --images FOLDER --masks FOLDER sizes       the pretrained recipe at several sizes
python benchmarks/accuracy.py --images FOLDER --masks FOLDER pairs       two recipes, from few pairs to all

Each way is a run of `petseg train` and one of `petseg evaluate` with its best checkpoint, as a user starts them. The
held-out pairs are those of `petseg train --val-count 330` with the default seed. Some of them choose the epoch, all of
them are scored. Fewer pairs to train on are the first ones of the others. Finished runs in --output are kept, so a
second start continues.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import beside
import numpy as np

from petseg.config.train import TrainConfig
from petseg.data import manifest, splits

PASSES = {50: 60, 100: 50, 200: 30, 400: 20, 800: 15}
"""Epochs by the number of pairs. From few pairs, 15 epochs are too few steps."""

PATIENCE = (3, 10)
"""Epochs without a lower validation loss after which a run would have been stopped."""

SELECTING = 80
"""Number of held-out pairs that are validated after each epoch, to choose the best. All 330 would take longer than a
short epoch."""


class Way(NamedTuple):
    """One row of a table."""

    title: str
    flags: list[str]
    pairs: int | None = None
    """Number of pairs to train on, or None for all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--images", type=Path, required=True, help="folder of photos of the Oxford pets")
    parser.add_argument("--masks", type=Path, required=True, help="folder of their trimaps")
    parser.add_argument("--val-count", type=int, default=330, help="number of held-out pairs")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    parser.add_argument("--only", default="", help="train only the ways whose title contains this")
    given = parser.parse_args()
    beside.quiet_ray()
    given.output.mkdir(parents=True, exist_ok=True)
    pairs = manifest.discover(str(given.images.absolute()), str(given.masks.absolute()))
    train, val = splits.split(pairs, seed=TrainConfig.seed, val_count=given.val_count)
    held_out = link(given.output / "held-out", val.to_pylist())
    rows, stops = [], []
    for way in TABLES[given.table](train.num_rows):
        if given.only not in way.title:
            continue
        listed = given.output / f"train-{way.pairs or train.num_rows}.txt"
        listed.write_text("".join(f"{name}\n" for name in train["id"].to_pylist()[: way.pairs]))
        (given.output / "val.txt").write_text("".join(f"{name}\n" for name in val["id"].to_pylist()[:SELECTING]))
        source = ["--images", str(given.images), "--masks", str(given.masks), "--classes", "pet,background,border"]
        lists = ["--split-file", f"train={listed}", f"val={given.output / 'val.txt'}"]
        found = score(given.output, way.title.replace(" ", "-"), [*source, *lists, *way.flags], held_out)
        rows.append([way.title, *_cells(found)])
        stops.append([way.title, *_stops(found["history"])])
        print(beside.line(rows[-1]), flush=True)
    heads = ["", "epochs", "best epoch", "cross-entropy", "accuracy", "mIoU", "pet", "background", "border"]
    heads += ["pet with border", "at the photos' size: mIoU", "boundary mIoU"]
    print(f"\n{beside.about()}\n\n{beside.table(heads, rows)}")
    heads = ["epoch: its mIoU", "of the lowest loss", "of the highest mIoU"]
    heads += [f"of the lowest loss, stopped after {patience} epochs without a lower one" for patience in PATIENCE]
    print(f"\n{beside.table(heads, stops)}")


def score(output: Path, name: str, flags: list[str], held_out: tuple[Path, Path]) -> dict[str, Any]:
    """Train and evaluate, unless an earlier start has done so, and return the scores."""
    run, scores = output / name, output / name / "scores"
    petseg = [sys.executable, "-m", "petseg"]
    if not (scores / "metrics.json").exists():
        resume = ["--resume"] if (run / "config.json").exists() else flags
        beside.run([*petseg, "train", *resume, "--storage", str(output), "--name", name])
        pairs = ["--images", str(held_out[0]), "--masks", str(held_out[1])]
        beside.run([*petseg, "evaluate", "--checkpoint", str(run), *pairs, "--output", str(scores)])
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = json.loads((scores / "metrics.json").read_text())
    return found | {"history": history}


def _cells(found: dict[str, Any]) -> list[str]:
    confusion = np.array(found["confusion"], float)
    background = list(found["iou"]).index("background")
    both = confusion.sum() - confusion[background].sum() - confusion[:, background].sum()
    both += confusion[background, background]
    pet_with_border = both / (confusion.sum() - confusion[background, background])
    original = found["original_size"]
    scores = [found["cross_entropy"], found["pixel_accuracy"], found["miou"], *found["iou"].values(), pet_with_border]
    scores += [original["miou"], original["boundary_miou"]]
    epochs = [str(len(found["history"])), str(found["checkpoint"]["epoch"])]
    return [*epochs, *(f"{value:.3f}" for value in scores)]


def _stops(history: list[dict[str, Any]]) -> list[str]:
    """Return the epoch and the mIoU that other rules to choose a checkpoint, or to stop, would have given."""
    chosen = [min(history, key=lambda epoch: epoch["val_loss"]), max(history, key=lambda epoch: epoch["val_miou"])]
    for patience in PATIENCE:
        best = history[0]
        for epoch in history:
            if epoch["val_loss"] < best["val_loss"]:
                best = epoch
            elif epoch["epoch"] >= best["epoch"] + patience:
                break
        chosen.append(best)
    return [f"{epoch['epoch']}: {epoch['val_miou']:.3f}" for epoch in chosen]


def link(folder: Path, pairs: list[dict[str, str]]) -> tuple[Path, Path]:
    """Return folders of links to the photos and masks of these pairs."""
    for kind in ("image", "mask"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for pair in pairs:
            link = folder / kind / Path(pair[kind]).name
            if not link.is_symlink():
                link.symlink_to(pair[kind])
    return folder / "image", folder / "mask"


def _recipes(_: int) -> list[Way]:
    pretrained = ["--recipe", "pretrained"]
    return [
        Way("keras, 15 epochs", ["--recipe", "keras"]),
        Way("best, 15 epochs", ["--recipe", "best"]),
        Way("pretrained, 5 epochs", [*pretrained, "--epochs", "5"]),
        Way("pretrained, 15 epochs", pretrained),
        Way("pretrained, 15 epochs, 256 × 256", [*pretrained, "--image-size", "256", "256"]),
    ]


def _sizes(_: int) -> list[Way]:
    sides = ("128", "160", "224", "320")
    return [
        Way(f"{side} × {side}", ["--recipe", "pretrained", "--epochs", "5", "--image-size", side, side])
        for side in sides
    ]


def _pairs(total: int) -> list[Way]:
    return [
        Way(f"{recipe}, {count} pairs", ["--recipe", recipe, "--epochs", str(PASSES.get(count, 15))], count)
        for count in [*(count for count in PASSES if count < total), total]
        for recipe in ("best", "pretrained")
    ]


TABLES = {"recipes": _recipes, "sizes": _sizes, "pairs": _pairs}


if __name__ == "__main__":
    main()
