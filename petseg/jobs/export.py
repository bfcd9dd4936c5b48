"""Export a trained network to ONNX and torch.export, checked against PyTorch, with its settings and a model card.

python jobs/export.py --checkpoint runs/first --output exported
"""

import contextlib
import importlib.metadata
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from petseg import cli, files, storage
from petseg.config.base import from_json, to_json
from petseg.config.export import ExportConfig
from petseg.config.train import TrainConfig
from petseg.data import oxford_pets
from petseg.errors import STORAGE_ERRORS, InputError
from petseg.reports import model_card
from petseg.storage import sharded_output
from petseg.storage.checks import require_writable, translate_write_errors

if TYPE_CHECKING:
    from petseg.models.checkpoint import Checkpoint


def main() -> None:
    """Parse `sys.argv`, and write the exported network and its model card."""
    config = cli.parse("export", ExportConfig, about=__doc__)
    output = storage.absolute(config.output)
    require_writable(output, "--output")
    names = storage.list_names(output)
    if {files.CONFIG, files.EXPORT_CHECKS} <= set(names) and not config.overwrite:
        raise InputError(f"--output {output}: it already has an export; choose another folder, or pass --overwrite")

    # Importing torch takes seconds. Check the flags and folders first.
    from petseg.models import checkpoint, export

    export.require_packages(config.formats)
    written = (files.CONFIG, files.MODEL_CARD, *export.FILES.values())
    if files.EXPORT_CHECKS not in names:  # every export writes it first, and never deletes it
        foreign = [name for name in written if name in names]
        if foreign:
            raise InputError(
                f"--output {output}: it contains a {foreign[0]} that no export wrote; choose another folder"
            )
    trained = checkpoint.find(storage.absolute(config.checkpoint))
    network = checkpoint.load_model(trained)
    models = export.export(network, config.formats)
    differences = {name: difference for name, (_, difference) in models.items()}
    checks = {
        "checkpoint": trained.location,
        "tolerance": export.TOLERANCE,
        "largest_difference": differences,
        "batch_height_width": export.checked_shapes(network),
        "versions": _versions(),
    }
    contents = {files.EXPORT_CHECKS: (json.dumps(checks, indent=2) + "\n").encode()}
    contents |= {name: content for name, (content, _) in models.items()}
    contents[files.MODEL_CARD] = _card(trained, config.licence, differences).encode()
    contents[files.CONFIG] = to_json(trained.model).encode()
    with translate_write_errors(output, remedy="fix this and run the same command again"):
        for name in written:
            if name in names:  # other formats of an earlier export; a partial export must not look complete
                storage.remove_file(storage.join(output, name))
        for name, content in contents.items():
            storage.write(storage.join(output, name), content)
    for name, difference in differences.items():
        print(f"{storage.join(output, name)}: probabilities within {difference:.1e} of PyTorch's")
    print(f"card: {storage.join(output, files.MODEL_CARD)}")


def _card(trained: "Checkpoint", licence: str, differences: dict[str, float]) -> str:
    training = _training(trained.location)
    card = model_card.ModelCard(
        title=f"{training.settings.name if training else os.path.basename(trained.location)}, a petseg network",  # noqa: PTH119
        model=trained.model,
        history=trained.history,
        training=training,
        licence=licence,
        differences=differences,
        versions=_versions().items(),
    )
    return model_card.render(card)


def _versions() -> dict[str, str]:
    names = ("petseg", "torch", "onnx", "onnxscript", "onnxruntime")
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in names if name in installed}


def _training(location: str) -> model_card.Training | None:
    """Return facts about the run of a checkpoint, or None if the checkpoint is not in a run's folder."""
    run, _, name = location.rpartition("/checkpoints/")
    if not run or "/" in name or not {files.CONFIG, files.RUN_MANIFEST} <= set(storage.list_names(run)):
        return None
    file = storage.join(run, files.CONFIG)
    settings = from_json(TrainConfig, storage.read(file), file)
    table = sharded_output.parse_parquet(storage.read(storage.join(run, files.RUN_MANIFEST)))
    first = table.slice(0, 1).to_pylist()[0]
    images = first["image"].rpartition(f"/{first['id']}.")[0]
    return model_card.Training(
        settings=settings, pairs=Counter(table["split"].to_pylist()), dataset=_dataset(settings, images)
    )


def _dataset(settings: TrainConfig, images: str) -> str:
    """Return the description of the dataset in a folder of photos, or "" if it is not a known one."""
    if settings.images is None and settings.data is None:
        return model_card.DRAWN
    # The folder may be deleted or unreadable. An unknown dataset is not an error.
    with contextlib.suppress(InputError, *STORAGE_ERRORS):
        if oxford_pets.DONE_FILE in storage.list_names(images.rpartition("/")[0]):
            return model_card.PET_DATASET
    return ""


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
