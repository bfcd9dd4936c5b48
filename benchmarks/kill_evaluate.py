"""Kill an evaluation with SIGKILL at random moments, restart it, and compare its scores with those of one process.

python benchmarks/kill_evaluate.py --kills 20
python benchmarks/kill_evaluate.py --kills 10 --place s3://BUCKET/kill

The undisturbed evaluation runs in one process without Ray, the killed ones with two workers on Ray. The rows, the
pictures and all numbers must be the same, to the last digit. See `kill_predict.py` for the victims.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import drawn
from kill_predict import END_S, ROOT, VICTIMS, Job, kill
from nights import check

from petseg import files, storage
from petseg.data import demo

DRAWN = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments and victims")
    parser.add_argument("--pairs", type=int, default=1536, help="number of pairs; a shard has 128")
    parser.add_argument("--place", help="folder or URI of the outputs. Default: a temporary folder")
    given = parser.parse_args()
    generator = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="petseg-kill-") as folder:
        place = storage.absolute(given.place or folder)
        command = make_command(Path(folder), given.pairs)
        job = Job([*command, f"{place}/undisturbed"], f"{place}/undisturbed", Path(folder) / "log")
        check(job.driver.wait() == 0, f"the undisturbed job failed: {job.log.read_text()[-2000:]}")
        expected = scores(f"{place}/undisturbed")
        print(f"undisturbed: {time.monotonic() - job.started:.1f} s, {len(expected)} files", flush=True)
        ended, kills = run([*command[:-1], "--num-workers", "2", "--output"], place, given.kills, expected, generator)
    by_victim = ", ".join(f"{kills.count(victim)} × {victim}" for victim in VICTIMS if victim in kills)
    print(f"{len(kills)} kills ({by_victim}), {ended} jobs ended, each with the scores of the undisturbed one")


def make_command(folder: Path, count: int) -> list[str]:
    """Return the command, up to its output, for an untrained network and links to drawn pairs."""
    images, masks = demo.draw_set(str(folder / "drawn"), count=DRAWN, seed=1)
    (Path(masks) / files.CLASSES).unlink()  # only pairs are to be repeated
    pairs = (drawn.repeated(folder / name, Path(source), count) for name, source in (("a", images), ("b", masks)))
    flags = [text for pair in zip(("--images", "--masks"), map(str, pairs), strict=True) for text in pair]
    script = str(ROOT / "jobs" / "evaluate.py")
    return [sys.executable, script, "--checkpoint", str(drawn.untrained(folder)), *flags, "--output"]


def run(
    command: list[str], place: str, num_kills: int, expected: dict[str, object], generator: random.Random
) -> tuple[int, list[str]]:
    """Kill processes `num_kills` times. Return how many jobs ended by themselves, and the kind of each kill."""
    kills: list[str] = []
    ended, duration_s, may_fail = 0, 20.0, False
    log = Path(tempfile.gettempdir()) / "petseg-kill-evaluate.log"
    while len(kills) < num_kills or may_fail:
        output = f"{place}/killed-{ended}"
        job, may_fail, num_before = Job([*command, output], output, log), False, len(kills)
        # Late moments are more likely than early ones: for half of the time, Ray and the processes start.
        while (
            len(kills) < num_kills
            and not may_fail
            and job.runs_after(generator.triangular(0, duration_s, 0.9 * duration_s))
        ):
            if kill(job.driver, victim := generator.choice(list(VICTIMS)), generator):
                kills.append(victim)
                shards = len(storage.list_names(storage.join(output, files.EVALUATION_SHARDS)))
                print(f"{len(kills):4} {victim}, {shards} shards", flush=True)
                may_fail = victim in ("driver", "node")
        check(not job.runs_after(END_S), "the job hangs")
        code = job.driver.returncode
        if len(kills) == num_before:
            duration_s = time.monotonic() - job.started
        check(code == 0 or may_fail, f"exit code {code}: {log.read_text()[-4000:]}")
        if code == 0:
            found, may_fail = scores(output), False
            differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            check(not differing, f"{output}: {differing} differ from the undisturbed job's")
            left = [name for name in storage.list_names(output) if name.startswith((".", files.EVALUATION_SHARDS))]
            check(not left, f"{output}: {left} are left")
            ended += 1
            print(f"     job {ended} ended with the same {len(expected)} files", flush=True)
    log.unlink(missing_ok=True)
    return ended, kills


def scores(output: str) -> dict[str, object]:
    """Return the content of the rows and the pictures, and the numbers of `metrics.json`, by file name."""
    names = [name for name in storage.list_files(output) if name.startswith((files.SCORES, files.WORST_FOLDER))]
    contents: dict[str, object] = {name: storage.read(storage.join(output, name)) for name in names}
    metrics = json.loads(storage.read(storage.join(output, files.METRICS)))
    del metrics["settings"]  # the number of workers
    return contents | {files.METRICS: metrics}


if __name__ == "__main__":
    main()
