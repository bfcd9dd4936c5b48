"""Write a trained network as ONNX and torch.export, checked against PyTorch, with its settings and a card.

python jobs/export.py --checkpoint runs/first --output exported
"""

import contextlib
import importlib.metadata
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from petseg import cli, storage
from petseg.config.base import from_json, to_json
from petseg.config.predict import ExportConfig
from petseg.config.train import TrainConfig
from petseg.data import oxford_pets
from petseg.errors import InputError
from petseg.reports import model_card
from petseg.storage.checks import require_writable, writing

if TYPE_CHECKING:
    from petseg.models.checkpoint import Checkpoint

CONFIG_FILE = "config.json"
CHECKS_FILE = "checks.json"


def main() -> None:
    """Parse `sys.argv`, write the exported network and its card."""
    config = cli.parse("export", ExportConfig, about=__doc__)
    output = storage.absolute(config.output)
    require_writable(output, "--output")
    names = storage.list_names(output)
    if CONFIG_FILE in names and CHECKS_FILE not in names:
        raise InputError(f"--output {output}: it has the {CONFIG_FILE} of something else; choose another folder")
    if CONFIG_FILE in names and not config.overwrite:
        raise InputError(f"--output {output}: there is an export already; choose another folder, or pass --overwrite")

    # torch takes seconds to load: only once the flags and folders are known to be good.
    from petseg.models import checkpoint, export

    export.require_packages(config.formats)
    found = checkpoint.find(storage.absolute(config.checkpoint))
    models = export.export(checkpoint.load_model(found), config.formats)
    differences = {name: difference for name, (_, difference) in models.items()}
    checks = {
        "checkpoint": found.location,
        "tolerance": export.TOLERANCE,
        "largest_difference": differences,
        "batch_height_width": export.CHECKED,
        "versions": _versions(),
    }
    files = {CHECKS_FILE: (json.dumps(checks, indent=2) + "\n").encode()}
    files |= {name: content for name, (content, _) in models.items()}
    files[model_card.FILE] = _card(found, config.licence, differences).encode()
    files[CONFIG_FILE] = to_json(found.model).encode()
    with writing(output):
        for name in (CONFIG_FILE, model_card.FILE, *export.FILES.values()):
            if name in names:  # of an export with other formats; and half of this one is none
                storage.remove_file(storage.join(output, name))
        for name, content in files.items():
            storage.write(storage.join(output, name), content)
    for name, difference in differences.items():
        print(f"{storage.join(output, name)}: probabilities within {difference:.1e} of PyTorch's")
    print(f"card: {storage.join(output, model_card.FILE)}")


def _card(found: "Checkpoint", licence: str, differences: dict[str, float]) -> str:
    training = _training(found.location)
    return model_card.card(
        title=f"{training.settings.name if training else os.path.basename(found.location)}, a petseg network",  # noqa: PTH119
        model=found.model,
        history=found.history,
        training=training,
        licence=licence,
        differences=differences,
        versions=_versions().items(),
    )


def _versions() -> dict[str, str]:
    names = ("petseg", "torch", "onnx", "onnxscript", "onnxruntime")
    installed = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in names if name in installed}


def _training(location: str) -> model_card.Training | None:
    """What the run says of which a checkpoint is; None where that was taken out of its folder."""
    run, _, name = location.rpartition("/checkpoints/")
    if not run or "/" in name or not {"config.json", "manifest.parquet"} <= set(storage.list_names(run)):
        return None
    file = storage.join(run, "config.json")
    settings = from_json(TrainConfig, storage.read(file), file)
    table = storage.parse_parquet(storage.read(storage.join(run, "manifest.parquet")))
    first = table.slice(0, 1).to_pylist()[0]
    images = first["image"].rpartition(f"/{first['id']}.")[0]
    return model_card.Training(
        settings=settings, pairs=Counter(table["split"].to_pylist()), what=_dataset(settings, images)
    )


def _dataset(settings: TrainConfig, images: str) -> str:
    """Which dataset it is that a folder of photos has, if it is one that is known."""
    if settings.images is None and settings.data is None:
        return model_card.DRAWN
    # Gone, or not to be looked at: what is not known is no reason to refuse.
    with contextlib.suppress(InputError, OSError):
        if oxford_pets.DONE_FILE in storage.list_names(images.rpartition("/")[0]):
            return model_card.PET_DATASET
    return ""


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
