"""Run all important measurements of petseg on a GPU, most important first, in one command of eight minutes.

python benchmarks/gpu_all.py --output results                        an H100 or H200
python benchmarks/gpu_all.py --device cpu --tiny --output results    the same on a CPU, to try the script

Sections: a parity with the CPU, b the training step, c a whole training run, d a prediction by stage, e a run with one
rank through Ray Train, killed and resumed. Each result is printed and added to results.jsonl as soon as it is known. A
section that fails gives a result with its error, and the next section runs. A section that is skipped for lack of time
also gives a result. Exit code 1 if anything failed.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import train_gpu
from PIL import Image

from petseg.config.base import Precision
from petseg.config.train import RecipeName, TrainConfig
from petseg.data import decode, demo, encode, labels
from petseg.models import precision
from petseg.models.build import build
from petseg.training import recipes, run_folder
from petseg.training.rank_data import RankData
from petseg.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
STEPS = 5
"""Training steps of the parity check. Rounding errors grow with each step, so a few steps are better than many."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes and numbers of the measurements."""

    image_size: tuple[int, int] = (160, 160)
    batches: tuple[int, ...] = (32, 128, 512)
    steps: int = 60
    pairs: int = 6390
    val_pairs: int = 1000
    epochs: int = 15
    photos: int = 3000
    photo_wh: tuple[int, int] = (500, 375)
    resumed_epochs: int = 6
    backend: str = "inductor"
    """Backend of torch.compile. Compiling takes minutes on two cores; "eager" traces, but does not compile."""


TINY = Scale((32, 32), (4,), 1, 16, 4, 1, 6, (50, 37), 3, "eager")


class Results:
    """Writer of results, one line each, to a file and to the terminal. Also keeps the remaining time."""

    def __init__(self, output: Path, seconds: float) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self._file = output / "results.jsonl"
        self._deadline = time.monotonic() + seconds
        self.failed = False

    def left_s(self) -> float:
        return self._deadline - time.monotonic()

    def add(self, section: str, what: str, **values: Any) -> None:
        line = json.dumps({"section": section, "what": what, **values})
        print(line, flush=True)
        with self._file.open("a") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def guard(self, section: str, what: str) -> Iterator[None]:
        """Turn an error in the block into a result."""
        try:
            yield
        except Exception as error:
            self.failed = True
            self.add(section, what, error=f"{type(error).__name__}: {error}", at=traceback.format_exc()[-600:])


def trainer_on(device: torch.device, dtype: Precision, scale: Scale, recipe: RecipeName = "keras") -> Trainer:
    settings = TrainConfig(recipe=recipe, batch_size=scale.batches[0], augment="off", use_gpu=device.type == "cuda")
    return Trainer(recipes.resolve(settings), train_gpu.model_config(recipe, scale.image_size), device, dtype)


