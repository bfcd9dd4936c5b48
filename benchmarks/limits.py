"""How near a prediction job comes to what its parts can do alone.

python benchmarks/predict_rate.py --images FOLDER --checkpoint runs/first

Each round runs every part alone, on all cores, then the job as its user starts it. The job's rate is that between the
commit of its first shard and of its last; from the command to the first commit is start-up, shown apart.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import drawn
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from petseg import checkpoint, images, labels, manifest, rows, shards
from petseg.config import PredictConfig
from petseg.images import Photo
from petseg.predict import Predictor
from petseg.shards import Outputs

ROOT = Path(__file__).parent.parent
SHARD = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="photos, used over and over; default: drawn ones of 500 × 375")
    parser.add_argument("--checkpoint", type=Path, help="default: a network that has learnt nothing, at 160 × 160")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--use-gpu", action="store_true")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="petseg-rate-") as name:
        folder = Path(name)
        run = given.checkpoint or drawn.untrained(folder, (160, 160))
        source, size = (given.images, None) if given.images else (drawn.photos(folder, 64), (500, 375))
        photos = drawn.repeated(folder, source, given.count, size)
        for number in range(given.rounds):
            for part, rate in alone(photos, run, folder, cores, given.use_gpu).items():
                measured.setdefault(part, []).append(rate)
            start_s, rate = job(photos, run, folder / f"out-{number}", given.use_gpu)
            measured.setdefault("job", []).append(rate)
            measured.setdefault("start_s", []).append(start_s)
            print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f}" for k, v in measured.items()), flush=True)
    report(measured, given.count, cores)


def alone(photos: Path, run: Path, folder: Path, cores: int, use_gpu: bool) -> dict[str, float]:
    """Photos per second of each part, with all cores to itself."""
    table = manifest.sample(manifest.discover(str(photos)), max(SHARD, min(1024, 4 * SHARD)))
    parts = [shards.rows_of(table, shard, SHARD) for shard in range(-(-table.num_rows // SHARD))]
    found = checkpoint.find(str(run))
    size = found.model.image_size
    read = partial(rows.read_shard, size_hw=size, max_pixels=10**8, resize=found.model.resize)
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        list(pool.map(read, [part.slice(0, 1) for part in parts for _ in range(2)]))  # the imports
        rates, decoded = {}, []
        rates["decode"] = table.num_rows / timed(lambda: decoded.extend(pool.map(read, parts)))

    torch.set_num_threads(1)
    config = PredictConfig(checkpoint="", images="", output="", use_gpu=use_gpu)
    device = torch.device("cuda" if use_gpu else "cpu")
    network = checkpoint.load_model(found)
    predictor = Predictor(network, device, config.photos_per_pass, size, threads=1 if use_gpu else cores)
    small = [
        Photo(pixels, height, width)
        for part in decoded
        for pixels, height, width in zip(
            images.from_column(part["pixels"], (*size, 3)),
            part["height"].to_pylist(),
            part["width"].to_pylist(),
            strict=True,
        )
        if height is not None
    ]
    list(predictor(small[:64]))
    predictions = []
    rates["model"] = len(small) / timed(lambda: predictions.extend(predictor(small)))

    palette = labels.palette(found.model.num_classes)
    with ThreadPoolExecutor(cores) as pool:
        encode = lambda prediction: images.encode_mask(prediction.mask().class_ids, palette)  # noqa: E731
        pngs: list[bytes] = []
        rates["mask and PNG"] = len(small) / timed(lambda: pngs.extend(pool.map(encode, predictions)))
    outputs = Outputs()
    count = min(len(pngs), SHARD)
    given = {
        "id": [f"{i:06}" for i in range(count)],
        "image": ["photo"] * count,
        "mask_png": pngs[:count],
        "class_pixels": [[1, 2, 3]] * count,
        "confidence": [0.5] * count,
    }
    schema = shards.schema(outputs)
    written = pa.table({name: given.get(name, [None] * count) for name in schema.names}, schema=schema)
    written = written.append_column("shard", pa.array([0] * count)).append_column("preview", pa.nulls(count))
    plans = [
        shards.make_plan(table, str(folder / f"written-{number}"), shard_size=SHARD, outputs=outputs, settings={})
        for number in range(cores)
    ]
    for plan in plans:
        shards.begin(plan)
    with ThreadPoolExecutor(cores) as pool:
        seconds = timed(lambda: list(pool.map(partial(rows.write_shard, written), (plan.target for plan in plans))))
    rates["write"] = count * cores / seconds
    return rates


def job(photos: Path, run: Path, output: Path, use_gpu: bool) -> tuple[float, float]:
    """Seconds to the first commit, and photos per second from there to the last."""
    command = [sys.executable, str(ROOT / "jobs" / "predict.py"), "--checkpoint", str(run), "--images", str(photos)]
    command += ["--output", str(output), "--shard-size", str(SHARD)] + (["--use-gpu"] if use_gpu else [])
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    files = sorted(output.glob("part-*"), key=lambda file: file.stat().st_mtime)
    times = [file.stat().st_mtime for file in files]
    counts = [pq.read_metadata(file).num_rows for file in files]
    return times[0] - started, sum(counts[1:]) / (times[-1] - times[0])


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(measured: dict[str, list[float]], count: int, cores: int) -> None:
    median = {name: statistics.median(values) for name, values in measured.items()}
    parts = [name for name in measured if name not in ("job", "start_s")]
    slower = min(median["decode"], median["model"])
    together = 1 / sum(1 / median[name] for name in parts)
    print(f"\n{count} photos, {cores} cores, medians of {len(measured['job'])} rounds (lowest to highest)\n")
    print("| photos per second | median | spread | the job's share of it |\n|---|---|---|---|")
    for name in [*parts, "job"]:
        spread = f"{min(measured[name]):.0f} to {max(measured[name]):.0f}"
        print(
            f"| {name if name == 'job' else name + ' alone'} | {median[name]:.0f} | {spread} | "
            f"{median['job'] / median[name]:.0%} |"
        )
    print(f"| the slower of decode and model | {slower:.0f} | | {median['job'] / slower:.0%} |")
    print(f"| all parts on the same cores | {together:.0f} | | {median['job'] / together:.0%} |")
    print(f"\nstart-up, from the command to the first shard of {SHARD}: {median['start_s']:.1f} s")


if __name__ == "__main__":
    # Read by Pillow's own loader first, so that its plugins are not imported inside of a measurement.
    Image.init()
    main()
