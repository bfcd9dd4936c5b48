"""Run programs, keep environments of peer programs, and format tables. All benchmarks use this module."""

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PEERS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "petseg"
"""Folder of the peers' virtual environments, which are kept between runs."""

KERAS_NEEDS = ["tensorflow-cpu", "pillow"]


def about(*more: str) -> str:
    """Return the line above a table: the command, the date, the machine and the versions."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("torch", "torchvision", "ray", "pillow", "pyarrow", "numpy")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return (
        f"`{command}`, {time.strftime('%Y-%m-%d')}: {len(cores())} cores of {model}, {memory_gb:.0f} GiB; "
        f"Python {platform.python_version()}, {', '.join([*versions, *more])}"
    )


def cores() -> list[int]:
    """Return the cores that this process and its children may use."""
    return sorted(os.sched_getaffinity(0))


def quiet_ray() -> None:
    """Make every job that is started from here start its own Ray, without a token and without usage reports."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.pop("RAY_ADDRESS", None)


def line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {text} " if text else " " for text in cells) + "|"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def cell(values: Sequence[float], digits: int = 0) -> str:
    """Return "median (lowest to highest)"."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(ours: Sequence[float], peer: Sequence[float]) -> str:
    """Return the ratios ours ÷ peer of each round, as a cell."""
    return cell([a / b for a, b in zip(ours, peer, strict=True)], 2)


def peer_python(name: str, needs: Sequence[str]) -> Path:
    """Return the Python of a virtual environment with the packages in `needs`. Create it if it does not exist."""
    env = PEERS / name
    python = env / "bin" / "python"
    if not python.exists():
        print(f"making {env}: {', '.join(needs)}", flush=True)
        venv.create(env, with_pip=True)
    run([str(python), "-m", "pip", "install", "--quiet", *needs])  # needs no network if they are installed
    return python


def run(command: Sequence[str]) -> str:
    """Run a program and return its standard output. If it fails, print its output and errors, and exit."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def answer(command: Sequence[str]) -> Any:
    """Run a program and return the JSON in the last line of its output."""
    return json.loads(run(command).splitlines()[-1])
