"""Measure the memory of a prediction job, for some number of photos and for ten times as many.

python benchmarks/predict_memory.py --counts 2000 20000

Peaks are sampled every half a second: private memory (RssAnon) of the driver and of the largest worker of each kind,
and Ray's object store in the machine's shared memory. In addition, without a job, the script measures the peak of a
process that lists `--names` names and plans a job for them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKERS = {"model": "ray::MapWorker(", "largest other worker": "ray::"}
"""Part of the command line of each kind of worker. The first that matches counts."""

KINDS = ("driver", *WORKERS, "object store")
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Ray keeps its object store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photos, used repeatedly. Default: drawn photos")
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint. Default: an untrained network at 160 × 160")
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 20000], help="numbers of photos")
    parser.add_argument("--names", type=int, default=2_000_000, help="names to list and plan. 0: skip this part")
    parser.add_argument("--flags", default="", help='flags of the job, in quotes, such as "--tile 640"')
    parser.add_argument("--list-only", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list_only:
        print(list_names(given.list_only))
        return

    import drawn  # imports torch, which must not count when names are listed

    with tempfile.TemporaryDirectory(prefix="petseg-memory-") as name:
        folder = Path(name)
        run = given.checkpoint or drawn.untrained(folder, (160, 160))
        source = given.images or drawn.photos(folder, 64)
        print("| photos | " + " | ".join(KINDS) + " | seconds |\n|---|" + "---|" * len(KINDS) + "---|")
        for count in given.counts:
            photos = drawn.repeated(folder, source, count)
            started = time.monotonic()
            peaks = watch(run, photos, folder / f"out-{count}", given.flags.split())
            cells = " | ".join(f"{peaks[kind]:.0f} MB" for kind in KINDS)
            print(f"| {count} | {cells} | {time.monotonic() - started:.0f} |", flush=True)
    if not given.names:
        return
    listing = [sys.executable, __file__, "--list-only", str(given.names)]
    print(f"\nlisting {given.names} names and planning a job of them: ", end="", flush=True)
    print(subprocess.run(listing, capture_output=True, text=True, check=True).stdout.strip())


def watch(run: Path, photos: Path, output: Path, flags: list[str]) -> dict[str, float]:
    """Run the job. Return the peak MB of each kind of process."""
    command = [sys.executable, str(ROOT / "jobs" / "predict.py"), "--checkpoint", str(run), "--images", str(photos)]
    command += ["--output", str(output), *flags]
    peaks = dict.fromkeys(KINDS, 0.0)
    workers_before = {pid for pid, _ in processes()}  # processes of other Rays on this machine
    shared_before = shutil.disk_usage(SHARED_MEMORY).used
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while job.poll() is None:
        now = [("driver", megabytes(job.pid, "RssAnon"))]
        now.append(("object store", (shutil.disk_usage(SHARED_MEMORY).used - shared_before) / 1e6))
        for pid, text in processes():
            kind = next((kind for kind, part in WORKERS.items() if part in text), None)
            if kind is not None and pid not in workers_before:
                now.append((kind, megabytes(pid, "RssAnon")))
        for kind, value in now:
            peaks[kind] = max(peaks[kind], value)
        time.sleep(0.5)
    if job.returncode:
        assert job.stderr is not None
        sys.exit(job.stderr.read().decode())
    return peaks


def processes() -> Iterator[tuple[int, str]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield int(process.name), (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has just ended


def megabytes(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(field + ":")), 0.0)


def list_names(count: int) -> str:
    """List `count` names and plan a job. The names come from a generator, because real files would measure the disk."""
    from petseg import storage
    from petseg.data import manifest
    from petseg.inference.plan import Outputs, make_plan

    def listed(*_: object) -> Iterator[tuple[str, str]]:
        return ((f"{i % 1000:03}/photo-{i * 7919 % count:08}.jpg", f"{i}-{i}") for i in range(count))

    storage.list_versions = listed
    before = megabytes(os.getpid(), "VmHWM")
    started = time.monotonic()
    found = manifest.discover("/data/photos/of/some/project")
    plan = make_plan(found, "/out", shard_size=256, outputs=Outputs(), settings={})
    peak = megabytes(os.getpid(), "VmHWM")
    seconds = time.monotonic() - started
    assert plan.manifest.num_rows == count
    return f"{peak:.0f} MB at most, {before:.0f} MB of them before; {seconds:.1f} s"


if __name__ == "__main__":
    main()
