"""Download the Oxford-IIIT Pet dataset: `petseg prepare oxford-pets`."""

import tarfile
from pathlib import Path

from petseg import cli, storage
from petseg.cli.invocation import command_line
from petseg.config.prepare import OxfordConfig
from petseg.data import oxford_pets
from petseg.data.classes import write_classes
from petseg.errors import InputError
from petseg.storage import checks


@cli.on_interrupt(cli.CONTINUES)
def download(config: OxfordConfig) -> None:
    """Download the archives if they are not there yet, unpack them, and print what to do next."""
    output, cache = storage.absolute(config.output), storage.absolute(config.cache)
    if not storage.is_local(cache):
        raise InputError(f"--cache {cache}: must be a local folder")
    checks.require_writable(output, "--output")
    checks.require_writable(cache, "--cache")
    unpacked = oxford_pets.finished(output)
    status = "already finished; nothing to do"
    if unpacked is None:
        if not hasattr(tarfile, "data_filter"):
            raise InputError("petseg prepare oxford-pets needs Python 3.11.4 or later, which can check archives")
        oxford_pets.fetch(config.url, Path(cache))
        with checks.translate_write_errors(output):
            unpacked = oxford_pets.unpack(Path(cache), output)
        status = f"the archives are kept in {cache}"
    else:
        with checks.translate_write_errors(output):  # earlier versions did not write classes.json
            write_classes(storage.join(output, oxford_pets.MASK_FOLDER), oxford_pets.CLASSES)
    counts = f"{unpacked.pairs} pairs, {len(unpacked.skipped)} skipped, {len(unpacked.warnings)} warnings"
    print(f"{status}; {counts}: {output}")
    for kind, reasons in (("skipped", unpacked.skipped), ("warning", unpacked.warnings)):
        for name, reason in reasons.items():
            print(f"  {kind}: {name}: {reason}")
    folders = [
        "--images",
        storage.join(output, oxford_pets.IMAGE_FOLDER),
        "--masks",
        storage.join(output, oxford_pets.MASK_FOLDER),
    ]
    print(f"next: {command_line('train', folders)}")
