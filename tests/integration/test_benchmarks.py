"""The benchmarks: the arithmetic behind their tables and, as slow tests, a complete run of each script."""

import subprocess
import sys
from pathlib import Path

import accuracy
import beside
import label_errors
import numpy as np
import picture
import pytest
import train_cpu

from petseg.data import demo, manifest

EPOCHS = [
    {"epoch": 1, "train_loss": 1.0, "train_images_per_s": 40.0, "seconds": 3.0},
    {"epoch": 2, "train_loss": 0.9, "train_images_per_s": 100.0, "seconds": 1.0},
    {"epoch": 3, "train_loss": 0.8, "train_images_per_s": 120.0, "seconds": 1.5},
]


def test_figures_only_the_first_epoch_includes_decoding() -> None:
    found = train_cpu.figures(EPOCHS, images=80, decode_s=3.0, whole_s=20.0)
    assert found == {
        train_cpu.FIRST: pytest.approx(16),  # 80 images in 3 s and 80 / 40 s
        train_cpu.LATER: pytest.approx(110),
        train_cpu.WHOLE: 20.0,
        train_cpu.START: pytest.approx(11.5),
        train_cpu.LOSS: 0.8,
    }


def test_tables_ratios_are_per_round_and_of_rates_only() -> None:
    measured = {
        train_cpu.LATER: {"a": [10.0, 60.0, 30.0], train_cpu.PEER: [10.0, 20.0, 15.0], "b": [5.0, 10.0, 30.0]},
        train_cpu.WHOLE: {"a": [7.0, 9.0, 8.0], train_cpu.PEER: [1.0, 1.0, 4.0], "b": [2.0, 2.0, 2.0]},
        "alone, images/s": {"fp32": [3.0, 3.0, 3.0], train_cpu.PEER: [2.0, 2.0, 2.0]},
    }
    assert train_cpu.tables(measured) == [
        "| | a | b | Keras | a ÷ Keras | b ÷ Keras |\n"
        "|---|---|---|---|---|---|\n"
        "| later epochs, images/s | 30.0 (10.0 to 60.0) | 10.0 (5.0 to 30.0) | 15.0 (10.0 to 20.0) "
        "| 2.00 (1.00 to 3.00) | 0.50 (0.50 to 2.00) |\n"
        "| the whole, s | 8.0 (7.0 to 9.0) | 2.0 (2.0 to 2.0) | 1.0 (1.0 to 4.0) | | |",
        "| | fp32 | Keras | fp32 ÷ Keras |\n"
        "|---|---|---|---|\n"
        "| alone, images/s | 3.0 (3.0 to 3.0) | 2.0 (2.0 to 2.0) | 1.50 (1.50 to 1.50) |",
    ]


