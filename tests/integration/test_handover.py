"""The examples of docs/handover.md, run unchanged."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import save
from conftest import ROOT, do_shards, make_plan
from PIL import Image

from petseg.data import encode, labels
from petseg.data.pairs import decode_pair
from petseg.inference import output_folder
from petseg.inference.plan import Outputs

PAGE = (ROOT / "docs" / "handover.md").read_text()
Example = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with photos of one colour each (one is broken), their masks, and a run. The colour gives the class."""
    folder = tmp_path_factory.mktemp("desk")
    for name, colour in {"a/0": "red", "a/2": "blue", "b/1": "lime"}.items():
        path = folder / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), colour).save(path)
    (folder / "photos" / "b" / "3.jpg").write_bytes(b"broken")
    plan = make_plan(folder / "photos", folder / "masks", outputs=Outputs(coco_rle=True))
    output_folder.begin(plan, overwrite=False)
    output_folder.finish(plan, do_shards(plan, 0, 1))
    save(folder / "runs" / "first", 0.5)
    return folder


@pytest.fixture
def example(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    """Function that runs the page's block with a given text in the folder and returns its variables."""
    monkeypatch.chdir(desk)
    for variable in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))

    def run(text: str) -> dict[str, Any]:
        blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
        [code] = [block for block in blocks if text in block]
        code = code.replace("/data/masks", str(desk / "masks")).replace("/data/all", str(desk / "photos"))
        found: dict[str, Any] = {}
        exec(code, found)  # noqa: S102 - our own
        return found

    return run


def test_handover_duckdb_example_finds_the_fractions(example: Example) -> None:
    rows = example("import duckdb")["rows"]
    assert {name: share for name, share, _ in rows} == {"a/0": 1.0, "a/2": 0.0, "b/1": 0.0}


def test_handover_pandas_example_finds_the_failed_photo(example: Example) -> None:
    found = example("failed = ")
    assert len(found["table"]) == 4
    assert found["failed"].id.tolist() == ["b/3"]


def test_handover_hugging_face_example_loads_the_masks(example: Example) -> None:
    found = example("import datasets")
    assert found["masks"]["id"][:] == ["a/0", "a/2", "b/1"]
    assert found["photo"].size == found["mask"].size == (30, 20)
    assert not np.asarray(found["mask"]).any()


def test_handover_coco_example_reads_the_annotations(example: Example) -> None:
    found = example("import json")
    assert len(found["photos"]) == len(found["annotations"]) == 3
    assert found["pets"].shape == (20, 30) and found["pets"].all()
    assert {annotation["category_id"] for annotation in found["annotations"]} == {0, 1, 2}
    assert found["found"].cats[2]["name"] == "border"


def test_handover_png_example_reads_class_ids(example: Example) -> None:
    class_ids = example("class_ids = ")["class_ids"]
    assert class_ids.shape == (20, 30) and class_ids.dtype == np.uint8 and not class_ids.any()


def test_handover_mask_saved_again_keeps_its_class_ids(tmp_path: Path) -> None:
    """Saves the mask as a program that paints in indexed colour does."""
    class_ids = np.arange(6, dtype=np.uint8).reshape(2, 3) % 3
    (tmp_path / "a.png").write_bytes(encode.encode_mask(class_ids, labels.palette(3)))
    Image.open(tmp_path / "a.png").save(tmp_path / "b.png")
    Image.new("RGB", (3, 2)).save(tmp_path / "photo.png")
    label_map = labels.LabelMap.parse("0:0,1:1,2:2", 3)
    photo, mask = ((tmp_path / name).read_bytes() for name in ("photo.png", "b.png"))
    assert np.array_equal(decode_pair(photo, mask, (2, 3), label_map, 10**6).truth_ids(), class_ids)


PAINT = """
(let* ((image (car (gimp-file-load RUN-NONINTERACTIVE "mask.png" "mask.png")))
       (layer (car (gimp-image-get-active-drawable image)))
       (palette (cadr (gimp-image-get-colormap image)))
       (border (list (vector-ref palette 6) (vector-ref palette 7) (vector-ref palette 8))))
  (gimp-context-set-foreground border)
  (gimp-image-select-rectangle image CHANNEL-OP-REPLACE 20 0 10 5)
  (gimp-drawable-edit-fill layer FILL-FOREGROUND)
  (gimp-file-save RUN-NONINTERACTIVE image layer "painted.png" "painted.png"))
"""


def test_handover_gimp_painting_keeps_class_ids(tmp_path: Path) -> None:
    gimp = shutil.which("gimp-console-2.10")  # GIMP 3 has other function names
    if gimp is None:
        pytest.skip("GIMP 2.10 is not installed")
    class_ids = np.zeros((20, 30), np.uint8)
    class_ids[5:15, 5:20] = 1
    (tmp_path / "mask.png").write_bytes(encode.encode_mask(class_ids, labels.palette(3)))
    batch = ["-b", PAINT.replace("\n", " "), "-b", "(gimp-quit 0)"]
    done = subprocess.run([gimp, "-i", "-d", "-f", *batch], cwd=tmp_path, capture_output=True, timeout=120)
    assert (tmp_path / "painted.png").exists(), done.stderr.decode()
    class_ids[:5, 20:] = 2
    painted = Image.open(tmp_path / "painted.png")
    assert painted.mode == "P" and np.array_equal(np.asarray(painted), class_ids)


def test_handover_notebook_example_saves_the_mask(example: Example, desk: Path) -> None:
    found = example("import petseg")
    assert sum(found["shares"].values()) == 30 * 20
    assert np.array_equal(np.asarray(Image.open(desk / "mask.png")), found["mask"].class_ids)


def test_handover_every_example_is_run_or_listed_as_not_run() -> None:
    tests = set(re.findall(r'example\("(.*?)"\)', Path(__file__).read_text()))
    blocks = re.findall(r"^```python(| not run)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    for said, block in blocks:
        assert said or any(text in block for text in tests)
