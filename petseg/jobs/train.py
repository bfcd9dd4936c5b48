"""Train the U-Net on photos and masks, and save checkpoints and metrics in the run's folder.

python jobs/train.py                                               generated pets, a few minutes on a CPU
python jobs/train.py --images photos --masks masks --name first    your own photos and masks
ray job submit --working-dir . -- python jobs/train.py …           on a cluster
"""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, NoReturn

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.cli.job_status import report_status
from petseg.cli.json_log import set_log_format
from petseg.config.model import ModelConfig
from petseg.config.train import TrainConfig
from petseg.data import labels
from petseg.data.photo_table import place_to_share
from petseg.data.tiles import tiling_of
from petseg.errors import InputError
from petseg.progress import Clock
from petseg.reports import sections
from petseg.reports.train import TrainingReport, training_page
from petseg.status import JobStatus
from petseg.storage.hold import hold
from petseg.training import run_folder, trackers
from petseg.training.epoch_printer import EpochPrinter
from petseg.training.recipes import RECIPES
from petseg.training.training_set import TrainingSet, find_pairs, require_crops

_FEW_PAIRS = 1000
"""Number of training pairs below which a network from random weights is far worse than a pretrained one."""

if TYPE_CHECKING:
    from torch import Tensor

    from petseg.pipelines.decode import Decoded
    from petseg.training.loop import WorkerSetup


def main() -> None:
    """Parse `sys.argv`, train, and write the run's report."""
    resumed = cli.peek_resume()
    first = run_folder.first_settings(*resumed) if resumed else None
    config = run_folder.resolve(cli.parse("train", TrainConfig, first, about=__doc__), first)
    set_log_format(config.log_format, "train")
    run = run_folder.folder(config)
    epochs_done = len(run_folder.read_metrics(run))
    # If all epochs are done but the report is missing, the run was killed before writing it: continue, to write it.
    if epochs_done >= config.epochs and files.REPORT in storage.list_names(run):
        print(f"{run} already has {epochs_done} epochs; to train more, raise --epochs")
        return
    trackers.require_trackers(config)
    clock = Clock()
    pairs = find_pairs(config)
    with hold(run, "--storage") as is_held, report_status("train", run, is_held) as status:
        _train(config, run, pairs, clock, status, first.epochs if first else config.epochs)


def _train(
    config: TrainConfig, run: str, pairs: TrainingSet, clock: Clock, status: JobStatus, epochs_before: int
) -> None:
    """Train until all epochs are done, and write the run's report. `epochs_before` is --epochs of the start before."""

    # Importing Ray and torch takes seconds, so invalid flags and data are reported first.
    from petseg.models import checkpoint
    from petseg.training.fit import fit, schedule_note

    setup = _set_up(config, run, pairs, clock, status)
    run_folder.begin(config, pairs.parts)
    pairs_are_own = bool(config.images or config.data)
    num_train, num_val = pairs.parts["train"].num_rows, pairs.parts["val"].num_rows
    if setup.init_from is None and pairs_are_own and num_train < _FEW_PAIRS and not config.resume:
        print("note: the network starts from random weights; for so few pairs --recipe pretrained gives better masks")
    if note := schedule_note(setup, epochs_before):
        print(note)
    crops = f" ({setup.train.num_rows} and {setup.val.num_rows} crops)" if config.crop else ""
    print(f"training on {num_train} pairs, validating on {num_val}{crops}; run {run}", flush=True)
    try:
        remedy = f"continue with: {_resume_command(config)}"
        status.enter("training")
        rows, unit = setup.train.num_rows, "crops" if config.crop else "images"
        with EpochPrinter(run, config.epochs, status, rows, unit) as printer, cli.on_interrupt(remedy):
            fit(setup, pipe=printer.pipe, on_wait=status.wait)
    except BaseException:
        clock.lap("training")
        # A failing report must not hide the error that ended the training.
        with contextlib.suppress(Exception):
            _write_report(setup, pairs, clock, with_samples=False)
        raise
    clock.lap("training")
    status.enter("writing the report")

    best = checkpoint.best(run)
    assert best is not None
    scores = best.history[-1]
    _write_report(setup, pairs, clock, with_samples=True)
    print(
        f"best: epoch {best.epoch}, val loss {run_folder.format_score(scores['val_loss'])}, "
        f"mIoU {run_folder.format_score(scores['val_miou'])}"
    )
    print(f"next: {_predict_command(run, pairs)}")