def parity(results: Results, device: torch.device, scale: Scale, folder: Path) -> None:
    """Compare the losses of some steps, and the probabilities, with those of fp32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (8, 3, *scale.image_size), dtype=torch.uint8, generator=generator)
    masks = (photos.float().mean(1) / 86).to(torch.uint8)  # 0 to 2, and learnable from the pixels

    # Every variant predicts with the same weights, which were trained on the CPU.
    reference = trainer_on(CPU, "fp32", scale)
    for number in range(STEPS):
        reference.train_step(photos, masks, number, STEPS, (0, number))
    weights = reference.model.state_dict()

    def run(device: torch.device, dtype: Precision, compiled: bool) -> tuple[list[float], torch.Tensor]:
        trainer = trainer_on(device, dtype, scale)
        network = build(train_gpu.model_config("keras", scale.image_size)).to(device)
        network.load_state_dict(weights)
        if compiled:
            trainer.model.compile(backend=scale.backend)
            network.compile(backend=scale.backend)
        losses = []
        for number in range(STEPS):
            trainer.train_step(photos.to(device), masks.to(device), number, STEPS, (0, number))
            losses.append(trainer.mean_loss())
        with torch.inference_mode(), precision.autocast(dtype, device):
            probabilities = network(photos.to(device)).float().softmax(1).cpu()
        return losses, probabilities

    expected_losses, expected = run(CPU, "fp32", False)
    results.add("a", "CPU, fp32, eager", losses=expected_losses)
    dtypes: tuple[Precision, ...] = ("fp32", "bf16")
    for dtype in dtypes:
        for compiled in (False, True):
            what = f"{device.type}, {dtype}, {'compiled' if compiled else 'eager'}"
            with results.guard("a", what):
                losses, found = run(device, dtype, compiled)
                differences = [abs(a - b) for a, b in zip(losses, expected_losses, strict=True)]
                results.add(
                    "a",
                    what,
                    losses=losses,
                    first_loss_difference=differences[0],
                    largest_loss_difference=max(differences),
                    largest_probability_difference=(found - expected).abs().max().item(),
                    pixels_of_another_class=(found.argmax(1) != expected.argmax(1)).float().mean().item(),
                )


def training_step(results: Results, device: torch.device, scale: Scale, folder: Path) -> None:
    """Measure images per second of a step: alone, with the resident feed, with the streamed feed."""
    import ray

    from petseg.cluster import connect

    connect.connect()
    decoded = train_gpu.random_pairs(scale.pairs, scale.image_size)
    resident = RankData(decoded, 0, 1, device, budget_bytes=float("inf"))
    streamed = RankData(decoded, 0, 1, device, budget_bytes=0)
    modes: dict[str, dict[str, Any] | None] = {
        "eager": None,
        "compiled": {"backend": scale.backend},
        "CUDA graphs": {"mode": "reduce-overhead"},
    }
    for batch_size in scale.batches:
        for recipe in recipes.RECIPES:
            for name, mode in modes.items():
                what = f"{recipe}, batch {batch_size}, {name}"
                if name == "CUDA graphs" and device.type != "cuda":
                    results.add("b", what, skipped="needs CUDA")
                elif results.left_s() < 0:
                    results.add("b", what, skipped="no time left")
                else:
                    with results.guard("b", what):
                        shares = {"resident": resident, "streamed": streamed}
                        values = step_rates(device, recipe, batch_size, mode, shares, scale)
                        results.add("b", what, **values)
    ray.shutdown()


def step_rates(
    device: torch.device,
    recipe: RecipeName,
    batch_size: int,
    mode: dict[str, Any] | None,
    shares: dict[str, RankData],
    scale: Scale,
) -> dict[str, float]:
    settings = TrainConfig(recipe=recipe, batch_size=batch_size, use_gpu=device.type == "cuda")
    dtype = precision.resolve("auto", device)
    trainer = Trainer(recipes.resolve(settings), train_gpu.model_config(recipe, scale.image_size), device, dtype)
    if mode is not None:
        trainer.model.compile(**mode)
    batch = next(shares["resident"].eval_batches(batch_size))
    ways: dict[str, Callable[[], Iterator[Any]]] = {"alone": lambda: iter(lambda: batch, None)}
    ways |= {name: partial(train_gpu.endless, share, batch_size) for name, share in shares.items()}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = {
        f"{name}_images_per_s": scale.steps * batch_size / train_gpu.seconds(trainer, batches(), scale.steps, device)
        for name, batches in ways.items()
    }
    if device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


def whole_run(results: Results, device: torch.device, scale: Scale, folder: Path) -> None:
    """Time a training job from its command to its end."""
    flags = [*train_flags(folder, scale, device), "--name", "whole", "--epochs", str(scale.epochs)]
    taken_s = job("train", flags, folder, results.left_s())
    history = run_folder.read_metrics(str(folder / "runs" / "whole"))
    results.add(
        "c",
        f"{scale.epochs} epochs of {scale.pairs} pairs",
        seconds=taken_s,
        seconds_in_epochs=sum(epoch["seconds"] for epoch in history),
        median_images_per_s=statistics.median(epoch["train_images_per_s"] for epoch in history),
        val_loss=history[-1]["val_loss"],
    )


def prediction(results: Results, device: torch.device, scale: Scale, folder: Path) -> None:
    """Time a prediction job from its command to its end, and each of its stages alone, on one thread."""
    run = folder / "runs" / "whole"
    if not run.exists():
        import drawn

        run = drawn.untrained(folder, scale.image_size)
    width, height = scale.photo_wh
    photos = folder / "photos"
    photos.mkdir()
    draw = partial(draw_photo, photos, (width, height))
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw, range(min(scale.photos, 200))))
    originals = sorted(photos.iterdir())
    for number in range(len(originals), scale.photos):
        (photos / f"{number:06}.jpg").symlink_to(originals[number % len(originals)])
    flags = ["--checkpoint", str(run), "--images", str(photos), "--output", str(folder / "masks")]
    taken_s = job("predict", flags + ["--use-gpu"] * (device.type == "cuda"), folder, results.left_s())
    report = next(line for line in (folder / "predict.log").read_text().splitlines() if " images/s; " in line)
    results.add("d", f"{scale.photos} photos of {width} × {height}", seconds=taken_s, job=report)
    for stage, rate in stages(device, run, [path.read_bytes() for path in originals], scale).items():
        results.add("d", stage, images_per_s=rate)


def stages(device: torch.device, run: Path, contents: list[bytes], scale: Scale) -> dict[str, float]:
    """Return images per second of each stage on the same photos."""
    from petseg.inference.predictor import Predictor
    from petseg.models import checkpoint

    network = checkpoint.load_model(checkpoint.find(str(run)))
    started, rates = time.perf_counter(), {}

    def lap(stage: str) -> None:
        nonlocal started
        train_gpu.synchronize(device)
        rates[stage] = len(contents) / (time.perf_counter() - started)
        started = time.perf_counter()

    photos = [decode.decode_photo(content, scale.image_size, 10**8) for content in contents]
    lap("decode and resize")
    predictor = Predictor(network, device, 32, scale.image_size)
    list(predictor(photos[:32]))
    train_gpu.synchronize(device)
    started = time.perf_counter()
    predictions = list(predictor(photos))
    lap("network")
    masks = [prediction.mask() for prediction in predictions]
    lap("masks at the photo's size")
    for mask in masks:
        encode.encode_mask(mask.class_ids, labels.palette(3))
    lap("PNG")
    return rates


def resumed(results: Results, device: torch.device, scale: Scale, folder: Path) -> None:
    """Compare the last loss of a run with one rank that is killed and resumed with that of an undisturbed run."""
    common = train_flags(folder, dataclasses.replace(scale, pairs=min(scale.pairs, 256)), device)
    common += ["--epochs", str(scale.resumed_epochs), "--precision", "fp32", "--num-workers", "1"]
    job("train", [*common, "--name", "undisturbed"], folder, results.left_s())
    run = folder / "runs" / "killed"
    job("train", [*common, "--name", "killed"], folder, results.left_s(), lambda: len(epochs_of(run)) >= 1)
    at_kill = len(epochs_of(run))
    job("train", [*common, "--name", "killed", "--resume"], folder, results.left_s())
    losses = [epochs_of(folder / "runs" / name)[-1]["train_loss"] for name in ("undisturbed", "killed")]
    results.add("e", f"killed after epoch {at_kill}", losses=losses, difference=abs(losses[0] - losses[1]))


def epochs_of(run: Path) -> list[dict[str, Any]]:
    return run_folder.read_metrics(str(run))


def train_flags(folder: Path, scale: Scale, device: torch.device) -> list[str]:
    """Return the flags of a training job on `scale.pairs` drawn pairs, which are links to a few hundred."""
    total = scale.pairs + scale.val_pairs
    images, trimaps = folder / f"images-{total}", folder / f"trimaps-{total}"
    if not images.exists():
        drawn, _ = demo.draw_set(str(folder / "drawn"), min(240, total))
        sources = sorted(Path(drawn).iterdir())
        images.mkdir()
        trimaps.mkdir()
        for number in range(total):
            source = sources[number % len(sources)]
            (images / f"{number:06}.jpg").symlink_to(source)
            (trimaps / f"{number:06}.png").symlink_to(folder / "drawn" / "trimaps" / f"{source.stem}.png")
    size = [str(side) for side in scale.image_size]
    flags = ["--images", str(images), "--masks", str(trimaps), "--storage", str(folder / "runs")]
    flags += ["--val-count", str(scale.val_pairs), "--batch-size", str(scale.batches[0]), "--image-size", *size]
    return flags + ["--use-gpu"] * (device.type == "cuda")


def draw_photo(folder: Path, size_wh: tuple[int, int], number: int) -> None:
    photo, _ = demo.draw_pair(number)
    photo.resize(size_wh, Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg", quality=90)


def job(
    name: str, flags: list[str], folder: Path, limit_s: float, kill_when: Callable[[], bool] | None = None
) -> float:
    """Run a job and return its seconds. Kill it and its children at the limit, or when `kill_when` is true."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]
    started = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and time.monotonic() - started < limit_s and not (kill_when and kill_when()):
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if kill_when and kill_when():
                return time.monotonic() - started
            raise TimeoutError(f"jobs/{name}.py was not finished after {limit_s:.0f} s")
    if process.returncode:
        raise RuntimeError(f"jobs/{name}.py: {(folder / f'{name}.log').read_text()[-600:]}")
    return time.monotonic() - started


