"""The house: who may import whom, and what a job may load before it knows that its flags are good."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BASE = {
    *(
        "config",
        "errors",
        "train_config",
        "predict_config",
        "prepare_config",
        "s3_client",
        "s3",
        "objects",
        "disk",
        "storage",
        "access",
        "labels",
        "unet",
        "metrics",
        "precision",
    ),
    *("cli", "flags", "progress", "isolate"),
}
LAYERS = (
    BASE,
    {"recipes", "augment", "losses"},
    {
        *("manifest", "splits", "images", "labelled", "pictures", "report", "checkpoint", "demo", "runs", "coco"),
        *("download", "oxford"),
        *("prepared", "optim", "logs"),
    },
    {
        *("cluster", "feed", "share", "learner", "train", "predict", "evaluate", "samples", "plans", "shards", "rows"),
        *("prepare", "launch", "predicted", "reports", "check", "check_report", "duplicates"),
        *("segmenter", "export", "card"),
    },
)
HEAVY = {"ray", "torch", "torchvision", "pandas", "matplotlib"}

# A file may use its own layer only where that is written here.
WITHIN_A_LAYER = {
    "s3_client": {"errors"},
    "s3": {"errors", "s3_client"},
    "objects": {"errors", "s3", "s3_client"},
    "disk": {"errors"},
    "storage": {"disk", "errors", "objects"},
    "access": {"errors", "storage"},
    "labels": {"errors"},
    "precision": {"config"},
    "cli": {"config", "errors", "flags", "storage", "train_config"},
    "flags": {"config", "errors"},
    "metrics": {"labels"},
    "oxford": {"download", "images", "labelled"},
    "labelled": {"images"},
    "pictures": {"images"},
    "feed": {"cluster"},
    "share": {"cluster", "feed"},
    "train": {"cluster", "feed", "learner", "share"},
    "splits": {"manifest"},
    "runs": {"manifest", "splits"},
    "evaluate": {"predict"},
    "segmenter": {"predict"},
    "samples": {"evaluate", "feed", "predict", "share"},
    "predicted": {"plans", "shards"},
    "reports": {"plans", "predicted", "shards"},
    "check": {"duplicates"},
    "check_report": {"check", "duplicates", "reports"},
    "shards": {"plans"},
    "rows": {"plans", "shards"},
    "config": {"errors"},
    "predict_config": {"config"},
    "prepare_config": {"config"},
    "train_config": {"config"},
}
FILES = sorted((ROOT / "petseg").glob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "petseg":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("petseg."):
            rooms.add(str(node.module).split(".")[1])
    return rooms


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add(str(node.module).split(".")[0])
    return packages


def test_every_file_has_a_layer() -> None:
    assert {path.stem for path in FILES} - {"__init__"} == set.union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_import_from_lower_layers_only(path: Path) -> None:
    for number, layer in enumerate(LAYERS):
        if path.stem in layer:
            allowed = set().union(*LAYERS[:number]) | WITHIN_A_LAYER.get(path.stem, set())
            assert imported_rooms(path) <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_jobs_do_not_import_one_another(path: Path) -> None:
    assert "jobs" not in imported_packages(path)


def test_ray_stays_where_it_belongs() -> None:
    assert {path.stem for path in FILES if "ray" in imported_packages(path)} == {
        "cluster",
        "feed",
        "launch",
        "share",
        "train",
    }
    assert {path.stem for path in FILES if "import ray.train" in path.read_text()} == {"train"}


@pytest.mark.parametrize(
    "job", ["train", "predict", "evaluate", "export", "prepare", "prepare oxford-pets", "prepare shards"]
)
def test_help_loads_neither_torch_nor_ray(job: str) -> None:
    job, *words = job.split()
    code = f"""
import runpy, sys
sys.argv = ["{job}.py", *{words!r}, "--help"]
try:
    runpy.run_path({str(ROOT / "jobs" / f"{job}.py")!r}, run_name="__main__")
except SystemExit as exit:
    assert exit.code == 0
print(sorted(set(sys.modules) & {HEAVY!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