def _set_up(config: TrainConfig, run: str, pairs: TrainingSet, clock: Clock, status: JobStatus) -> "WorkerSetup":
    """Join Ray, decode the pairs, and return everything that the workers need."""
    from petseg.cluster import connect, metrics, resources
    from petseg.training import losses
    from petseg.training.fit import require_workers
    from petseg.training.loop import WorkerSetup

    model, weights = _resolve_model(config, run, pairs)
    clock.lap("listing files, importing")
    status.enter("starting Ray")
    connect.connect(debug=cli.is_debugging())
    metrics.export_status(status)
    locations = {"--storage": run, "--data": config.data}
    if config.images and config.masks:
        rows = pairs.parts["train"]
        locations["--images"] = place_to_share(config.images, rows["image"])
        locations["--masks"] = place_to_share(config.masks, rows["mask"])
    locations = {flag: location for flag, location in locations.items() if location}
    resources.require_shared(locations)
    # The cores per CPU worker depend on the nodes, so wait until enough nodes have joined.
    if not config.use_gpu and not config.cpus_per_worker:
        resources.require({"CPU": 1}, config.min_workers, "--num-workers", config.wait_min * 60, status.wait)
    cpus = config.cpus_per_worker or (1 if config.use_gpu else resources.cpus_per_worker(config.max_workers))
    require_workers(config, cpus, status.wait)
    resources.require_shared(locations)  # again, because nodes may have joined while waiting
    clock.lap("starting Ray")
    status.enter("decoding")
    train, val = _decode(config, model, pairs)
    clock.lap("decoding")
    for name, pixels in zip(pairs.classes.names, train.class_pixels, strict=True):
        if not pixels:
            label_map = pairs.classes.label_map
            remedy = "" if config.crop else f"; check --label-map (now {label_map})"
            print(f"warning: no training {'crop' if config.crop else 'mask'} contains {name}{remedy}")
    return WorkerSetup(
        config=config,
        model=model,
        run=run,
        cpus=cpus,
        train=train,
        val=val,
        class_weights=losses.class_weights(config.class_weights, train.class_pixels),
        init_from=weights,
    )


def _decode(config: TrainConfig, model: ModelConfig, pairs: TrainingSet) -> "list[Decoded]":
    """Return the decoded training and validation pairs, or crops of them."""
    from petseg.pipelines.decode import decode, load

    parts = {"training": pairs.parts["train"], "validation": pairs.parts["val"]}
    if pairs.dataset is not None:
        return load(pairs.dataset, parts)
    size, label_map, tiling = pairs.image_size, pairs.classes.label_map, tiling_of(model)
    decoded = decode(parts, size, label_map, pairs.resize, config.masks_upright, tiling, config.seed)
    if tiling is not None:
        require_crops(config, pairs, decoded[0].num_rows)
    return decoded


