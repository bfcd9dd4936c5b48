from pathlib import Path

import pytest

from petseg import storage
from petseg.config.classes import ClassesConfig
from petseg.config.train import TrainConfig
from petseg.data import demo, labels, oxford_pets
from petseg.data.classes import read_classes, resolve_classes, write_classes
from petseg.data.labels import IGNORE_ID
from petseg.errors import InputError

CELLS = ClassesConfig(classes=("cell", "rest"), label_map="7:cell,9:rest", ignore_label="3")


def test_resolve_classes_no_flags_and_no_file_classes_are_numbered(tmp_path: Path) -> None:
    classes = resolve_classes(TrainConfig(), str(tmp_path))
    assert classes.names == ("class_0", "class_1", "class_2")
    assert classes.palette == labels.palette(3)
    assert classes.label_map.ids == {1: 0, 2: 1, 3: 2, 255: IGNORE_ID}


def test_resolve_classes_file_in_mask_folder_sets_names_and_label_map(tmp_path: Path) -> None:
    write_classes(str(tmp_path), CELLS)
    assert read_classes(str(tmp_path)) == CELLS
    classes = resolve_classes(TrainConfig(), str(tmp_path))
    assert (classes.names, classes.label_map.ids) == (("cell", "rest"), {7: 0, 9: 1, 3: IGNORE_ID})
    assert classes.palette == labels.palette(2)
    assert resolve_classes(TrainConfig(ignore_label="4"), str(tmp_path)).label_map.ids == {7: 0, 9: 1, 4: IGNORE_ID}


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        (TrainConfig(classes="a,b"), "--classes"),
        (TrainConfig(num_classes=4), "--num-classes"),
        (TrainConfig(label_map="0:0,1:1,2:2"), "--label-map"),
    ],
)
def test_resolve_classes_flag_and_file_flag_wins_with_a_note(
    flags: TrainConfig, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(str(tmp_path), CELLS)
    assert "cell" not in resolve_classes(flags, str(tmp_path)).names
    assert capsys.readouterr().out == f"note: {tmp_path}/classes.json is not used, because {flag} is given\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"classes": ["a", "b"]}', "the setting label_map is missing"),
        ('{"classes": ["a", "a"], "label_map": "0:0,1:1"}', "give a name of its own to each class"),
        ('{"classes": ["a", "b"], "label_map": "0:0"}', "no raw value gives class 1 of 2"),
        ('{"classes": ["a", "b"], "label_map": "0:0,1:1", "palette": [[1, 2, 3]]}', "give one colour per class"),
        (
            '{"classes": ["a", "b"], "label_map": "0:0,1:1", "palette": [[1, 2, 3], [0, 0, 256]]}',
            "from 0 to 255",
        ),
    ],
)
def test_resolve_classes_invalid_file_is_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        resolve_classes(TrainConfig(), str(tmp_path))
    assert "classes.json" in str(caught.value) or "palette" in str(caught.value)


def test_resolve_classes_generated_set_has_the_pet_dataset_classes(tmp_path: Path) -> None:
    _, trimaps = demo.draw_set(str(tmp_path / "drawn"), count=1)
    classes = resolve_classes(TrainConfig(), trimaps)
    assert classes.names == ("pet", "background", "border")
    assert classes.palette == oxford_pets.CLASSES.palette
    assert str(classes.label_map) == "1:0,2:1,3:2,255:255"


def test_file_that_may_not_be_read_in_a_bucket_is_taken_as_missing_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deny(location: str) -> bytes:
        raise PermissionError(13, "access denied", location)

    monkeypatch.setattr(storage, "read", deny)
    assert read_classes("s3://bucket/masks") is None
    assert capsys.readouterr().out.startswith("note: s3://bucket/masks/classes.json: access denied; the job continues")
    with pytest.raises(PermissionError):
        read_classes("/masks")
