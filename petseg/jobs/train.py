"""Train the U-Net: photos and masks in, a run's folder with checkpoints and metrics out.

python jobs/train.py                                               generated pets, a few minutes on a CPU
python jobs/train.py --images photos --masks masks --name first    your own
ray job submit --working-dir . -- python jobs/train.py …           on a cluster
"""

import contextlib
import dataclasses
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.base import ModelConfig, Resize
from petseg.config.train import TrainConfig
from petseg.data import demo, labels, manifest, prepared, splits
from petseg.data.labels import LabelMap
from petseg.data.prepared import Prepared
from petseg.errors import InputError
from petseg.progress import Clock
from petseg.reports import jobs as reports
from petseg.training import recipes, run_folder, trackers

if TYPE_CHECKING:
    from torch import Tensor

    from petseg.training.loop import WorkerSetup


def main() -> None:
    """Parse `sys.argv`, train, and write the run's report."""
    resumed = cli.peek_resume()
    first = run_folder.first_settings(*resumed) if resumed else None
    config = run_folder.resolve(cli.parse("train", TrainConfig, first, about=__doc__), first)
    run = run_folder.folder(config)
    finished = len(run_folder.read_metrics(run))
    # Where a kill came between the last epoch and the report, what follows trains no more and writes it.
    if finished >= config.epochs and files.REPORT in storage.list_names(run):
        print(f"{run} has its {finished} epochs; give more with --epochs")
        return
    trackers.require_trackers(config)
    clock = Clock()
    pairs = _find_pairs(config)

    # Ray and torch take seconds to load: only once the flags and folders are known to be good.
    from petseg.models import checkpoint
    from petseg.training import loop

    setup = _set_up(config, run, pairs, clock)
    run_folder.begin(config, pairs.sides)
    print(f"training on {setup.train.num_rows} pairs, validating on {setup.val.num_rows}; run {run}", flush=True)
    try:
        with _Progress(run, config.epochs), cli.on_interrupt(_go_on(config)):
            loop.fit(setup)
    except BaseException:
        clock.lap("training")
        with contextlib.suppress(OSError, InputError):  # what has gone wrong already is what the user is told
            _write_report(setup, pairs, clock, with_samples=False)
        raise
    clock.lap("training")

    best = checkpoint.best(run)
    assert best is not None
    scores = best.history[-1]
    _write_report(setup, pairs, clock, with_samples=True)
    print(
        f"best: epoch {best.epoch}, val loss {run_folder.score(scores['val_loss'])}, "
        f"mIoU {run_folder.score(scores['val_miou'])}"
    )
    print(f"next: {_predict_command(run, pairs)}")


def _set_up(config: TrainConfig, run: str, pairs: "_Pairs", clock: Clock) -> "WorkerSetup":
    """Ray joined, the pairs decoded, and all that the workers are told."""
    from petseg.cluster import connect
    from petseg.pipelines.decode import decode, load
    from petseg.training import loop, losses

    model, weights = _network(config, run, pairs)
    clock.lap("listing, imports")
    connect.connect()
    places = {"--storage": run, "--data": config.data, "--images": config.images, "--masks": config.masks}
    places = {flag: place for flag, place in places.items() if place}
    connect.require_shared(places)
    if not config.use_gpu and not config.cpus_per_worker:  # their cores are shared once there are some
        connect.require({"CPU": 1}, config.min_workers, "--num-workers", config.wait_min * 60)
    cpus = config.cpus_per_worker or (1 if config.use_gpu else connect.cpus_per_worker(config.max_workers))
    loop.require_workers(config, cpus)
    connect.require_shared(places)  # nodes may have come
    clock.lap("starting Ray")
    sides = [pairs.sides["train"], pairs.sides["val"]]
    if pairs.dataset is not None:
        train_rows, val_rows = load(pairs.dataset, sides)
    else:
        train_rows, val_rows = decode(sides, pairs.image_size, pairs.label_map, pairs.resize)
    clock.lap("decoding")
    for name, pixels in zip(pairs.classes, train_rows.class_pixels, strict=True):
        if not pixels:
            print(f"warning: no pixel of {name} in the masks to train on; see --label-map (now {pairs.label_map})")
    return loop.WorkerSetup(
        config=config,
        model=model,
        run=run,
        cpus=cpus,
        train=train_rows,
        val=val_rows,
        class_weights=losses.class_weights(config.class_weights, train_rows.class_pixels),
        init_from=weights,
    )


