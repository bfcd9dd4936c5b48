"""Compare the speed of the jobs with that of their parts alone, on the same cores.

python benchmarks/limits.py --images FOLDER

Each round runs every part alone, on all cores, and then both jobs as a user starts them. The rate of the prediction job
is that between the commits of its first and its last shard. The time from the command to the first commit is start-up,
which is reported separately. The rate of the training job is that of its later epochs, without validation.

PyTorch counts the operations of the network as they are computed here: 1.72 GFLOP for one photo if upsampled inputs
were convolved at their full size. For comparison, the table has the speed of one large convolution on this machine, in
the same precision and with nothing else running.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import beside
import drawn
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import train_gpu
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from petseg.config.predict import PredictConfig
from petseg.config.train import TrainConfig
from petseg.data import decode, demo, encode, labels, manifest
from petseg.data.decode import Photo
from petseg.inference import output_folder, plan
from petseg.inference.plan import Outputs
from petseg.inference.predictor import Predictor
from petseg.inference.shard import read_shard, write_shard
from petseg.models import checkpoint, precision
from petseg.training import recipes, run_folder
from petseg.training.trainer import Trainer

SHARD = 256
FORWARD, STEP, PEAK = "model", "training step", "convolution"
PREDICT, TRAIN = "prediction job", "training job"
STEPS = 10
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="photos, used repeatedly. Default: drawn ones of 500 × 375")
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint. Default: an untrained network at 160 × 160")
    parser.add_argument("--count", type=int, default=3000, help="number of photos of the prediction job")
    parser.add_argument("--pairs", type=int, default=480, help="number of drawn pairs of the training job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--use-gpu", action="store_true")
    given = parser.parse_args()
    print(beside.about(), flush=True)
    beside.quiet_ray()
    cores = len(beside.cores())
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="petseg-limits-") as name:
        folder = Path(name)
        run = given.checkpoint or drawn.untrained(folder, (160, 160))
        source, size = (given.images, None) if given.images else (drawn.photos(folder, 64), (500, 375))
        photos = drawn.repeated(folder, source, given.count, size)
        pairs = demo.draw_set(str(folder / "pairs"), count=given.pairs, seed=1)
        for number in range(given.rounds):
            found = alone(photos, run, folder, cores, given.use_gpu) | step(cores, given.use_gpu)
            start_s, found[PREDICT] = predict_job(photos, run, folder / f"out-{number}", given.use_gpu)
            found[TRAIN] = train_job(pairs, folder / "runs", f"round-{number}", given.use_gpu)
            for part, rate in (found | {"start_s": start_s}).items():
                measured.setdefault(part, []).append(rate)
            print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f}" for k, v in measured.items()), flush=True)
    report(measured, given.count, cores)


def alone(photos: Path, run: Path, folder: Path, cores: int, use_gpu: bool) -> dict[str, float]:
    """Return photos per second of each part, run alone on all cores."""
    table = manifest.sample(manifest.discover(str(photos)), max(SHARD, min(1024, 4 * SHARD)))
    job = plan.make_plan(table, str(folder), shard_size=SHARD, outputs=Outputs(), settings={})
    parts = [job.rows(shard) for shard in range(job.target.num_shards)]
    found = checkpoint.find(str(run))
    size = found.model.image_size
    read = partial(read_shard, size_hw=size, max_pixels=10**8, resize=found.model.resize)
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        list(pool.map(read, [part.slice(0, 1) for part in parts for _ in range(2)]))  # imports modules
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
            decode.from_column(part["pixels"], (*size, 3)),
            part["height"].to_pylist(),
            part["width"].to_pylist(),
            strict=True,
        )
        if height is not None
    ]
    list(predictor(small[:64]))
    predictions = []
    rates[FORWARD] = len(small) / timed(lambda: predictions.extend(predictor(small)))

    palette = labels.palette(found.model.num_classes)
    with ThreadPoolExecutor(cores) as pool:
        to_png = lambda prediction: encode.encode_mask(prediction.mask().class_ids, palette)  # noqa: E731
        pngs: list[bytes] = []
        rates["mask and PNG"] = len(small) / timed(lambda: pngs.extend(pool.map(to_png, predictions)))
    outputs = Outputs()
    count = min(len(pngs), SHARD)
    given = {
        "id": [f"{i:06}" for i in range(count)],
        "image": ["photo"] * count,
        "mask_png": pngs[:count],
        "class_pixels": [[1, 2, 3]] * count,
        "confidence": [0.5] * count,
    }
    schema = plan.schema(outputs)
    written = pa.table({name: given.get(name, [None] * count) for name in schema.names}, schema=schema)
    written = written.append_column("shard", pa.array([0] * count)).append_column("preview", pa.nulls(count))
    plans = [
        plan.make_plan(table, str(folder / f"written-{number}"), shard_size=SHARD, outputs=outputs, settings={})
        for number in range(cores)
    ]
    for job in plans:
        output_folder.begin(job)
    with ThreadPoolExecutor(cores) as pool:
        seconds = timed(lambda: list(pool.map(partial(write_shard, written), (job.target for job in plans))))
    rates["write"] = count * cores / seconds
    return rates


def step(cores: int, use_gpu: bool) -> dict[str, float]:
    """Return images per second of a training step, and GFLOP per second of a convolution."""
    device = torch.device("cuda" if use_gpu else "cpu")
    torch.set_num_threads(cores)
    config = recipes.resolve(TrainConfig(recipe="keras", batch_size=BATCH, use_gpu=use_gpu))
    dtype = precision.resolve("auto", device)
    trainer = Trainer(config, train_gpu.MODEL, device, dtype)
    height, width = train_gpu.SIZE
    photos = torch.randint(0, 256, (BATCH, height, width, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    masks = torch.randint(0, 3, (BATCH, height, width), dtype=torch.uint8, device=device)
    batches = iter(lambda: (photos, masks), None)
    rate = STEPS * BATCH / train_gpu.seconds(trainer, batches, STEPS, device)
    return {STEP: rate, PEAK: convolution(device)}


@torch.inference_mode()
def convolution(device: torch.device) -> float:
    """Return GFLOP per second of one 3×3 convolution of 256 to 256 channels."""
    x = torch.ones(8, 256, 40, 40, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(256, 256, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    flop = 2 * x.numel() * 256 * 9

    def some() -> None:
        for _ in range(STEPS):
            F.conv2d(x, weight, padding=1)
        train_gpu.synchronize(device)

    with precision.autocast(precision.resolve("auto", device), device):
        x, weight = (tensor.to(torch.get_autocast_dtype(device.type)) for tensor in (x, weight))
        some()
        return STEPS * flop / timed(some) / 1e9


def gflop() -> float:
    """Return the operations of one forward pass of the network for one photo, in 10⁹."""
    trainer = Trainer(recipes.resolve(TrainConfig(recipe="keras")), train_gpu.MODEL, torch.device("cpu"), "fp32")
    with FlopCounterMode(display=False) as counted:
        trainer.model(torch.zeros(1, 3, *train_gpu.SIZE))
    return counted.get_total_flops() / 1e9


def predict_job(photos: Path, run: Path, output: Path, use_gpu: bool = False) -> tuple[float, float]:
    """Run a prediction job. Return seconds to the first commit, and photos per second from there to the last."""
    command = [sys.executable, str(beside.ROOT / "jobs" / "predict.py"), "--checkpoint", str(run)]
    command += ["--images", str(photos), "--output", str(output), "--shard-size", str(SHARD)]
    started = time.time()
    beside.run(command + ["--use-gpu"] * use_gpu)
    files = sorted(output.glob("part-*"), key=lambda file: file.stat().st_mtime)
    times = [file.stat().st_mtime for file in files]
    counts = [pq.read_metadata(file).num_rows for file in files]
    return times[0] - started, sum(counts[1:]) / (times[-1] - times[0])


def train_job(pairs: tuple[str, str], storage: Path, name: str, use_gpu: bool) -> float:
    """Run three epochs of training. Return the median images per second of the epochs after the first."""
    command = [sys.executable, str(beside.ROOT / "jobs" / "train.py"), "--images", pairs[0], "--masks", pairs[1]]
    command += ["--recipe", "keras", "--val-count", str(BATCH), "--epochs", "3"]
    beside.run([*command, "--storage", str(storage), "--name", name] + ["--use-gpu"] * use_gpu)
    epochs = run_folder.read_metrics(str(storage / name))
    return statistics.median(epoch["train_images_per_s"] for epoch in epochs[1:])


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(measured: dict[str, list[float]], count: int, cores: int) -> None:
    median = {name: statistics.median(values) for name, values in measured.items()}
    parts = [name for name in measured if name not in (PREDICT, TRAIN, STEP, PEAK, "start_s")]
    slower = min(median["decode"], median[FORWARD])
    together = 1 / sum(1 / median[name] for name in parts)
    print(f"\n{count} photos, {cores} cores, medians of {len(measured[PREDICT])} rounds (lowest to highest)\n")
    rows = [
        [f"{name} alone", beside.cell(measured[name]), beside.ratio(measured[PREDICT], measured[name])]
        for name in parts
    ]
    rows.append(["the slower of decode and model", f"{slower:.0f}", f"{median[PREDICT] / slower:.2f}"])
    rows.append(["all parts on the same cores", f"{together:.0f}", f"{median[PREDICT] / together:.2f}"])
    rows.append([PREDICT, beside.cell(measured[PREDICT]), ""])
    print(beside.table(["prediction, photos/s", "", f"{PREDICT} ÷ it"], rows))
    print(f"\nstart-up, from the command to the first shard of {SHARD}: {beside.cell(measured['start_s'], 1)} s\n")
    rows = [
        [f"{STEP} alone", beside.cell(measured[STEP], 1), beside.ratio(measured[TRAIN], measured[STEP])],
        [TRAIN, beside.cell(measured[TRAIN], 1), ""],
    ]
    print(beside.table([f"training in batches of {BATCH}, images/s", "", f"{TRAIN} ÷ it"], rows) + "\n")
    rows = [
        [name, f"{per_photo:.2f}", beside.cell([rate * per_photo for rate in measured[name]])]
        for name, per_photo in ((FORWARD, gflop()), (STEP, 3 * gflop()))  # the backward pass has two products for each
    ]
    rows.append(["one large convolution", "", beside.cell(measured[PEAK])])
    print(beside.table(["operations", "GFLOP a photo", "GFLOP/s"], rows))


if __name__ == "__main__":
    # Load Pillow's plugins before the measurements.
    Image.init()
    main()
