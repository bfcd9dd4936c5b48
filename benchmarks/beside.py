"""What all benchmarks share: programs run beside one another, and the table of what they did."""

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
"""Where the environments of peers are kept from one run to the next."""

KERAS_NEEDS = ["tensorflow-cpu", "pillow"]


def about(*more: str) -> str:
    """The command, the day, the machine and the versions: what stands above a table."""
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
    """The cores that this process and what it starts may use."""
    return sorted(os.sched_getaffinity(0))


def quiet_ray() -> None:
    """Let every Ray that is started from here be one of its own, that asks for no token and tells nobody."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.pop("RAY_ADDRESS", None)


def line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {text} " if text else " " for text in cells) + "|"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def cell(values: Sequence[float], digits: int = 0) -> str:
    """Median (lowest to highest)."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(ours: Sequence[float], peer: Sequence[float]) -> str:
    """Ours ÷ the peer's, round by round."""
    return cell([a / b for a, b in zip(ours, peer, strict=True)], 2)


def peer_python(name: str, needs: Sequence[str]) -> Path:
    """The Python of an environment that has what a peer needs and petseg has not, made where there is none."""
    env = PEERS / name
    python = env / "bin" / "python"
    if not python.exists():
        print(f"making {env}: {', '.join(needs)}", flush=True)
        venv.create(env, with_pip=True)
    run([str(python), "-m", "pip", "install", "--quiet", *needs])  # no network is asked where they are there
    return python


def run(command: Sequence[str]) -> str:
    """What a program prints; where it fails, that and its errors are shown, and this one ends, too."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def answer(command: Sequence[str]) -> Any:
    """The JSON that a program prints as its last line."""
    return json.loads(run(command).splitlines()[-1])
