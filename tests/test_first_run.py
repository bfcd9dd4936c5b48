"""The README's first command, as a newcomer gives it."""

import shlex
from pathlib import Path

import pytest
from conftest import RunJob


@pytest.mark.ray
@pytest.mark.own_ray
def test_the_default_run_learns(tmp_path: Path, run_job: RunJob) -> None:
    """The README's first command, smaller and shorter than it is, then the one that it ends by printing."""
    done = run_job("train", "--epochs", 4, "--image-size", 64, 64, timeout_s=1200)
    assert done.returncode == 0, done.stderr
    best, following = done.stdout.splitlines()[-2:]
    constant = 0.75 / 3  # three quarters of the pixels are background, and nothing else would be predicted
    assert float(best.rsplit(" ", 1)[1]) > constant + 0.1
    command = shlex.split(following.removeprefix("next: "))
    assert command[:2] == ["python", "jobs/predict.py"]
    predicted = run_job("predict", *command[2:])
    assert predicted.returncode == 0, predicted.stderr
    [run] = [path for path in (tmp_path / "runs").iterdir() if path.name != "petseg-demo"]
    photos = {path.stem for path in (tmp_path / "runs" / "petseg-demo" / "images").iterdir()}
    assert {path.stem for path in (run / "predictions" / "masks").iterdir()} == photos
