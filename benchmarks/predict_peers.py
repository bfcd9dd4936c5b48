"""Predict the masks of a folder with petseg's job, a plain PyTorch script and Keras, and compare their speed.

python benchmarks/predict_peers.py --images FOLDER

Each round runs all three in turn, as a user starts them, on the same photos and cores:

- `jobs/predict.py` writes a PNG for each photo and a row in Parquet, handles errors and kills, and starts Ray;
- `plain_predict.py` has the same network behind a DataLoader, and writes PNG only;
- `keras_unet.py predict` is the example this project comes from, `Model.predict` and a loop with Pillow, PNG only.

Start-up is the time before the first photo: imports, the weights, Ray, a first graph. The peers report how long they
worked after that. The job's rate is that between the commits of its first and its last shard. Its start-up is the total
time minus the time for all photos at that rate, so it includes the shutdown of Ray.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import beside
import drawn
import limits

OURS, PLAIN, KERAS = "jobs/predict.py", "plain PyTorch", "Keras"
WHOLE, START, RATE = "the whole, s", "of it start-up, s", "after it, photos/s"

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="photos, used repeatedly. Default: drawn ones of 500 × 375")
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint. Default: an untrained network at 160 × 160")
    parser.add_argument("--count", type=int, default=3000, help="number of photos")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(beside.about(), flush=True)
    beside.quiet_ray()
    python = beside.peer_python("keras-env", beside.KERAS_NEEDS)
    measured: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="petseg-peers-") as name:
        folder = Path(name)
        run = given.checkpoint or drawn.untrained(folder, (160, 160))
        source, size = (given.images, None) if given.images else (drawn.photos(folder, 64), (500, 375))
        photos = drawn.repeated(folder, source, given.count, size)
        benchmarks = Path(__file__).parent
        plain = [sys.executable, str(benchmarks / "plain_predict.py"), "--checkpoint", str(run)]
        # -E: ignore PYTHONPATH, which is for this environment.
        keras = [str(python), "-E", str(benchmarks / "keras_unet.py"), "predict"]
        programs: dict[str, Callable[[Path], Figures]] = {
            PLAIN: lambda output: peer([*plain, "--photos", str(photos), "--output", str(output)], given.count),
            OURS: lambda output: ours(photos, run, output, given.count),
            KERAS: lambda output: peer([*keras, "--photos", str(photos), "--output", str(output)], given.count),
        }
        for number in range(given.rounds):
            for program, work in programs.items():
                output = folder / "masks"
                for row, value in work(output).items():
                    measured.setdefault(program, {}).setdefault(row, []).append(value)
                written = sum(1 for _ in output.rglob("*.png"))
                assert written == given.count, (program, written)
                shutil.rmtree(output)
            rates = ", ".join(f"{program} {found[RATE][-1]:.1f}" for program, found in measured.items())
            print(f"round {number + 1}: {rates} photos/s", flush=True)
    print(f"\n{given.count} photos, medians of {given.rounds} rounds (lowest to highest)\n")
    print(report(measured))


def ours(photos: Path, run: Path, output: Path, count: int) -> Figures:
    started = time.monotonic()
    _, rate = limits.predict_job(photos, run, output)
    whole_s = time.monotonic() - started
    return {WHOLE: whole_s, START: whole_s - count / rate, RATE: rate}


def peer(command: list[str], count: int) -> Figures:
    started = time.monotonic()
    seconds = beside.answer(command)["seconds"]
    whole_s = time.monotonic() - started
    return {WHOLE: whole_s, START: whole_s - seconds, RATE: count / seconds}


def report(measured: dict[str, dict[str, list[float]]]) -> str:
    """Return a table with a row for each figure. The ratios say how many times as fast petseg's job is."""
    rows = []
    for name in (WHOLE, START, RATE):
        values = {program: found[name] for program, found in measured.items()}
        ratios = [
            beside.ratio(values[OURS], values[other]) if name == RATE else beside.ratio(values[other], values[OURS])
            for other in (PLAIN, KERAS)
        ]
        cells = [beside.cell(values[program], 1) for program in (OURS, PLAIN, KERAS)]
        rows.append([name, *cells, *(["", ""] if name == START else ratios)])
    return beside.table(["", OURS, PLAIN, KERAS, f"times as fast as {PLAIN}", f"as {KERAS}"], rows)


if __name__ == "__main__":
    main()