def _resolve_model(config: TrainConfig, run: str, pairs: TrainingSet) -> tuple[ModelConfig, "dict[str, Tensor] | None"]:
    """Return (settings of the network, weights to start from or None). Checks the last checkpoint of a resumed run."""
    from petseg.models import checkpoint, encoder_weights

    kept = config.keep_best_by.removeprefix("iou:")
    if config.keep_best_by.startswith("iou:") and kept not in pairs.classes.names:
        names = ", ".join(pairs.classes.names)
        raise InputError(f"--keep-best-by {config.keep_best_by}: no such class; the classes are {names}")
    recipe = RECIPES[config.recipe]
    network = config.network or recipe.network
    model = ModelConfig(
        num_classes=len(pairs.classes.names),
        image_size=pairs.image_size,
        class_names=pairs.classes.names,
        palette=pairs.classes.palette,
        label_map=str(pairs.classes.label_map),
        scale=pairs.scale,
        resize=pairs.resize,
        input_scale=recipe.input_scale,
        input_offset=recipe.input_offset,
    )
    if network != "unet":
        model = encoder_weights.with_encoder(model, network)
    elif config.encoder_weights:
        raise InputError(f"--encoder-weights {config.encoder_weights}: the network unet has no encoder; see --network")
    last = checkpoint.last(run)
    # Both files are loaded here once: an error prints one line here, but one traceback per worker there.
    if last is not None:
        checkpoint.load_model(last)
        checkpoint.load_train_state(last)
        return _require_same_model(model, last.model, run), None
    if config.init_from:
        return checkpoint.load_pretrained(config.init_from, model)
    if network != "unet":
        return model, encoder_weights.load_encoder_weights(model, config.encoder_weights)
    return model, None


def _require_same_model(model: ModelConfig, before: ModelConfig, run: str) -> ModelConfig:
    """Return the network's settings for resuming: `model`, with the scaling and colours of `before`.

    Raises `InputError` if they still differ from `before`.
    """
    kept = ["input_scale", "input_offset", "palette", "encoder_library"]
    if model.class_names == labels.class_names(model.num_classes):  # default names: keep the run's own
        kept.append("class_names")
    model = dataclasses.replace(model, **{name: getattr(before, name) for name in kept})
    changed = [name for name, value in dataclasses.asdict(before).items() if dataclasses.asdict(model)[name] != value]
    if changed:
        raise InputError(
            f"--resume: {', '.join(changed)} changed since {run} was started; restore the old data, or start a new run"
        )
    return model


def _resume_command(config: TrainConfig) -> str:
    return command_line("train", ["--name", config.name, "--storage", config.storage, "--resume"])


def _predict_command(run: str, pairs: TrainingSet) -> str:
    flags = ["--checkpoint", run, "--images", pairs.images, "--output", storage.join(run, "predictions")]
    return command_line("predict", flags)


def _write_report(setup: "WorkerSetup", pairs: TrainingSet, clock: Clock, *, with_samples: bool) -> None:
    """Write the run's report if an epoch is finished. `with_samples` adds predictions of the best checkpoint."""
    from petseg.models import checkpoint
    from petseg.training import samples

    location = setup.run

    def make() -> bytes:
        best = checkpoint.best(location)
        assert best is not None
        sheets, confusion, num_pairs = {}, None, 0
        if with_samples:
            network = checkpoint.load_model(best)
            predicted, counts = samples.predict_samples(network, best.model, setup.val, pairs.parts["val"]["id"])
            indices_by_title = sections.pick_samples([sample.cross_entropy for sample in predicted])
            sheets = {
                title: [vars(predicted[index]) for index in indices] for title, indices in indices_by_title.items()
            }
            confusion, num_pairs = counts.confusion.tolist(), len(predicted)
            clock.lap("the report's samples")
        report = TrainingReport(
            name=setup.config.name,
            settings=dataclasses.asdict(setup.config),
            pairs={name: part.num_rows for name, part in pairs.parts.items()},
            history=run_folder.read_metrics(location),
            samples=sheets,
            confusion=confusion,
            confusion_of=f"{num_pairs} validation {'crops' if setup.config.crop else 'pairs'}",
            seconds=clock.laps,
            commands=[_predict_command(location, pairs)],
        )
        return training_page(report)

    if run_folder.read_metrics(location):
        sections.save_report(location, make)


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
