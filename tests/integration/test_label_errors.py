"""`petseg prepare check --checkpoint`: planted label errors come first, and pairs that were trained on are marked."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from checkpoints import CONFIG
from conftest import ROOT, RunJob, assert_refused
from PIL import Image

from petseg.config.train import TrainConfig
from petseg.data import demo, manifest
from petseg.data.labels import LabelMap
from petseg.data.pairs import decode_pair
from petseg.models import checkpoint, encoder_weights
from petseg.models.build import build
from petseg.reports.html import number
from petseg.training import run_folder

SIDE, PAIRS, STEPS = 64, 64, 80
PLANTED = {"pet_0003": "swapped", "pet_0009": "erased", "pet_0017": "shifted"}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a pretrained network, after a few steps on generated pets of another seed. Do not change it."""
    folder = tmp_path_factory.mktemp("judge")
    pairs = manifest.discover(*demo.draw_set(str(folder / "other"), count=PAIRS, seed=1))
    label_map = LabelMap.parse("", 3)
    decoded = [
        decode_pair(photo, mask, (SIDE, SIDE), label_map, 10**6) for _, photo, mask, _ in manifest.read_pairs(pairs)
    ]
    photos = torch.from_numpy(np.stack([pair.photo.pixels for pair in decoded])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([pair.class_ids for pair in decoded])).long()
    model = dataclasses.replace(CONFIG, image_size=(SIDE, SIDE))
    model = encoder_weights.with_encoder(model, "tf_efficientnet_lite0")
    torch.manual_seed(0)
    network = build(model)
    network.load_state_dict(encoder_weights.load_encoder_weights(model, ""), strict=False)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for step in range(STEPS):
        rows = slice(step * 8 % PAIRS, step * 8 % PAIRS + 8)
        loss = F.cross_entropy(network(photos[rows]), masks[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    history = [{"epoch": 1, "val_loss": 1.0}]
    checkpoint.save(str(folder / "run"), network, checkpoint.TrainState({}), model, history)
    others = pairs.set_column(0, "id", pa.array([f"other/{row_id}" for row_id in pairs["id"].to_pylist()]))
    parts = {"train": others, "val": others.slice(0, 0)}
    run_folder.begin(TrainConfig(storage=str(folder), name="run"), parts)
    return folder / "run"


@pytest.fixture
def spoilt(drawn: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The generated set with the `PLANTED` errors in its masks."""
    masks = shutil.copytree(drawn[1], tmp_path / "masks")
    for name, kind in PLANTED.items():
        mask = np.array(Image.open(masks / f"{name}.png"))
        if kind == "swapped":
            mask = np.array([0, demo.BACKGROUND, demo.PET, demo.BORDER], np.uint8)[mask]
        elif kind == "erased":
            mask[:] = demo.BACKGROUND
        else:
            mask = np.roll(mask, mask.shape[1] // 4, axis=1)
        Image.fromarray(mask).save(masks / f"{name}.png")
    return drawn[0], masks


def fold(judge: Path, folder: Path, trained: list[str]) -> Path:
    """Return a copy of the run that lists these pairs as those it was trained on."""
    shutil.copytree(judge, folder)
    rows = [{"id": row_id, "image": "", "mask": "", "split": "train"} for row_id in trained]
    pq.write_table(pa.Table.from_pylist([*rows, {"id": "x", "split": "val"}]), folder / "manifest.parquet")
    return folder


def check(call_job: RunJob, spoilt: tuple[Path, Path], *flags: object) -> subprocess.CompletedProcess[str]:
    names = ("--images", spoilt[0], "--masks", spoilt[1], "--output", "checked", "--overwrite")
    return call_job("prepare", "check", *names, *flags)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of `check.parquet`, the largest disagreement first."""
    return pq.read_table(folder / "checked" / "check.parquet").sort_by([("disagreement", "descending")]).to_pylist()


def test_check_planted_label_errors_come_first(
    judge: Path, spoilt: tuple[Path, Path], call_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "masks" / "pet_0000.png").write_bytes(b"broken")
    done = check(call_job, spoilt, "--checkpoint", judge)
    rows = rows_of(tmp_path)
    first = [row["id"] for row in rows[:3]]
    assert {*first} == {*PLANTED}
    assert f"  possible label errors, by the disagreement of the networks: {first[0]} (" in done.stdout
    scored = [row for row in rows if row["error"] is None]
    assert len(scored) == len(rows) - 1 == 23
    assert all(row["disagreement"] > 0 and row["out_of_fold"] is True for row in scored)
    [broken] = [row for row in rows if row["error"] is not None]
    assert (broken["id"], broken["disagreement"], broken["out_of_fold"]) == ("pet_0000", None, None)
    page = (tmp_path / "checked" / "report.html").read_text()
    assert "Possible label errors" in page and f"disagreement {number(rows[0]['disagreement'])}" in page
    assert page.index(f">{first[0]}<") < page.index(f">{first[1]}<")
    # By the checkpoint instead of the run, and again: the same.
    [location] = (judge / "checkpoints").iterdir()
    check(call_job, spoilt, "--checkpoint", location)
    assert rows_of(tmp_path) == rows


def test_check_label_errors_do_not_block_training(judge: Path, spoilt: tuple[Path, Path], call_job: RunJob) -> None:
    done = check(call_job, spoilt, "--checkpoint", judge)
    assert (done.returncode, done.stderr) == (0, "")
    expected = f"next: python {ROOT}/jobs/train.py --images {spoilt[0]} --masks {spoilt[1]}"
    assert done.stdout.splitlines()[-1] == expected


def test_check_pairs_that_all_runs_trained_on_are_marked_and_come_last(
    judge: Path, spoilt: tuple[Path, Path], call_job: RunJob, tmp_path: Path
) -> None:
    ids = sorted(path.stem for path in spoilt[0].iterdir())
    seen = ["pet_0003", "pet_0020"]
    folds = [fold(judge, tmp_path / str(number), [*ids[number::2], *seen]) for number in (0, 1)]
    done = check(call_job, spoilt, "--checkpoint", *folds)
    rows = rows_of(tmp_path)
    assert sorted(row["id"] for row in rows if not row["out_of_fold"]) == seen and len(rows) == 24
    assert rows[0]["id"] == "pet_0003"  # has the largest disagreement, but may have been learned
    [line] = [line for line in done.stdout.splitlines() if "possible label errors" in line]
    assert "pet_0009" in line and "pet_0017" in line and "pet_0003" not in line
    assert "  2 pairs that every network of --checkpoint was trained on, which may hide label errors; " in done.stdout
    assert "labels 26/26 masks" in done.stdout  # both networks score the two
    page = (tmp_path / "checked" / "report.html").read_text()
    assert page.index(">pet_0009<") < page.index(">pet_0003<") < page.index("A network was trained on this pair.")


def test_check_runs_that_cannot_judge_are_refused(
    judge: Path, spoilt: tuple[Path, Path], call_job: RunJob, tmp_path: Path
) -> None:
    done = check(call_job, spoilt, "--checkpoint", judge, "--classes", "cat,ground,edge")
    assert_refused(
        done,
        f"--checkpoint {judge}: its classes are pet, background, border, but those of the masks are cat, ground, edge;",
    )
    lone = fold(judge, tmp_path / "lone", [])
    (lone / "manifest.parquet").unlink()
    assert_refused(
        check(call_job, spoilt, "--checkpoint", judge, lone), f"--checkpoint {lone}: no manifest.parquet, which lists"
    )
    assert_refused(check(call_job, spoilt, "--use-gpu"), "--use-gpu needs --checkpoint")
    if not torch.cuda.is_available():
        assert_refused(check(call_job, spoilt, "--checkpoint", judge, "--use-gpu"), "torch finds no GPU")
    assert not (tmp_path / "checked").exists()


def test_check_without_a_checkpoint_loads_neither_torch_nor_ray(drawn: tuple[Path, Path], tmp_path: Path) -> None:
    code = f"""
import sys
sys.argv = ["petseg", "check", "--images", {str(drawn[0])!r}, "--masks", {str(drawn[1])!r}, "--output", "checked"]
from petseg.jobs import prepare
prepare.main()
print(sorted(set(sys.modules) & {{"ray", "torch"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    table = pq.read_table(tmp_path / "checked" / "check.parquet")
    assert table["disagreement"].null_count == table["out_of_fold"].null_count == table.num_rows == 24
