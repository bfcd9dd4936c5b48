"""Train the U-Net: photos and masks in, a run's folder with checkpoints and metrics out.

python jobs/train.py                                               generated pets, a few minutes on a CPU
python jobs/train.py --images photos --masks masks --name first    your own
ray job submit --working-dir . -- python jobs/train.py …           on a cluster
"""

import contextlib
import shlex
import threading

import pyarrow as pa

from petseg import cli, demo, labels, manifest, runs, storage
from petseg.config import InputError, ModelConfig, TrainConfig


def main() -> None:
    resumed = cli.peek_resume()
    first = runs.first_settings(*resumed) if resumed else None
    config = runs.resolve(cli.parse(TrainConfig, first), first)
    run = runs.folder(config)
    finished = len(runs.read_metrics(run))
    if finished >= config.epochs:
        print(f"{run} has its {finished} epochs; give more with --epochs")
        return
    label_map = labels.LabelMap.parse(config.label_map, config.num_classes)
    images, train_pairs, val_pairs = _find_pairs(config)

    # Ray and torch take seconds to load: only once the flags and folders are known to be good.
    from petseg import checkpoint, cluster, feed, train

    cluster.connect()
    if config.use_gpu:
        cpus = config.cpus_per_worker or 1
        cluster.require("GPU", config.num_workers, "--num-workers with --use-gpu")
    else:
        cpus = config.cpus_per_worker or cluster.cpus_per_worker(config.num_workers)
        cluster.require("CPU", config.num_workers * cpus, "--num-workers")
    train_rows, val_rows = feed.decode([train_pairs, val_pairs], config.image_size, label_map)
    model = ModelConfig(
        num_classes=config.num_classes,
        image_size=config.image_size,
        class_names=labels.class_names(config.num_classes),
        palette=labels.palette(config.num_classes),
        label_map=str(label_map),
    )
    for name, pixels in zip(model.class_names, train_rows.class_pixels, strict=True):
        if not pixels:
            print(f"warning: no pixel of {name} in the masks to train on; see --label-map (now {label_map})")
    runs.begin(config, train_pairs, val_pairs)
    print(f"training on {train_rows.num_rows} pairs, validating on {val_rows.num_rows}; run {run}", flush=True)
    with _Progress(run, config.epochs):
        train.fit(train.WorkerSetup(config=config, model=model, run=run, cpus=cpus, train=train_rows, val=val_rows))

    best = checkpoint.best(run)
    assert best is not None
    scores = best.history[-1]
    print(f"best: epoch {best.epoch}, val loss {runs.score(scores['val_loss'])}, mIoU {runs.score(scores['val_miou'])}")
    flags = ["--checkpoint", run, "--images", images, "--output", storage.join(run, "predictions")]
    print(f"next: python jobs/predict.py {shlex.join(flags)}")


def _find_pairs(config: TrainConfig) -> tuple[str, pa.Table, pa.Table]:
    """The folder of the photos, and the pairs to train on and to validate on; without --images, draws the demo set."""
    images, masks = config.images, config.masks
    if images is None or masks is None:
        print(f"no --images given: drawing {demo.COUNT} pets", flush=True)
        images, masks = demo.draw_set(storage.join(config.storage, "petseg-demo"))
    pairs = manifest.discover(images, masks)
    val_count = config.val_count or max(1, round(config.val_fraction * pairs.num_rows))
    if pairs.num_rows - val_count < config.batch_size:
        raise InputError(
            f"{images}: of {pairs.num_rows} pairs, {val_count} are for validation, and the rest does not fill one "
            f"batch of {config.batch_size}; add pairs, or lower --val-count, --val-fraction or --batch-size"
        )
    print(f"decoding {pairs.num_rows} pairs to {config.image_size[0]} × {config.image_size[1]}", flush=True)
    return images, *manifest.split(pairs, seed=config.seed, val_count=val_count)


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
            # A look that storage refuses is made up for by the next, and the last one raises.
            with contextlib.suppress(OSError):
                self._show()

    def _show(self) -> None:
        epochs = runs.read_metrics(self._run)
        for epoch in epochs[self._shown :]:
            print(runs.describe(epoch, self._epochs), flush=True)
        self._shown = len(epochs)


if __name__ == "__main__":
    cli.run(main)
