"""Measure what a start of a prediction with --append costs after many nights, each of which has added some photos.

python benchmarks/generations.py
python benchmarks/generations.py --place s3://BUCKET/generations

The photos are empty files, and the rows of the shards are empty, because only the start is measured: listing the
photos, reading the plan and the list of photos, and reading the footer of each shard. The second column of times is
the check of the plan before each write of a shard. Medians of five.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import beside
import pyarrow as pa

from petseg import files, storage
from petseg.data import manifest
from petseg.inference import existing, output_folder
from petseg.inference.existing import Start
from petseg.inference.plan import Outputs, Plan, Summary, make_plan, schema

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, nargs="+", default=[1, 100, 400, 2000], help="nights to measure after")
    parser.add_argument("--photos", type=int, default=25, help="new photos of each night")
    parser.add_argument("--place", help="folder or URI of the output. Default: a temporary folder")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="petseg-generations-") as folder:
        photos = Path(folder) / "photos"
        output = storage.absolute(given.place or f"{folder}/out")
        for night in range(max(given.nights)):
            add_photos(photos, night, given.photos)
            predict(find_start(photos, output).plan)
            if night + 1 in given.nights:
                rows.append(measure(photos, output, night + 1))
                print(beside.line(rows[-1]), flush=True)
    heads = ["nights", "photos", "start, s", "of it listing", "check of the plan, ms", "size of the plan, kB"]
    print(f"\n{beside.about()}\n\n{beside.table(heads, rows)}")


def add_photos(folder: Path, night: int, count: int) -> None:
    (folder / f"{night:05}").mkdir(parents=True)
    for number in range(count):
        (folder / f"{night:05}" / f"{number:04}.jpg").touch()


def find_start(photos: Path, output: str) -> Start:
    listed = manifest.discover(str(photos), skipped={})
    plan = make_plan(listed, output, shard_size=256, outputs=Outputs(), settings={})
    return existing.find_start(plan, append=True)


def predict(plan: Plan) -> None:
    """Write the missing shards of a plan, with empty rows, and finish the output."""
    done = output_folder.find_done(plan)
    output_folder.begin(plan)
    for shard in range(plan.target.num_shards):
        if shard not in done:
            ids = plan.rows(shard)["id"]
            empty = {name: [None] * len(ids) for name in schema(Outputs()).names}
            rows = pa.table(empty | {"id": ids}, schema=schema(Outputs()))
            plan.target.write_shard(shard, rows, [0, [], {}])
            done[shard] = Summary(len(ids), 0, [])
    output_folder.finish(plan, done)


def measure(photos: Path, output: str, nights: int) -> list[str]:
    def start() -> None:
        found = find_start(photos, output)
        done = output_folder.find_done(found.plan)
        assert not output_folder.find_again(found, done, retry_errors=True)
        assert output_folder.is_finished(found.plan, done)

    target = find_start(photos, output).plan.target
    listing_s = median_s(lambda: manifest.discover(str(photos), skipped={}))
    check_ms = 1000 * median_s(lambda: output_folder.require_plan(target))
    size_kb = len(storage.read(storage.join(output, files.PLAN))) / 1000
    count = manifest.discover(str(photos), skipped={}).num_rows
    times = [f"{median_s(start):.2f}", f"{listing_s:.2f}", f"{check_ms:.1f}", f"{size_kb:.0f}"]
    return [f"{nights:,}", f"{count:,}", *times]


def median_s(work: Callable[[], object]) -> float:
    """Return the median time of some calls in seconds."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
