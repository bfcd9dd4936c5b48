"""Print how far jobs are: one line for each output or run.

python jobs/status.py /data/masks runs/first     an output and a run
python jobs/status.py s3://bucket/masks          in a bucket
"""

import sys
from datetime import timedelta
from typing import NoReturn

from petseg import cli, files, storage
from petseg.cli import options
from petseg.cli.invocation import as_started, program
from petseg.errors import InputError
from petseg.status import LOST_S, Status, read_status, seconds_since


def main() -> None:
    """Parse `sys.argv`, and print a line for each place. Raises `InputError` at the end if one has no status."""
    places = parse()
    first_error: InputError | None = None
    for place in places:
        try:
            status = read_status(place)
        except InputError as error:
            first_error = first_error or error
        else:
            print(f"{place}: {describe(status, seconds_since(status.heartbeat))}", flush=True)
    if first_error is not None:
        raise first_error


def describe(status: Status, age_s: float) -> str:
    """Return one line about a job. `age_s` is the age of its last heartbeat in seconds."""
    parts = [status.phase if status.exit_code in (None, 0) else f"{status.phase} with exit code {status.exit_code}"]
    if status.waiting_for:
        parts[0] += f" for {status.waiting_for} more processes"
    parts += _counts(status)
    if status.exit_code is None:
        parts += _speed(status)
        parts.append(
            f"heartbeat {max(0, round(age_s))} s ago" if age_s <= LOST_S else f"no heartbeat for {_age(age_s)}: killed?"
        )
    else:
        parts.append(f"{_age(age_s)} ago")
    return ", ".join(parts) + (f": {status.reason}" if status.reason else "")


def _counts(status: Status) -> list[str]:
    if status.total is None:
        return []
    if status.epochs is not None:
        scores = {"val loss": status.val_loss, "mIoU": status.val_miou}
        shown = [f"{name} {value:.3f}" for name, value in scores.items() if value is not None]
        return [f"{status.epoch} of {status.epochs} epochs", *shown]
    percent = 100 * status.done // max(1, status.total)
    return [f"{status.done:,} of {status.total:,} {status.unit} ({percent}%)", f"{status.failed:,} failed"]


def _speed(status: Status) -> list[str]:
    if not status.rate or status.eta_s is None:
        return []
    return [
        f"{status.rate:,.{0 if status.rate >= 10 else 1}f} {status.unit}/s",
        f"ETA {timedelta(seconds=status.eta_s)}",
    ]


def _age(seconds: float) -> str:
    """Return a time span as people say it, such as "3 min"."""
    for unit, unit_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    return f"{max(0, round(seconds))} s"


def parse() -> list[str]:
    """Return the places on the command line, as absolute locations."""
    parser = options.Parser(f"{program('status')} PLACE…", as_started(__doc__ or ""))
    parser.add_argument("places", nargs="*", metavar="PLACE", help="Output of a job, or folder of a run: path or URI.")
    group = parser.add_argument_group("this command")
    group.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    group.add_argument("-h", "--help", action="help", help="Show this help.")
    places = parser.given(sys.argv[1:]).get("places", ())
    if not places:
        raise InputError(f"a place is required: the folder or URI with the {files.STATUS} of a job (see --help)")
    return [storage.absolute(place) for place in places]


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
