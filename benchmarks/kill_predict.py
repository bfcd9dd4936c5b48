"""Kill a prediction job with SIGKILL at random moments, restart it, and compare its output with an undisturbed job's.

python benchmarks/kill_predict.py --kills 50
python benchmarks/kill_predict.py --kills 20 --place s3://BUCKET/kill

Each kill hits the driver, one of Ray's workers (a task's, the model's, any other) or the node (its raylet, or one of
the agents that the raylet depends on), at a random moment of the job. If the job dies, the same command is run again at
once, while orphaned processes may still be running. After every kill, each file must be byte for byte a file of the
undisturbed job. When the job ends by itself, all files must be there; then the next job starts in an empty folder.
Exit code 0 only if all checks held.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import drawn

from petseg import files, storage

ROOT = Path(__file__).parent.parent
TEMPORARY = ".petseg-tmp-"
VICTIMS = {
    "driver": r"",
    "node": r"/raylet/raylet |^ray::\w+Agent",
    "model": r"^ray::MapWorker\(",
    "task": r"^ray::MapBatches\(",
    "worker": r"^ray::(?!\w+Agent)",
}
"""Kinds of processes to kill, and patterns of their command lines."""

END_S = 600
"""Seconds after which a job that has not ended counts as hanging."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments and victims")
    parser.add_argument("--photos", type=int, default=240, help="number of drawn photos")
    parser.add_argument("--place", help="folder or URI for photos and masks. Default: a temporary folder")
    parser.add_argument("--encoder", default="", help="encoder of timm. Default: the network of the Keras example")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS), help="kinds of processes")
    given = parser.parse_args()
    generator = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="petseg-kill-") as folder:
        place = storage.absolute(given.place or folder)
        inputs = drawn.untrained(Path(folder), encoder=given.encoder), drawn.photos(Path(folder), given.photos)
        ended, kills = run(Path(folder), place, given.kills, inputs, given.victims, generator)
    by_victim = ", ".join(f"{kills.count(victim)} × {victim}" for victim in VICTIMS if victim in kills)
    print(f"{len(kills)} kills ({by_victim}), {ended} jobs ended, each with the same bytes as the undisturbed one")


def run(
    folder: Path, place: str, num_kills: int, inputs: tuple[Path, Path], victims: list[str], generator: random.Random
) -> tuple[int, list[str]]:
    """Kill processes `num_kills` times. Return how many jobs ended by themselves, and the kind of each kill.

    `inputs` are a run and a folder of photos, to which this adds a broken one.
    """
    checkpoint, images = inputs
    photos = len(list(images.iterdir()))
    (images / "broken.jpg").write_bytes(b"broken")
    (images / "pet_0003.jpg").unlink()
    if not storage.is_local(place):
        for path in images.iterdir():
            storage.write(f"{place}/photos/{path.name}", path.read_bytes())
    source = str(images) if storage.is_local(place) else f"{place}/photos"
    flags = ["--overlay", "--probabilities", "--coco-rle", "--shard-size", "4"]
    command = [sys.executable, str(ROOT / "jobs" / "predict.py"), "--checkpoint", str(checkpoint)]
    command += ["--images", source, *flags, "--output"]

    started = time.monotonic()
    log = folder / "log"
    driver = start([*command, f"{place}/undisturbed"], log)
    check(driver.wait() == 0, f"the undisturbed job failed: {log.read_text()[-2000:]}")
    duration_s = time.monotonic() - started
    expected = contents(f"{place}/undisturbed")
    check(len([name for name in expected if name.endswith(".parquet")]) == -(-photos // 4), "shards are missing")
    print(f"undisturbed: {duration_s:.1f} s, {len(expected)} files", flush=True)

    kills: list[str] = []
    ended, output = 0, f"{place}/killed-0"
    while True:
        driver = start([*command, output], log)
        may_fail = False
        moment_s = generator.uniform(0, duration_s)
        while len(kills) < num_kills:
            try:
                driver.wait(moment_s)
                break
            except subprocess.TimeoutExpired:
                victim = generator.choice(victims)
                if kill(driver, victim, generator):
                    kills.append(victim)
                    may_fail = may_fail or victim in ("driver", "node")
                    print(f"{len(kills):4} {victim} after {moment_s:.1f} s more, {survey(output)}", flush=True)
                    wrong = {name for name, content in contents(output).items() if expected.get(name) != content}
                    check(not wrong, f"{sorted(wrong)[:5]} differ from the undisturbed job's files")
                if victim in ("driver", "node"):
                    break
                moment_s = generator.uniform(0, duration_s / 2)
        code = driver.wait(END_S)
        if code == 0:
            check(contents(output) == expected, f"{output}: the files differ from the undisturbed job's")
            leftovers = [name for name in storage.list_names(output) if name.startswith(TEMPORARY)]
            check(not leftovers, f"{output}: temporary files left: {leftovers}")
            ended += 1
            print(f"     job {ended} ended with the same {len(expected)} files", flush=True)
            if len(kills) >= num_kills:
                return ended, kills
            output = f"{place}/killed-{ended}"
        else:
            check(may_fail, f"exit code {code}: {log.read_text()[-4000:]}")


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)  # start its own Ray, which may be killed
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)


def kill(driver: subprocess.Popen[bytes], victim: str, generator: random.Random) -> bool:
    """Send SIGKILL to one process of that kind. Return False if there is none."""
    pids = [driver.pid] if victim == "driver" else matching(driver.pid, VICTIMS[victim])
    if not pids:
        return False
    try:
        os.kill(generator.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def matching(ancestor: int, pattern: str) -> list[int]:
    """Return the descendants of `ancestor` whose command line matches `pattern`."""
    parents, commands = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has just ended
    found = []
    for pid, command in commands.items():
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor and pid != ancestor and re.search(pattern, command):
            found.append(pid)
    return sorted(found)


def contents(output: str) -> dict[str, bytes]:
    """Return the content of every file of an output.

    Leaves out files that contain its location or times, and temporary files.
    """
    if not storage.list_names(output):
        return {}
    others = (files.REPORT, files.CONFIG)
    names = [name for name in storage.list_files(output) if name not in others]  # leaves out hidden files
    found = dict(zip(names, storage.read_each(storage.join(output, name) for name in names), strict=True))
    # Orphans of a killed driver may be replacing a file. It is complete a moment later.
    return {name: content for name, content in found.items() if isinstance(content, bytes)}


def survey(output: str) -> str:
    names = storage.list_names(output)
    written, half = (sum(name.startswith(begin) for name in names) for begin in ("part-", TEMPORARY))
    return f"{written} shards, {half} temporary files" if names else "no files yet"


def check(held: bool, otherwise: str) -> None:
    if not held:
        sys.exit(f"FAILED: {otherwise}")


if __name__ == "__main__":
    main()