def _network(config: TrainConfig, run: str, pairs: "_Pairs") -> tuple[ModelConfig, "dict[str, Tensor] | None"]:
    """What the network is, and the weights of another run to begin with, where they are asked for."""
    from petseg.models import checkpoint

    recipe = recipes.RECIPES[config.recipe]
    model = ModelConfig(
        num_classes=len(pairs.classes),
        image_size=pairs.image_size,
        class_names=pairs.classes,
        palette=labels.palette(len(pairs.classes)),
        label_map=str(pairs.label_map),
        resize=pairs.resize,
        input_scale=recipe.input_scale,
        input_offset=recipe.input_offset,
    )
    last = checkpoint.last(run)
    if last is not None:  # here it is one line, in the workers a traceback from each
        checkpoint.load_model(last)
        checkpoint.load_train_state(last)
        return _same_model(model, last.model, run), None
    if config.init_from:
        return checkpoint.begin_from(config.init_from, model)
    return model, None


def _go_on(config: TrainConfig) -> str:
    flags = ["--name", config.name, "--storage", config.storage, "--resume"]
    return f"go on with: {command_line('train', flags)}"


def _predict_command(run: str, pairs: "_Pairs") -> str:
    flags = ["--checkpoint", run, "--images", pairs.images, "--output", storage.join(run, "predictions")]
    return command_line("predict", flags)


def _write_report(setup: "WorkerSetup", pairs: "_Pairs", clock: Clock, *, with_samples: bool) -> None:
    """The run's `report.html`, where there is an epoch to report."""
    from petseg.models import checkpoint
    from petseg.training import samples

    def make() -> bytes:
        best = checkpoint.best(run)
        assert best is not None
        shown, confusion, counted = {}, None, 0
        if with_samples:
            network = checkpoint.load_model(best)
            looked, counts = samples.look(network, best.model, setup.val, pairs.sides["val"]["id"])
            choice = reports.choose([sample.cross_entropy for sample in looked])
            shown = {title: [vars(looked[place]) for place in places] for title, places in choice.items()}
            confusion, counted = counts.confusion.tolist(), len(looked)
            clock.lap("the report's samples")
        return reports.of_training(
            name=setup.config.name,
            settings=dataclasses.asdict(setup.config),
            pairs={side: rows.num_rows for side, rows in pairs.sides.items()},
            history=run_folder.read_metrics(run),
            samples=shown,
            confusion=confusion,
            counted=counted,
            seconds=clock.laps,
            commands=[_predict_command(run, pairs)],
        )

    run = setup.run
    if run_folder.read_metrics(run):
        reports.keep(run, make)


def _same_model(model: ModelConfig, before: ModelConfig, run: str) -> ModelConfig:
    """The settings of a resumed run's network. Raises `InputError` where what it is given now is for another."""
    model = dataclasses.replace(model, input_scale=before.input_scale, input_offset=before.input_offset)
    changed = [name for name, value in dataclasses.asdict(before).items() if dataclasses.asdict(model)[name] != value]
    if changed:
        raise InputError(
            f"--resume: {run} was trained with another {', '.join(changed)} than --data has now; start a new run"
        )
    return model


@dataclass(frozen=True)
class _Pairs:
    """What there is to train on, and how to take it."""

    images: str
    """Folder of the photos."""
    sides: dict[str, pa.Table]
    """Manifest of the pairs to train on, to validate on, and of those that are kept for a test."""
    classes: tuple[str, ...]
    label_map: LabelMap
    image_size: tuple[int, int]
    resize: Resize
    dataset: Prepared | None = None
    """The set that has them decoded already."""


