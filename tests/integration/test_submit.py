"""`ray job submit` to a head with a token, by the commands of docs/clusters.md.

Checks exit codes and logs as a CI reads them, and which files of a working directory are uploaded.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ec2_metadata
import pyarrow.parquet as pq
import pytest
import ray_head
import yaml
from conftest import PAIRS, ROOT
from ray_head import Head, wait_until

from petseg import files
from petseg.status import read_status

PAGE = (ROOT / "docs" / "clusters.md").read_text()
CI = "ray job submit --submission-id"
STOP = "ray job stop"
PETSEG_IS = "this petseg is "
TINY = "--image-size 64 64 --batch-size 8 --val-count 7 --cpus-per-worker 1"

pytestmark = [pytest.mark.ray, pytest.mark.own_ray]


def command_block(with_words: str) -> str:
    """Return the page's only block of commands with these words."""
    [found] = [code for code in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if with_words in code]
    return found


@dataclass(frozen=True)
class Submitter:
    """A user with a checkout and the token. A folder on the cluster's disk replaces the bucket."""

    head: Head
    checkout: Path
    bucket: Path

    def script(self, with_words: str, changes: dict[str, str] | None = None) -> str:
        """Return the page's line with the cluster's address and one of its blocks, adapted to this cluster."""
        [where] = re.findall(r"^export .*RAY_API_SERVER_ADDRESS=.*\n", PAGE, re.MULTILINE)
        script = where + command_block(with_words)
        for word, becomes in {"8265": str(self.head.dashboard_port), **(changes or {})}.items():
            assert word in script, word
            script = script.replace(word, becomes)
        return script.replace("s3://BUCKET", str(self.bucket))

    def start(self, script: str, log: Path, **env: str) -> subprocess.Popen[bytes]:
        command = ["/bin/bash", "-ec", script]
        with log.open("wb") as file:
            return subprocess.Popen(command, cwd=self.checkout, env=self.head.env | env, stdout=file, stderr=file)

    def run(self, script: str, **env: str) -> tuple[int, str]:
        """Run a script and return its exit code and output."""
        log = self.checkout.parent / "log"
        process = self.start(script, log, **env)
        try:
            wait_until(lambda: process.poll() is not None, 600, log.read_text)
        finally:
            process.kill()
            code = process.wait()
        return code, log.read_text()


def new_checkout(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "*.egg-info", "runs")
    return shutil.copytree(ROOT, folder / "petseg", ignore=ignored)


def start_head(head: Head) -> None:
    """Start a head with two CPUs by the page's command."""
    start, ports = command_block("ray start --head"), "--port=6379 --dashboard-port=8265"
    assert ports in start
    head.start(start.replace(ports, f"{head.flags} --num-cpus=2"))


@pytest.fixture(scope="module")
def submitter(tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Path, Path]) -> Iterator[Submitter]:
    """Submitter to a head that has another petseg installed."""
    checkout, bucket = new_checkout(tmp_path_factory.mktemp("checkout")), tmp_path_factory.mktemp("bucket")
    with (checkout / "petseg" / "__init__.py").open("a") as init:
        init.write('\nprint("this petseg is", __file__, flush=True)\n')
    for name in (
        "runs/first/model.pt",
        "data/pets.tar",
        ".venv/lib/torch.so",
        "env/lib/torch.so",
        ".git/pack",
        "key.pem",
    ):
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, 101 * 2**20)  # a sparse file, larger than the upload limit
    shutil.copytree(drawn[0], bucket / "photos")
    shutil.copytree(drawn[1], bucket / "masks")
    shutil.copytree(drawn[0], bucket / "all")
    (bucket / "all" / "broken.jpg").write_bytes(b"broken")
    home = tmp_path_factory.mktemp("home")
    with ray_head.new(HOME=str(home)) as head:
        start_head(head)
        yield Submitter(head, checkout, bucket)


@pytest.fixture(scope="module")
def trained(submitter: Submitter) -> str:
    """Output of the page's training job, made tiny."""
    changes = {"--num-workers 2": f"--num-workers 1 --epochs 1 {TINY}"}
    code, output = submitter.run(submitter.script("-- python jobs/train.py", changes))
    assert code == 0, output
    return output


def job_lines(output: str) -> list[str]:
    """Return the job's own lines, without Ray's, which begin with the time."""
    return [line for line in output.splitlines() if not re.match(r"\d{4}-\d\d-\d\d |Running entrypoint ", line)]


def test_submit_training_job_is_followed_to_its_end(submitter: Submitter, trained: str) -> None:
    lines = job_lines(trained)
    assert f"training on {PAIRS - 7} pairs, validating on 7; run {submitter.bucket}/runs/first" in lines
    assert [line.split()[:2] for line in lines if line.startswith("epoch")] == [["epoch", "1/1"]]
    assert lines[-2].startswith("best: epoch 1, val loss ")
    assert lines[-1].startswith("next: python jobs/predict.py --checkpoint ")
    assert re.search(r"Job 'raysubmit_\w+' succeeded", trained)
    run = submitter.bucket / "runs" / "first"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert (run / "checkpoints" / "epoch-0001" / "model.pt").is_file()


