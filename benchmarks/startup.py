"""Measure the time from the command to the first step, or to the first masks, and split it into phases.

python benchmarks/startup.py

Each job's `--help` is timed as a user runs it, and once more with `python -X importtime`, which shows whether it loads
torch or Ray. Then a training job and a prediction job run in turn, on the same number of drawn photos. They run inside
this script, which wraps the functions it times, in the driver and in the workers. The script itself adds a few
hundredths of a second to "Python and flags". The phases follow one another, so they add up to the time to the first
step, or to the commit of the first shard, which is the only one. The driver's imports of torch and Ray are taken out of
their phase and shown separately. petseg's own modules, and other modules that they need, stay in it. Imports in workers
are in the phase that waits for the workers.
"""

import argparse
import builtins
import functools
import json
import re
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beside

JOBS = ("train", "predict", "evaluate", "prepare")
TORCH, RAY = "import of torch", "import of Ray"
LIBRARIES = {"torch": TORCH, "torchvision": TORCH, "ray": RAY}

PHASES = {
    "train": {
        "discover": "Python and flags",
        "connect": "own modules, listing, the plan",
        "connected": "starting Ray",
        "decode": "what the cluster has",
        "read": "Ray Data: the start of a worker that reads",
        "decoded": "decoding",
        "fit": "writing the run's settings",
        "worker": "Ray Train: the worker's start and imports",
        "step": "the network, its precision, its pairs",
        "stepped": "the first step",
    },
    "predict": {
        "discover": "Python and flags",
        "connect": "own modules, listing, the plan",
        "connected": "starting Ray",
        "read": "Ray Data: the start of a worker that reads",
        "have": "decoding",
        "call": "waiting for the worker with the network",
        "called": "the network, masks and PNG",
        "committed": "writing",
    },
}
"""Phases of each job in their order, by the mark at the end of the phase."""

WRAPPED = {
    "petseg.data.manifest.discover": ("discover", None),
    "petseg.cluster.connect.connect": ("connect", "connected"),
    "petseg.pipelines.decode.decode": ("decode", "decoded"),
    "petseg.training.fit.fit": ("fit", None),
}
"""Functions of a driver that are wrapped, and the marks before and after them."""


PREDICT = "petseg.pipelines.predict"
"""Module whose functions for the workers of a prediction are wrapped."""


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="number of pairs and of photos")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    beside.quiet_ray()
    print(beside.about())
    print(f"\nmedians of {given.rounds} rounds (lowest to highest)\n")
    rows = [helped(job, given.rounds) for job in JOBS]
    print(beside.table(["`--help` of", "seconds", "loads torch", "loads Ray"], rows), flush=True)

    with tempfile.TemporaryDirectory(prefix="petseg-startup-") as name:
        folder = Path(name)
        commands = prepare(folder, given.count)
        rounds: dict[str, list[dict[str, float]]] = {job: [] for job in commands}
        for number in range(given.rounds):
            for job, command in commands.items():
                rounds[job].append(one_run(job, [part.format(number) for part in command], folder / f"{job}-{number}"))
    phases = dict.fromkeys(phase for found in rounds.values() for phase in found[0] if phase not in SUMS)
    print(f"\n{given.count} photos\n")
    rows = [[phase, *(cells(rounds[job], phase) for job in rounds)] for phase in (*phases, *SUMS)]
    print(beside.table(["", *(f"{job}, s" for job in rounds)], rows))