def test_link_pairs_each_link_keeps_photo_and_mask_together(drawn: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks, count = train_cpu.link_pairs(tmp_path, str(drawn[0]), str(drawn[1]), 5)
    linked = manifest.discover(images, masks).to_pylist()
    assert count == len(linked) == 5
    for pair in linked:
        photo = Path(pair["image"]).resolve()
        assert photo.parent == drawn[0] and Path(pair["mask"]).resolve() == drawn[1] / f"{photo.stem}.png"
    assert len({Path(pair["image"]).resolve() for pair in linked}) == 5


def test_cell_has_median_and_range() -> None:
    assert beside.cell([3.0, 1000.0, 2.0], 1) == "3.0 (2.0 to 1,000.0)"


def test_ratio_compares_the_same_round() -> None:
    assert beside.ratio([10.0, 60.0, 30.0], [10.0, 20.0, 15.0]) == "2.00 (1.00 to 3.00)"


def test_picture_equals_the_figures_in_the_results() -> None:
    results = picture.RESULTS.read_text()
    assert picture.PICTURE.read_text() == picture.draw(results), "run benchmarks/picture.py"
    curve = picture.draw_curve(results)
    assert picture.CURVE.read_text() == curve, "run benchmarks/picture.py"
    points = [line for line in curve.splitlines() if line.startswith("<circle")]
    assert len(points) == len(set(points)) == 2 * 6  # two recipes, from 50 to 1,319 pairs


def test_pet_with_border_counts_both_as_one_class() -> None:
    # 16 of the 20 pixels of pet or border are found, and 4 pixels of background are taken for one of them.
    confusion = [[5, 2, 1], [1, 20, 3], [4, 2, 6]]
    found = {
        **{"cross_entropy": 0.5, "pixel_accuracy": 0.6, "miou": 0.7},
        **{"iou": {"pet": 0.1, "background": 0.2, "border": 0.3}, "confusion": confusion, "history": [{}, {}]},
        **{"original_size": {"miou": 0.4, "boundary_miou": 0.3}, "checkpoint": {"epoch": 1}},
    }
    cells = accuracy._cells(found)
    assert cells == ["2", "1", "0.500", "0.600", "0.700", "0.100", "0.200", "0.300", f"{16 / 24:.3f}", "0.400", "0.300"]


def test_value_is_found_by_section_row_and_column() -> None:
    results = (
        "## One\n| | a |\n|---|---|\n| x | 1 |\n\n## Two\n| | a | b |\n|---|---|---|\n| y | 3 | 1,200 (1,100 to 2) |\n"
    )
    assert picture.value(results, "Two", "y", "b") == 1200
    for heading, row, column in [("Two", "x", "a"), ("One", "x", "b")]:
        with pytest.raises(LookupError):
            picture.value(results, heading, row, column)


def test_label_errors_table_counts_each_kind_in_the_first_tenth() -> None:
    kinds = list(label_errors.KINDS)
    planted = {"a": kinds[0], "b": kinds[1], "c": kinds[1]}
    ids = "abcdefghijklmnopqrst"  # of 20 pairs, the first two are looked through
    falling = {row_id: float(-rank) for rank, row_id in enumerate(ids)}
    rows = label_errors.table(planted | dict(zip("uvw", kinds[2:], strict=True)), {"falling": falling})
    found = {row[0]: row[1:] for row in rows}
    assert found[kinds[0]] == ["1", "100%"] and found[kinds[1]] == ["2", "50%"] and found["all"] == ["6", "33%"]
    assert label_errors.average_precision("axbxc", planted) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


@pytest.mark.parametrize("kind", label_errors.KINDS)
def test_label_errors_each_kind_changes_the_mask_and_keeps_its_values(kind: str) -> None:
    mask = np.full((30, 50), demo.BACKGROUND, np.uint8)
    mask[8:20, 5:20], mask[10:18, 7:18] = demo.BORDER, demo.PET
    changed = label_errors.KINDS[kind](mask, np.random.default_rng(0))
    assert changed.shape == mask.shape and changed.dtype == np.uint8 and (changed != mask).any()
    assert {*np.unique(changed)} <= {demo.PET, demo.BACKGROUND, demo.BORDER}
    assert ((changed == demo.PET).sum() > 0) == (kind != "pet missing")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    "command",
    [
        "growth.py --counts 16 32 --shard-size 8 --shard-photos 16 --pairs 64 --epochs 2 --steps 1 --rounds 1",
        "ingest.py --pairs 16 --epochs 2 --rounds 1",
        "networks.py --size 32 32 --steps 1 --rounds 1",
        "scenes.py rare --train 8 --test 2 --epochs 0",
        "label_errors.py --pairs 40 --epochs 1 --side 32 --output {folder}",
        "limits.py --count 600 --pairs 96 --rounds 1",
        "predict_memory.py --counts 20 --names 1000",
        "startup.py --rounds 1",
        "train_gpu.py --device cpu --pairs 64 --batches 8 --steps 3 --rounds 1 --epochs 1",
    ],
)
def test_benchmark_script_small_sizes_prints_a_table(command: str, tmp_path: Path) -> None:
    """Scripts that compare with another library are not run, because they install it."""
    script, *flags = command.format(folder=tmp_path).split()
    done = subprocess.run(
        [sys.executable, str(beside.ROOT / "benchmarks" / script), *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "|---|" in done.stdout
