"""Train the U-Net: photos and masks in, a run's folder with checkpoints and metrics out.

python jobs/train.py                                               generated pets, a few minutes on a CPU
python jobs/train.py --images photos --masks masks --name first    your own
ray job submit --working-dir . -- python jobs/train.py …           on a cluster
"""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, NoReturn

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.model import ModelConfig
from petseg.config.train import TrainConfig
from petseg.data import labels
from petseg.errors import STORAGE_ERRORS, InputError
from petseg.progress import Clock
from petseg.reports import sections
from petseg.reports.train import TrainingReport, training_page
from petseg.training import run_folder, trackers
from petseg.training.epoch_printer import EpochPrinter
from petseg.training.recipes import RECIPES
from petseg.training.training_set import TrainingSet, find_pairs

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
    # Without a report, the run was killed after its last epoch: what follows does not train, but writes the report.
    if finished >= config.epochs and files.REPORT in storage.list_names(run):
        print(f"{run} already has {finished} epochs; to train more, raise --epochs")
        return
    trackers.require_trackers(config)
    clock = Clock()
    pairs = find_pairs(config)

    # Ray and torch take seconds to load: only once the flags and folders are known to be good.
    from petseg.models import checkpoint
    from petseg.training.fit import fit

    setup = _set_up(config, run, pairs, clock)
    run_folder.begin(config, pairs.parts)
    print(f"training on {setup.train.num_rows} pairs, validating on {setup.val.num_rows}; run {run}", flush=True)
    try:
        with EpochPrinter(run, config.epochs), cli.on_interrupt(f"continue with: {_resume_command(config)}"):
            fit(setup)
    except BaseException:
        clock.lap("training")
        with contextlib.suppress(InputError, *STORAGE_ERRORS):  # the user must see the error that ended the training
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


def _set_up(config: TrainConfig, run: str, pairs: TrainingSet, clock: Clock) -> "WorkerSetup":
    """Join Ray, decode the pairs, and return everything that the workers need."""
    from petseg.cluster import connect, resources
    from petseg.pipelines.decode import decode, load
    from petseg.training import losses
    from petseg.training.fit import require_workers
    from petseg.training.loop import WorkerSetup

    model, weights = _model(config, run, pairs)
    clock.lap("listing, imports")
    connect.connect(debug=cli.is_debugging())
    locations = {"--storage": run, "--data": config.data, "--images": config.images, "--masks": config.masks}
    locations = {flag: location for flag, location in locations.items() if location}
    resources.require_shared(locations)
    if not config.use_gpu and not config.cpus_per_worker:  # their cores are divided once nodes have joined
        resources.require({"CPU": 1}, config.min_workers, "--num-workers", config.wait_min * 60)
    cpus = config.cpus_per_worker or (1 if config.use_gpu else resources.cpus_per_worker(config.max_workers))
    require_workers(config, cpus)
    resources.require_shared(locations)  # nodes may have joined
    clock.lap("starting Ray")
    manifests = [pairs.parts["train"], pairs.parts["val"]]
    if pairs.dataset is not None:
        train, val = load(pairs.dataset, manifests)
    else:
        train, val = decode(manifests, pairs.image_size, pairs.classes.label_map, pairs.resize)
    clock.lap("decoding")
    for name, pixels in zip(pairs.classes.names, train.class_pixels, strict=True):
        if not pixels:
            label_map = pairs.classes.label_map
            print(f"warning: no pixel of {name} in the training masks; check --label-map (now {label_map})")
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


def _model(config: TrainConfig, run: str, pairs: TrainingSet) -> tuple[ModelConfig, "dict[str, Tensor] | None"]:
    """Return (description of the network, weights of another run to start from, or None)."""
    from petseg.models import checkpoint

    recipe = RECIPES[config.recipe]
    model = ModelConfig(
        num_classes=len(pairs.classes.names),
        image_size=pairs.image_size,
        class_names=pairs.classes.names,
        palette=pairs.classes.palette,
        label_map=str(pairs.classes.label_map),
        resize=pairs.resize,
        input_scale=recipe.input_scale,
        input_offset=recipe.input_offset,
    )
    last = checkpoint.last(run)
    if last is not None:  # checked here, where an error is one line; in the workers it is a traceback of each
        checkpoint.load_model(last)
        checkpoint.load_train_state(last)
        return _require_same_model(model, last.model, run), None
    if config.init_from:
        return checkpoint.load_pretrained(config.init_from, model)
    return model, None


def _require_same_model(model: ModelConfig, before: ModelConfig, run: str) -> ModelConfig:
    """Return the description of a resumed run's network. Raises `InputError` if the pairs are for another network."""
    kept = ["input_scale", "input_offset", "palette"]
    if model.class_names == labels.class_names(model.num_classes):  # no names were given now
        kept.append("class_names")
    model = dataclasses.replace(model, **{name: getattr(before, name) for name in kept})
    changed = [name for name, value in dataclasses.asdict(before).items() if dataclasses.asdict(model)[name] != value]
    if changed:
        raise InputError(
            f"--resume: {run} was trained with another {', '.join(changed)} than the pairs have now; start a new run"
        )
    return model


def _resume_command(config: TrainConfig) -> str:
    return command_line("train", ["--name", config.name, "--storage", config.storage, "--resume"])


def _predict_command(run: str, pairs: TrainingSet) -> str:
    flags = ["--checkpoint", run, "--images", pairs.images, "--output", storage.join(run, "predictions")]
    return command_line("predict", flags)


def _write_report(setup: "WorkerSetup", pairs: TrainingSet, clock: Clock, *, with_samples: bool) -> None:
    """Write the run's `report.html` if an epoch is finished."""
    from petseg.models import checkpoint
    from petseg.training import samples

    def make() -> bytes:
        best = checkpoint.best(run)
        assert best is not None
        shown, confusion, counted = {}, None, 0
        if with_samples:
            network = checkpoint.load_model(best)
            predicted, counts = samples.predict_samples(network, best.model, setup.val, pairs.parts["val"]["id"])
            choice = sections.pick_samples([sample.cross_entropy for sample in predicted])
            shown = {title: [vars(predicted[index]) for index in indices] for title, indices in choice.items()}
            confusion, counted = counts.confusion.tolist(), len(predicted)
            clock.lap("the report's samples")
        report = TrainingReport(
            name=setup.config.name,
            settings=dataclasses.asdict(setup.config),
            pairs={name: part.num_rows for name, part in pairs.parts.items()},
            history=run_folder.read_metrics(run),
            samples=shown,
            confusion=confusion,
            confusion_pairs=counted,
            seconds=clock.laps,
            commands=[_predict_command(run, pairs)],
        )
        return training_page(report)

    run = setup.run
    if run_folder.read_metrics(run):
        sections.save_report(run, make)


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