@pytest.mark.usefixtures("trained")
def test_submit_only_jobs_and_package_are_uploaded_and_run(submitter: Submitter) -> None:
    """Driver, tasks and workers run the uploaded package, although another petseg is installed."""
    session = submitter.head.folder / "ray" / "session_latest"
    [package] = session.glob("runtime_resources/working_dir_files/_ray_pkg_*/")
    sent = {str(path.relative_to(package)) for path in package.rglob("*") if "__pycache__" not in path.parts}
    files = [path for folder in ("jobs", "petseg") for path in (ROOT / folder, *(ROOT / folder).rglob("*"))]
    assert sent == {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    logs = [log for pattern in ("job-driver-*.log", "worker-*.out") for log in session.glob(f"logs/{pattern}")]
    said = [line for log in logs for line in log.read_text().splitlines() if line.startswith(PETSEG_IS)]
    assert len(said) >= 3  # at least the driver, a task and a worker
    assert set(said) == {f"{PETSEG_IS}{package.resolve()}/petseg/__init__.py"}


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_submit_finished_prediction_ci_script_continues(submitter: Submitter) -> None:
    code, output = submitter.run(submitter.script(CI) + "echo went on\n")
    assert code == 0, output
    masks = submitter.bucket / "masks-of-all"
    lines = job_lines(output)
    assert any(line.endswith(f"; {PAIRS + 1} rows, 1 failed: {masks}") for line in lines), output
    assert lines[-1] == "went on"
    assert sum(pq.read_metadata(file).num_rows for file in masks.glob("part-*")) == PAIRS + 1
    assert len(list((masks / "masks").iterdir())) == PAIRS


def test_submit_invalid_flag_ci_script_fails_with_one_line(submitter: Submitter) -> None:
    code, output = submitter.run(submitter.script(CI, {"--output": "--shard-size 0 --output"}) + "echo went on\n")
    assert code == 1
    assert "error: --shard-size 0: give at least 1" in job_lines(output)
    assert "Traceback" not in output and "went on" not in output
    [job] = re.findall(r"Job '(\S+)' submitted", output)
    code, status = submitter.run(submitter.script(STOP, {'stop "$id"': f"status {job}"}))
    assert code == 0 and f"Job '{job}' failed" in status and "exit code 2" in status
    code, log = submitter.run(submitter.script(STOP, {'stop "$id"': f"logs {job}"}))
    assert code == 0 and re.findall("^error: .*", log, re.MULTILINE) == ["error: --shard-size 0: give at least 1"]


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_submit_stopped_job_ci_script_fails_despite_exit_code_0(submitter: Submitter, tmp_path: Path) -> None:
    """The job waits for a cluster that does not grow, so it cannot finish before it is stopped."""
    changes = {"masks-of-all": "stopped", "\nray job status": "\necho ray job submit exits with $?\nray job status"}
    changes["--output"] = "--num-workers 99 --output"
    log = tmp_path / "log"
    ci = submitter.start(submitter.script(CI, changes) + "echo went on\n", log)
    try:
        wait_until(lambda: ci.poll() is not None or "waiting for 99 CPUs" in log.read_text(), 180, log.read_text)
        [job] = re.findall(r"Job '(\S+)' submitted", log.read_text())
        code, output = submitter.run(submitter.script(STOP, {'"$id"': job}))
        assert code == 0, output
        assert ci.wait(60) == 1, log.read_text()
    finally:
        ci.kill()
    assert "ray job submit exits with 0" in log.read_text()
    assert "went on" not in log.read_text()
    status = read_status(f"{submitter.bucket}/stopped")
    assert (status.phase, status.exit_code, status.reason) == ("stopped", 15, "terminated")
    assert [path.name for path in (submitter.bucket / "stopped").iterdir()] == [files.STATUS]


def test_submit_missing_or_wrong_token_is_refused(submitter: Submitter, tmp_path: Path) -> None:
    script = submitter.script("-- python jobs/train.py")
    logs = submitter.head.folder / "ray" / "session_latest" / "logs"
    jobs = len(list(logs.glob("job-driver-*")))
    code, output = submitter.run(script, HOME=str(tmp_path))
    assert code == 1 and "couldn't find an authentication token" in output
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    code, output = submitter.run(script, HOME=str(tmp_path))
    assert code == 1 and "the authentication token is invalid" in output
    code, output = submitter.run(script.replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"))
    assert code == 1 and "AuthenticationError" in output
    assert len(list(logs.glob("job-driver-*"))) == jobs


def test_ray_start_second_machine_joins_only_with_the_token(submitter: Submitter, tmp_path: Path) -> None:
    head, home = submitter.head, Path(submitter.head.env["HOME"])
    join = command_block("ray start --address").replace("scp HEAD:", f"cp {home}/").replace("HEAD:6379", head.address)
    join = join.replace("ray start ", "ray start --block --num-cpus=1 --dashboard-agent-listen-port=0 ")
    join = join.replace("ray start ", f"ray start --object-store-memory={150 * 2**20} ")
    env = {"HOME": str(tmp_path), "RAY_START_HOOK": "ray_head.on_loopback", "PYTHONPATH": str(ROOT / "tests")}
    without = join[join.index("export ") :]
    code, output = submitter.run(without, **env)
    assert code == 1 and "no authentication token was found" in output

    log = tmp_path / "log"
    node = submitter.start(join, log, **env)
    try:
        wait_until(lambda: node.poll() is not None or "Ray runtime started" in log.read_text(), 60, log.read_text)
        assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
        status = f"RAY_AUTH_MODE=token ray status --address={head.address}"
        wait_until(lambda: submitter.run(status, **ray_head.LOOPBACK)[1].count(" 1 node_") == 2, 30)
        drain_by_notice(submitter, env)
        wait_until(lambda: submitter.run(status, **ray_head.LOOPBACK)[1].count(" 1 node_") == 1, 30)
    finally:
        node.terminate()
        node.wait(30)


def drain_by_notice(submitter: Submitter, env: dict[str, str]) -> None:
    """Run the command of cluster.yaml that watches for EC2's notice on the newest node, and give the notice.

    A second watcher sees no notice. It ends because Ray ends on the drained node.
    """
    start = yaml.safe_load((ROOT / "cluster.yaml").read_text())["worker_start_ray_commands"]
    [watch] = [command.replace("/tmp/ray", f"{submitter.head.folder}/ray") for command in start if "spot" in command]  # noqa: S108
    spot_log = submitter.head.folder / "ray" / "session_latest" / "logs" / "spot.log"
    with ec2_metadata.serve() as metadata:
        metadata.interrupt()
        for endpoint, line in (("http://127.0.0.1:1", "no valid answer"), (metadata.address, "is draining")):
            code, output = submitter.run(watch, AWS_EC2_METADATA_SERVICE_ENDPOINT=endpoint, **env, **ray_head.LOOPBACK)
            assert code == 0, output
            wait_until(lambda line=line: spot_log.exists() and line in spot_log.read_text(), 30)
    wait_until(lambda: "petseg.cluster.spot" not in str(submitter.head.processes()), 30)


def test_token_is_readable_only_by_its_owner_and_in_no_log(submitter: Submitter) -> None:
    file = Path(submitter.head.env["HOME"]) / ".ray" / "auth_token"
    assert file.stat().st_mode & 0o077 == 0
    token = file.read_bytes().strip()
    assert len(token) == 64
    folders = (submitter.head.folder / "ray" / "session_latest" / "logs", submitter.bucket, submitter.checkout.parent)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if path.stat().st_size < 2**26]  # without the large sparse ones
    assert len(files) > 50
    assert [path for path in files if token in path.read_bytes()] == []


def without_package(folder: Path) -> dict[str, str]:
    """Return environment variables of a Python that has all packages of this one, except petseg."""
    site, programs = folder / "site", folder / "bin"
    site.mkdir()
    programs.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "petseg" not in path.name and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (programs / "python").symlink_to(python)
    (programs / "ray").write_text(f"#!{python}\nfrom ray.scripts.scripts import main\nmain()\n")
    (programs / "ray").chmod(0o755)
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(site)}


@pytest.mark.slow  # a minute: the tests above submit, too, but to a head that has the package
def test_submit_head_without_the_package_trains_and_reports(tmp_path: Path, drawn: tuple[Path, Path]) -> None:
    env = without_package(tmp_path)
    check = "import importlib.util, ray; assert importlib.util.find_spec('petseg') is None"
    subprocess.run(["python", "-c", check], env=os.environ | env, cwd=tmp_path, check=True)  # noqa: S607
    for name, source in zip(("photos", "masks"), drawn, strict=True):
        shutil.copytree(source, tmp_path / "bucket" / name)
    with ray_head.new(HOME=str(tmp_path), **env) as head:
        start_head(head)
        user = Submitter(head, new_checkout(tmp_path), tmp_path / "bucket")
        changes = {"--num-workers 2": f"--num-workers 1 --epochs 1 {TINY}"}
        code, output = user.run(user.script("-- python jobs/train.py", changes))
    assert code == 0, output
    run = tmp_path / "bucket" / "runs" / "first"
    assert f"report: {run}/report.html" in job_lines(output)
    assert (run / "report.html").is_file()