def _find_pairs(config: TrainConfig) -> _Pairs:
    """The pairs that the flags name; without --images or --data, draws the demo set."""
    if config.data is not None:
        return _prepared_pairs(config, config.data)
    images, masks = config.images, config.masks
    if images is None or masks is None:
        print(f"no --images given: drawing {demo.COUNT} pets", flush=True)
        images, masks = demo.draw_set(storage.join(config.storage, "petseg-demo"))
    classes = labels.class_names(config.num_classes, config.classes)
    label_map = LabelMap.parse(config.label_map, len(classes), classes, config.ignore_label)
    pairs = manifest.discover(images, masks)
    sides = _split(config, pairs, images)
    count = sum(side.num_rows for side in sides.values())
    print(f"decoding {count} pairs to {config.image_size[0]} × {config.image_size[1]}", flush=True)
    return _Pairs(images, sides, classes, label_map, config.image_size, recipes.RECIPES[config.recipe].resize)


def _prepared_pairs(config: TrainConfig, location: str) -> _Pairs:
    """The pairs of a prepared set. Raises `InputError` where flags ask for what is settled there."""
    dataset = prepared.open_set(location)
    settings = dataset.settings
    for flag in ("classes", "num_classes", "label_map", "ignore_label", "image_size"):
        if getattr(config, flag) != getattr(TrainConfig(), flag):
            name = flag.replace("_", "-")
            raise InputError(f"--{name}: {location} has its own; leave --{name} out, or prepare the set again with it")
    if settings.resize != recipes.RECIPES[config.recipe].resize:
        print(f"note: the photos of {location} were resized otherwise ({settings.resize}) than --recipe does")
    classes = settings.class_names
    label_map = LabelMap.parse(settings.label_map, len(classes))
    sides = _split(config, dataset.manifest, location)
    return _Pairs(settings.images, sides, classes, label_map, settings.image_size, settings.resize, dataset)


def _split(config: TrainConfig, pairs: pa.Table, images: str) -> dict[str, pa.Table]:
    """The pairs to train on, in the seeded order, and those of the other sides."""
    held_out = {"val_count": config.val_count, "val_fraction": config.val_fraction}
    sides, notes = splits.divide(pairs, config.split_file, seed=config.seed, **held_out)
    for note in notes:
        print(note)
    batch_size = config.batch_size or 1
    if sides["train"].num_rows < batch_size:
        raise InputError(
            f"{images}: {sides['train'].num_rows} pairs to train on, beside {sides['val'].num_rows} for validation, do "
            f"not fill one batch of {batch_size}; add pairs, or lower --val-count, --val-fraction or --batch-size"
        )
    return sides


class _Progress:
    """While entered, prints a line for every epoch that appears in the run's metrics."""

    def __init__(self, run: str, epochs: int) -> None:
        self._run, self._epochs = run, epochs
        self._shown = len(run_folder.read_metrics(run))
        self._first: tuple[int, float] | None = None  # epoch that was seen first, and when
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._watcher.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._watcher.join()
        # What has gone wrong already is what the user is told.
        with contextlib.suppress(OSError, InputError) if kind else contextlib.nullcontext():
            self._show()

    def _watch(self) -> None:
        while not self._ended.wait(timeout=1):
            # A look that storage refuses is made up for by the next, and the last one raises.
            with contextlib.suppress(OSError, InputError):
                self._show()

    def _show(self) -> None:
        epochs = run_folder.read_metrics(self._run)
        now = time.monotonic()
        for epoch in epochs[self._shown :]:
            number, since = self._first = self._first or (epoch["epoch"], now)
            seen = (now - since) / max(1, epoch["epoch"] - number)
            # An epoch's own seconds have no checkpoint in them; of epochs that are seen at once there are no others.
            print(run_folder.describe(epoch, self._epochs, max(seen, epoch["seconds"])), flush=True)
        self._shown = len(epochs)


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
