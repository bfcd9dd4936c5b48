"""Kill a prediction job with SIGKILL at random moments, restart it, and compare its output with an undisturbed job's.

python benchmarks/kill_predict.py --kills 50
python benchmarks/kill_predict.py --kills 50 --append --retry-errors --second-starts
python benchmarks/kill_predict.py --kills 20 --place s3://BUCKET/kill

Each kill hits the driver, one of Ray's workers (a task's, the model's, any other) or the node (its raylet, or one of
the agents that the raylet depends on), at a random moment of the job. If the job dies, the same command is run again at
once, while orphaned processes may still be running. After every kill, each file must be byte for byte a file of the
undisturbed job, and no photo may have two rows. When the job ends by itself, all files must be there; then the next
round starts in an empty folder. Exit code 0 only if all checks held.

With --append or --retry-errors, a round is several nights in the same folder: `nights.py` says which photos each one
finds. After a kill, each file must be that of the undisturbed job before this night, or after it.

With --second-starts, the command is also started while the job runs, which must refuse it.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import drawn
from nights import BROKEN, Night, Undisturbed, check, check_files, contents, ids_of, lay_out, make_nights

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

KILLS_A_NIGHT = 3
"""Maximum number of kills in a night, so that the later nights have theirs."""

SHARD_SIZE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments and victims")
    parser.add_argument("--photos", type=int, default=240, help="number of drawn photos")
    parser.add_argument("--append", action="store_true", help="add a night with new, changed and missing photos")
    parser.add_argument("--retry-errors", action="store_true", help="add a night in which a broken photo is mended")
    parser.add_argument("--second-starts", action="store_true", help="start the command also while the job runs")
    parser.add_argument("--place", help="folder or URI for photos and masks. Default: a temporary folder")
    parser.add_argument("--encoder", default="", help="encoder of timm. Default: the network of the Keras example")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS), help="kinds of processes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="petseg-kill-") as folder:
        nights = make_nights(drawn.photos(Path(folder), given.photos), given.append, given.retry_errors)
        checkpoint = drawn.untrained(Path(folder), encoder=given.encoder)
        place = storage.absolute(given.place or folder)
        campaign = Campaign(
            Path(folder) / "log",
            place,
            checkpoint,
            nights,
            given.victims,
            given.second_starts,
            random.Random(given.seed),
        )
        campaign.run(given.kills)
    campaign.print_totals()


@dataclass
class Campaign:
    """Rounds of nights: undisturbed ones, and then those with kills."""

    log: Path
    """File for the lines of a job."""
    place: str
    checkpoint: Path
    nights: list[Night]
    victims: list[str]
    second_starts: bool
    generator: random.Random
    kills: list[str] = field(default_factory=list)
    """Kind of each killed process."""
    most_kills: int = 0
    """Number of kills in all at which a night is left alone."""
    num_ended: int = 0
    """Number of jobs that ended by themselves after a night with kills."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from each start until it held the output, or was refused, by kind."""

    def run(self, num_kills: int) -> None:
        """Kill processes `num_kills` times, and check the files."""
        undisturbed = self.run_undisturbed()
        for number in itertools.count():
            for night, expected in zip(self.nights, undisturbed, strict=True):
                self.most_kills = min(num_kills, len(self.kills) + KILLS_A_NIGHT)
                self.finish_night(night, f"{self.place}/killed-{number}", expected)
                if len(self.kills) >= num_kills:
                    return

    def run_undisturbed(self) -> list[Undisturbed]:
        """Run all nights without a kill."""
        output, before, ids = f"{self.place}/undisturbed", {}, set()
        found = []
        for number, night in enumerate(self.nights):
            lay_out(night.photos, f"{self.place}/photos")
            job = Job(self.command(night, output), output, self.log)
            check(job.driver.wait() == 0, f"the undisturbed job failed: {self.log.read_text()[-2000:]}")
            duration_s, after = time.monotonic() - job.started, contents(output)
            ids |= {Path(name).stem for name in night.photos}
            check(sorted(ids_of(after)) == sorted(ids), "the undisturbed job has not one row for each photo")
            failed = json.loads(after[files.SUCCESS])["failed"]
            check(failed == list(night.photos.values()).count(BROKEN), f"{failed} photos of the undisturbed job failed")
            found.append(Undisturbed(before, after, duration_s))
            print(f"undisturbed night {number}: {duration_s:.1f} s, {len(after)} files", flush=True)
            before = after
        return found

    def command(self, night: Night, output: str) -> list[str]:
        flags = ["--overlay", "--probabilities", "--coco-rle", "--shard-size", str(SHARD_SIZE), *night.flags]
        places = ["--checkpoint", str(self.checkpoint), "--images", f"{self.place}/photos", "--output", output]
        return [sys.executable, str(ROOT / "jobs" / "predict.py"), *places, *flags]

    def finish_night(self, night: Night, output: str, expected: Undisturbed) -> None:
        """Run the job of a night, with kills, until it ends by itself. Its files must be those of the undisturbed."""
        lay_out(night.photos, f"{self.place}/photos")
        while not self.run_once(self.command(night, output), output, expected):
            pass
        check(contents(output) == expected.after, f"{output}: the files differ from the undisturbed job's")
        leftovers = [name for name in storage.list_names(output) if name.startswith((TEMPORARY, files.LOCK))]
        check(not leftovers, f"{output}: temporary files left: {leftovers}")
        self.num_ended += 1
        print(f"     job {self.num_ended} ended with the same {len(expected.after)} files", flush=True)

    def run_once(self, command: list[str], output: str, expected: Undisturbed) -> bool:
        """Start the job, and kill its processes. Return False if that ended it."""
        follows = files.LOCK in storage.list_names(output)
        job = Job(command, output, self.log)
        # Late moments are more likely than early ones: for half of the time, Ray and the processes start.
        pause_s = self.generator.triangular(0, expected.duration_s, expected.duration_s)
        num_before, may_fail = len(self.kills), False
        while len(self.kills) < self.most_kills and not may_fail and job.runs_after(pause_s):
            if self.second_starts and job.held_s is not None and self.generator.random() < 0.5:
                self.start_second(job, command, expected)
            elif kill(job.driver, victim := self.generator.choice(self.victims), self.generator):
                self.kills.append(victim)
                print(f"{len(self.kills):4} {victim} after {pause_s:.1f} s more, {survey(output)}", flush=True)
                if victim == "driver":
                    job.driver.wait()
                check_files(contents(output), expected, is_at_rest=victim == "driver")
                may_fail = victim in ("driver", "node")
            pause_s = self.generator.uniform(0, expected.duration_s / 2)
        check(not job.runs_after(END_S), "the job hangs")
        if len(self.kills) == num_before and not follows:  # the machine may be less busy than it was
            expected.duration_s = min(expected.duration_s, time.monotonic() - job.started)
        if job.held_s is not None:
            self.seconds["start over the lock of a killed job" if follows else "start"].append(job.held_s)
        lines = self.log.read_text()
        check("waiting up to" not in lines, "it waited for the lease of a job that is known to be dead")
        check(job.driver.returncode == 0 or may_fail, f"exit code {job.driver.returncode}: {lines[-4000:]}")
        return job.driver.returncode == 0

    def start_second(self, first: "Job", command: list[str], expected: Undisturbed) -> None:
        """Start the command while a job holds the output. The second one must be refused and change nothing."""
        second = Job(command, first.output, self.log.with_name("log-of-second"))
        check(not second.runs_after(END_S), "the second start hangs")
        seconds = time.monotonic() - second.started
        if not first.holds():  # it has ended meanwhile
            return
        self.seconds["refusal of a second start"].append(seconds)
        code, lines = second.driver.returncode, second.log.read_text().splitlines()
        told = len(lines) == 1 and f"process {first.driver.pid} on " in lines[0] and " is writing there; " in lines[0]
        check(code == 2 and told, f"a second start was not refused: {code}, {lines}")
        check_files(contents(first.output), expected)
        print(f"     second start refused after {seconds:.1f} s, {survey(first.output)}", flush=True)

    def print_totals(self) -> None:
        for what, seconds in self.seconds.items():
            print(f"{len(seconds)} × {what}: median {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s")
        by_victim = ", ".join(f"{self.kills.count(victim)} × {victim}" for victim in VICTIMS if victim in self.kills)
        jobs = f"{self.num_ended} jobs ended, each with the same bytes as the undisturbed one"
        print(f"{len(self.kills)} kills ({by_victim}), {jobs}")


