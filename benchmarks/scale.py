"""Measure the cost of a photo, a key and a start, and check the formula of docs/scale.md for the time of a job.

python benchmarks/scale.py --place s3://BUCKET/scale --counts 500 2000 4000 --store-pid PID

Costs are in core-milliseconds. The parts run alone as in `limits.py`. The cost of requests to a store is the CPU time
of this process. Then jobs of --counts photos run as a user starts them, with all locations in the store. The first job
gives the time of start and end and, if the store runs on this machine, the CPU time of its process. For the other jobs
the time predicted by the formula is compared with the measured time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import beside
import drawn
import limits
from PIL import Image

from petseg import storage

SHARD = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", required=True, help="folder or URI for photos and masks; deleted at the end")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000], help="numbers of photos")
    parser.add_argument("--store-pid", type=int, help="process id of a store on these cores, to count its CPU time")
    parser.add_argument("--images", type=Path, help="photos, used repeatedly. Default: drawn ones of 500 × 375")
    given = parser.parse_args()
    place, cores = storage.absolute(given.place), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="petseg-scale-") as name:
        folder = Path(name)
        run = drawn.untrained(folder, (160, 160))
        source, size = (given.images, None) if given.images else (drawn.photos(folder, 64), (500, 375))
        local = drawn.repeated(folder, source, max(given.counts), size)
        alone = limits.alone(local, run, folder, cores, use_gpu=False)
        costs = {part: 1000 * cores / rate for part, rate in alone.items() if part != "write"}
        costs |= of_store(place, local, given.counts)
        smallest, *others = sorted(given.counts)
        before_s = cpu_s(given.store_pid)
        start_s, work_s, end_s = job(f"{place}/photos-{smallest}", run, f"{place}/out-{smallest}")
        costs["the store itself"] = 1000 * (cpu_s(given.store_pid) - before_s) / smallest
        per_photo_s = sum(costs.values()) / 1000
        print("| core-milliseconds per photo | |\n|---|---|")
        for part, cost in costs.items():
            print(f"| {part} | {cost:.3g} |")
        print(f"| all | {1000 * per_photo_s:.1f} |")
        print(
            f"\n{smallest} photos: {start_s:.1f} s to the first shard, {work_s:.1f} s to the last, {end_s:.1f} s after"
        )
        print("\n| photos | predicted, s | measured, s | measured ÷ predicted |\n|---|---|---|---|")
        for count in others:
            predicted_s = start_s + (count - SHARD) * per_photo_s / cores + end_s
            whole_s = sum(job(f"{place}/photos-{count}", run, f"{place}/out-{count}"))
            print(f"| {count} | {predicted_s:.1f} | {whole_s:.1f} | {whole_s / predicted_s:.2f} |", flush=True)
    storage.remove_folder(place)


def of_store(place: str, local: Path, counts: list[int]) -> dict[str, float]:
    """Write, read and list the photos of every job. Return the core-milliseconds of each operation in this process."""
    contents = [path.read_bytes() for path in sorted(local.iterdir())]
    names = [f"{number:06}.jpg" for number in range(len(contents))]

    def put_all() -> None:
        with ThreadPoolExecutor(16) as pool:
            for count in counts:
                folder = f"{place}/photos-{count}"
                pairs = zip(names[:count], contents, strict=False)
                list(pool.map(lambda pair, folder=folder: storage.write(f"{folder}/{pair[0]}", pair[1]), pairs))

    largest = f"{place}/photos-{max(counts)}"
    return {
        "put": cpu_ms(put_all) / sum(counts),
        "get": cpu_ms(lambda: list(storage.read_each(f"{largest}/{name}" for name in names))) / len(names),
        "list": cpu_ms(lambda: list(storage.list_files(largest))) / len(names),
    }


def cpu_ms(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)


def cpu_s(pid: int | None) -> float:
    """Return the CPU seconds that a process has used so far."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def job(photos: str, run: Path, output: str) -> tuple[float, float, float]:
    """Run a job. Return the seconds to its first shard, from there to its last shard, and from there to its end."""
    command = [sys.executable, str(beside.ROOT / "jobs" / "predict.py"), "--checkpoint", str(run)]
    command += ["--images", photos, "--output", output, "--shard-size", str(SHARD)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    times = []  # times at which a poll found new shards
    there = 0
    while process.poll() is None:
        now = sum(name.startswith("part-") for name in storage.list_names(output))
        if now > there:
            times.append(time.monotonic() - started)
        there = now
        time.sleep(0.2)
    whole_s = time.monotonic() - started
    if process.returncode or not times:
        sys.exit(process.communicate()[1])
    return times[0], times[-1] - times[0], whole_s - times[-1]


if __name__ == "__main__":
    Image.init()
    main()