SECTIONS = {"a": parity, "b": training_step, "c": whole_run, "d": prediction, "e": resumed}
WANTED_S = {"a": 60, "b": 20, "c": 60, "d": 60, "e": 60}
"""Minimum remaining seconds to start a section."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda", help="torch device")
    parser.add_argument("--seconds", type=float, default=480, help="time for all sections")
    parser.add_argument("--only", default="a,b,c,d,e", help="sections to run, such as a,c")
    parser.add_argument("--tiny", action="store_true", help="use tiny sizes, to try the script")
    given = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    if not given.tiny:  # a trial may join a running Ray; a measurement starts its own
        os.environ.pop("RAY_ADDRESS", None)
    device, scale = torch.device(given.device), TINY if given.tiny else Scale()
    results = Results(given.output, given.seconds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    results.add("about", name, torch=torch.__version__, date=time.strftime("%Y-%m-%d"))
    with tempfile.TemporaryDirectory(prefix="petseg-gpu-", ignore_cleanup_errors=True) as folder:
        for section in given.only.split(","):
            if results.left_s() < (0 if given.tiny else WANTED_S[section]):
                results.add(section, SECTIONS[section].__name__, skipped="no time left")
                continue
            with results.guard(section, SECTIONS[section].__name__):
                SECTIONS[section](results, device, scale, Path(folder))
    sys.exit(int(results.failed))


if __name__ == "__main__":
    main()