def helped(job: str, rounds: int) -> list[str]:
    script = str(beside.ROOT / "jobs" / f"{job}.py")
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        beside.run([sys.executable, script, "--help"])
        seconds.append(time.perf_counter() - started)
    command = [sys.executable, "-X", "importtime", script, "--help"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    loaded = ["yes" if re.search(rf"\| +{library}$", log, re.MULTILINE) else "no" for library in ("torch", "ray")]
    return [f"`jobs/{job}.py`", beside.cell(seconds, 2), *loaded]


def prepare(folder: Path, count: int) -> dict[str, list[str]]:
    """Return the flags of both jobs, with {} for the number of the round."""
    import drawn  # imports torch, which must not be loaded yet in a job inside this script

    photos, network = drawn.photos(folder, count), drawn.untrained(folder, (160, 160))
    train = ["--images", str(photos), "--masks", str(photos.with_name("trimaps")), "--epochs", "1"]
    train += ["--storage", str(folder / "runs"), "--name", "round-{}"]
    predict = ["--checkpoint", str(network), "--images", str(photos), "--shard-size", str(count)]
    return {"train": train, "predict": [*predict, "--output", str(folder / "masks-{}")]}


def one_run(job: str, flags: list[str], marks: Path) -> dict[str, float]:
    """Run a job. Return the seconds of each phase, of all phases together, and of the whole job."""
    script = str(beside.ROOT / "jobs" / f"{job}.py")
    started = time.time()
    beside.run([sys.executable, __file__, "--inside", str(marks), script, *flags])
    whole_s = time.time() - started
    lines = [json.loads(line) for line in marks.read_text().splitlines()]
    first = {line["mark"]: line for line in reversed(lines)}
    at = {name: line["at"] for name, line in first.items()}
    if job == "predict":
        at["committed"] = min(part.stat().st_mtime for part in Path(flags[-1]).glob("part-*"))
    found: dict[str, float] = {}
    before, loading_s = started, 0.0
    for name, phase in PHASES[job].items():
        found[phase] = at[name] - before
        before = at[name]
        if imports := first.get(name, {}).get("imports"):
            loaded_s = sum(imports.values())
            found[phase] -= loaded_s - loading_s
            found |= imports
            loading_s = loaded_s
    return found | dict(zip(SUMS, (before - started, whole_s), strict=True))


SUMS = ("**to the first step, the first masks**", "**the whole job**")


def cells(found: list[dict[str, float]], phase: str) -> str:
    return beside.cell([seconds[phase] for seconds in found], 2) if phase in found[0] else ""


def inside(marks: str, command: list[str]) -> None:
    """Run a job as a user does, and write marks to a file while it runs."""
    imports: dict[str, float] = {TORCH: 0.0, RAY: 0.0}
    wrapped: set[str] = set()

    def wrap_loaded() -> None:
        for name, (before, after) in WRAPPED.items():
            module, _, function = name.rpartition(".")
            there = getattr(sys.modules.get(module), function, None)
            if there is not None and name not in wrapped:
                wrapped.add(name)
                setattr(sys.modules[module], function, timed(there, marks, before, after, imports))
                if name in IN_WORKERS:
                    original, ours = IN_WORKERS[name]
                    setattr(sys.modules[module], original, functools.partial(ours, marks=marks))
        pipeline: Any = sys.modules.get(PREDICT)
        predictor = getattr(pipeline, "_ShardPredictor", None)
        if predictor is not None and PREDICT not in wrapped:
            wrapped.add(PREDICT)
            pipeline._read = timed(pipeline._read, marks, "read", "have")
            pipeline._ShardPredictor = timed_predictor(predictor, marks)

    watch_imports(imports, wrap_loaded)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def watch_imports(imports: dict[str, float], then: Callable[[], None]) -> None:
    """Add up the import times of the libraries, including their own imports. Call `then` after every other import."""
    load, loading = builtins.__import__, False

    def timed_load(name: str, *rest: Any, **more: Any) -> Any:
        nonlocal loading
        library = LIBRARIES.get(name.partition(".")[0])
        if loading:
            return load(name, *rest, **more)
        if library is None:
            found = load(name, *rest, **more)
            then()
            return found
        loading, started = True, time.perf_counter()
        try:
            return load(name, *rest, **more)
        finally:
            loading = False
            imports[library] += time.perf_counter() - started

    builtins.__import__ = timed_load


def timed(
    function: Callable[..., Any], marks: str, before: str, after: str | None, imports: dict[str, float] | None = None
) -> Callable[..., Any]:
    """Return the function with marks around it. Its name differs, because a worker would load the original by name."""

    def call(*args: Any, **named: Any) -> Any:
        mark(marks, before, imports)
        result = function(*args, **named)
        if after is not None:
            mark(marks, after, imports)
        return result

    return call


def timed_predictor(original: type, marks: str) -> type:
    """Return a subclass with marks around a call. Workers load a changed `original` by name, without the change."""

    class TimedPredictor(original):
        def __call__(self, *args: Any, **named: Any) -> Any:
            mark(marks, "call")
            result = super().__call__(*args, **named)
            mark(marks, "called")
            return result

    return TimedPredictor


def train_worker(loop_config: dict[str, Any], marks: str) -> None:
    """Run in a worker instead of the training function, with marks around it and around the steps."""
    from petseg.training import loop, trainer

    mark(marks, "worker")
    trainer.Trainer.train_step = timed(trainer.Trainer.train_step, marks, "step", "stepped")
    loop.train_loop_per_worker(loop_config)


def decode_rows(rows: Any, marks: str, **settings: Any) -> Any:
    """Run in a worker instead of `decode_rows` of petseg, with a mark before it."""
    from petseg.pipelines import pair_rows

    mark(marks, "read")
    return pair_rows.decode_rows(rows, **settings)


IN_WORKERS = {
    "petseg.pipelines.decode.decode": ("decode_rows", decode_rows),
    "petseg.training.fit.fit": ("train_loop_per_worker", train_worker),
}
"""Functions that a driver sends to workers, and their replacements, by the driver's function that sends them."""


def mark(marks: str, name: str, imports: dict[str, float] | None = None) -> None:
    with Path(marks).open("a") as file:
        file.write(json.dumps({"mark": name, "at": time.time(), "imports": imports}) + "\n")


if __name__ == "__main__":
    main()
