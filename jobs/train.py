"""Train the U-Net: photos and masks in, a run's folder with checkpoints and metrics out.

python jobs/train.py                                               generated pets, a few minutes on a CPU
python jobs/train.py --images photos --masks masks --name first    your own
ray job submit --working-dir . -- python jobs/train.py …           on a cluster
"""

import shlex
import threading

from petseg import cli, demo, labels, manifest, runs, storage
from petseg.config import InputError, ModelConfig, TrainConfig


def main() -> None:
    config = runs.resolve(cli.parse(TrainConfig), lambda default: cli.parse(TrainConfig, default))
    run = runs.folder(config)
    label_map = labels.LabelMap.parse(config.label_map, config.num_classes)
    if config.images is None:
        print(f"no --images given: drawing {demo.COUNT} pets", flush=True)
        images, masks = demo.draw_set(storage.join(config.storage, "petseg-demo"))
    else:
        images, masks = config.images, config.masks
    pairs = manifest.discover(images, masks)
    val_count = config.val_count or max(1, round(config.val_fraction * pairs.num_rows))
    if pairs.num_rows - val_count < config.batch_size:
        raise InputError(
            f"{images}: of {pairs.num_rows} pairs, {val_count} are for validation, and the rest does not fill one "
            f"batch of {config.batch_size}; add pairs, or lower --val-count, --val-fraction or --batch-size"
        )
    train_pairs, val_pairs = manifest.split(pairs, seed=config.seed, val_count=val_count)

    from petseg import (
        cluster,
        feed,
        train,
    )  # Ray and torch: loaded once the flags and folders are known to be good

    cluster.connect()
    cpus = config.cpus_per_worker or (1 if config.use_gpu else cluster.cpus_per_worker(config.num_workers))
    cluster.require(
        "GPU" if config.use_gpu else "CPU",
        config.num_workers * (1 if config.use_gpu else cpus),
        "--num-workers",
    )
    print(f"decoding {pairs.num_rows} pairs to {config.image_size[0]} × {config.image_size[1]}", flush=True)
    train_rows, val_rows = feed.decode([train_pairs, val_pairs], config.image_size, label_map)
    setup = train.WorkerSetup(
        config=config,
        model=ModelConfig(
            num_classes=config.num_classes,
            image_size=config.image_size,
            class_names=labels.class_names(config.num_classes),
            palette=labels.palette(config.num_classes),
            label_map=str(label_map),
        ),
        run=run,
        cpus=cpus,
        train=train_rows,
        val=val_rows,
    )
    runs.begin(config, train_pairs, val_pairs)
    print(f"training on {train_pairs.num_rows} pairs, validating on {val_count}; run {run}", flush=True)
    with _Progress(run, config.epochs):
        train.fit(setup)

    best = min(runs.read_metrics(run), key=lambda epoch: epoch["val_loss"] or float("inf"))
    print(f"best: epoch {best['epoch']}, val loss {best['val_loss']:.4f}, mIoU {best['val_miou']:.4f}")
    command = [
        "python",
        "jobs/predict.py",
        "--checkpoint",
        run,
        "--images",
        images,
        "--output",
        storage.join(run, "masks"),
    ]
    print(f"next: {shlex.join(command)}")


class _Progress:
    """While entered, prints a line for every epoch that appears in the run's metrics."""

    def __init__(self, run: str, epochs: int) -> None:
        self._run, self._epochs = run, epochs
        self._shown = len(runs.read_metrics(run))
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._watcher.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()
        self._show()

    def _watch(self) -> None:
        while not self._ended.wait(timeout=1):
            self._show()

    def _show(self) -> None:
        epochs = runs.read_metrics(self._run)
        for epoch in epochs[self._shown :]:
            print(runs.describe(epoch, self._epochs), flush=True)
        self._shown = len(epochs)


if __name__ == "__main__":
    cli.run(main)