class Job:
    """A started job."""

    def __init__(self, command: list[str], output: str, log: Path) -> None:
        env = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        env.pop("RAY_ADDRESS", None)  # start its own Ray, which may be killed
        self.output, self.log = output, log
        self.started = time.monotonic()
        self.held_s: float | None = None
        """Seconds from its start until it held the output."""
        with log.open("wb") as file:
            self.driver = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)

    def runs_after(self, seconds: float) -> bool:
        """Wait so long, or until the job ends, and return True if it still runs."""
        until = time.monotonic() + seconds
        while self.driver.poll() is None:
            if self.held_s is None and self.holds():
                self.held_s = time.monotonic() - self.started
            left_s = until - time.monotonic()
            if left_s <= 0:
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.driver.wait(left_s if self.held_s is not None else min(left_s, 0.1))
        return False

    def holds(self) -> bool:
        """Return True if the lock or the lease on the output names this job."""
        try:
            return f"process {self.driver.pid} on " in storage.read(storage.join(self.output, files.LOCK)).decode()
        except FileNotFoundError:
            return False


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


def survey(output: str) -> str:
    names = storage.list_names(output)
    written, half = (sum(name.startswith(begin) for name in names) for begin in ("part-", TEMPORARY))
    return f"{written} shards, {half} temporary files" if names else "no files yet"


if __name__ == "__main__":
    main()
