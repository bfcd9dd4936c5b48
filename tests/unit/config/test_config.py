import dataclasses
import json

import pytest

from petseg.config import base
from petseg.config.dataset import DatasetConfig
from petseg.config.evaluate import EvaluateConfig
from petseg.config.model import ModelConfig
from petseg.config.predict import PredictConfig
from petseg.config.prepare import OxfordConfig, ShardsConfig
from petseg.config.train import TrainConfig
from petseg.data import labels
from petseg.errors import InputError

MODEL = ModelConfig(
    num_classes=3,
    image_size=(64, 96),
    class_names=("pet", "background", "border"),
    palette=labels.palette(3),
    label_map="1:0,2:1,3:2",
)


@pytest.mark.parametrize(
    "settings",
    [
        MODEL,
        TrainConfig(images="/a", masks="/b", val_count=3, image_size=(32, 48), num_workers=(2, 8), split_file=("a",)),
        PredictConfig(checkpoint="run", images="photos", output="out", png=False),
        EvaluateConfig(checkpoint="run", images="photos", masks="masks", output="out", limit=3),
        DatasetConfig(
            masks_upright="auto",
            format=1,
            images="/a",
            masks="/b",
            source_sha256="c0ffee",
            image_size=(64, 96),
            resize="antialias",
            label_map=MODEL.label_map,
            class_names=MODEL.class_names,
            palette=MODEL.palette,
            shard_size=9,
            rows=3,
            class_pixels=(1, 2, 3),
            left_out=("a: broken",),
            files=("x", "y"),
            file_rows=(1, 2),
        ),
    ],
    ids=lambda settings: type(settings).__name__,
)
def test_json_round_trip_settings_are_equal(settings: base.Config) -> None:
    assert base.from_json(type(settings), base.to_json(settings), "file") == settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 5}, "config.json: unknown setting depth"),
        ({"num_classes": "three"}, "config.json: num_classes: 'three' is not a valid value"),
        ({"num_classes": True}, "config.json: num_classes: True is not a valid value"),
        ({"image_size": [64]}, r"config.json: image_size: \[64\] is not a valid value"),
        ({"palette": [[1, 2, 3]]}, "palette: one colour per class"),
    ],
)
def test_from_json_unknown_setting_or_wrong_type_is_refused(change: dict[str, object], message: str) -> None:
    text = json.dumps(dataclasses.asdict(MODEL) | change)
    with pytest.raises(InputError, match=message):
        base.from_json(ModelConfig, text, "config.json")


def test_from_json_truncated_or_incomplete_is_refused() -> None:
    with pytest.raises(InputError, match=r"config.json: not JSON"):
        base.from_json(ModelConfig, base.to_json(MODEL)[:40], "config.json")
    with pytest.raises(InputError, match=r"config.json: the setting class_names, .* is missing"):
        base.from_json(ModelConfig, "{}", "config.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": "a"}, "--images and --masks belong together"),
        ({"num_classes": 1}, "--num-classes 1"),
        ({"num_classes": 255}, "--num-classes 255"),
        ({"image_size": (8, 64)}, "--image-size 8 64"),
        ({"crop": (8,)}, "--crop 8: give one number or two"),
        ({"crop": (64,), "image_size": (64, 64)}, "--crop, --image-size: both give the size"),
        ({"crop": (64,), "scale": 0.0}, "--scale 0: give 0.05 to 8"),
        ({"keep_best_by": "iou:"}, "--keep-best-by iou:: give val_loss, miou, or iou:NAME"),
        ({"scale": 0.5}, "--scale needs --crop"),
        ({"crop": (64,), "data": "set"}, "--crop, --data: a prepared set has whole photos"),
        ({"crop": (64,), "recipe": "keras"}, "--crop, --recipe keras: this recipe trains on whole photos"),
        ({"crop": (16,), "batch_size": 1}, "--crop 16 16, --batch-size 1: at this size"),
        ({"val_fraction": 1.0}, "--val-fraction"),
        ({"val_count": 0}, "--val-count 0"),
        ({"val_fold": "0/5"}, "--val-fold 0/5: give a fold and the number of folds, such as 1/5 to 5/5"),
        ({"val_fold": "6/5"}, "--val-fold 6/5"),
        ({"val_fold": "1/1"}, "--val-fold 1/1"),
        ({"val_fold": "-1/5"}, "--val-fold -1/5"),
        ({"val_fold": "1/5\n"}, "--val-fold 1/5"),
        ({"val_fold": "x"}, "--val-fold x"),
        ({"val_fold": "1/5", "val_count": 3}, "--val-fold 1/5: it replaces --val-fraction and --val-count"),
        ({"val_fold": "1/5", "val_fraction": 0.3}, "--val-fold 1/5: it replaces --val-fraction and --val-count"),
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": 9, "num_workers": (2,)}, "--batch-size 9"),
        ({"num_workers": (0,)}, "--num-workers 0"),
        ({"num_workers": (3, 2)}, "--num-workers 3 2: give one number, or the minimum and the maximum"),
        ({"num_workers": (1, 2, 3)}, "--num-workers 1 2 3"),
        ({"batch_size": 2, "num_workers": (2, 8)}, "--batch-size 2"),
        ({"images": "a", "masks": "b", "data": "c"}, "--data replaces --images and --masks"),
        ({"max_failures": -1}, "--max-failures -1: give 0 or more"),
        ({"accumulate": 0}, "--accumulate 0: give at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "--seed"),
        ({"name": "../elsewhere"}, "--name '../elsewhere'"),
        ({"name": ".."}, "--name '..'"),
        ({"resume": True}, "--resume needs --name"),
        ({"resume": "auto"}, "--resume needs --name"),
    ],
)
def test_train_config_invalid_setting_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        dataclasses.replace(TrainConfig(), **settings)


PREDICT = PredictConfig(checkpoint="c", images="i", output="o")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[
            ({flag: 0}, f"--{flag.replace('_', '-')} 0: give at least 1")
            for flag in ("shard_size", "batch_size", "num_workers", "max_pixels", "limit")
        ],
        ({"decode_timeout": 0.5}, "--decode-timeout 0.5: give 1 to 86400 seconds"),
        ({"decode_timeout": float("inf")}, "--decode-timeout inf"),
        ({"max_errors": -0.5}, "--max-errors -0.5"),
        ({"max_errors": -1.0}, "--max-errors -1"),
        ({"max_errors": 2.5}, "--max-errors 2.5: give a whole number, or a fraction between 0 and 1"),
        ({"max_errors": float("inf")}, "--max-errors inf"),
        ({"max_errors": float("nan")}, "--max-errors nan"),
        ({"tile": (15,)}, "--tile 15: give one number or two"),
        ({"tile": (64, 64, 64)}, "--tile 64 64 64: give one"),
        ({"tile": (64, 32), "tile_overlap": 32}, "--tile-overlap 32: give 0 to 31"),
        ({"tile_overlap": 3}, "--tile-overlap needs --tile"),
    ],
)
def test_predict_config_invalid_setting_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        dataclasses.replace(PREDICT, **settings)


def test_predict_config_default_batch_size_depends_on_the_device() -> None:
    assert (PREDICT.photos_per_pass, dataclasses.replace(PREDICT, use_gpu=True).photos_per_pass) == (8, 128)
    assert dataclasses.replace(PREDICT, batch_size=3).photos_per_pass == 3


EVALUATE = EvaluateConfig(checkpoint="c", images="i", masks="m", output="o")


@pytest.mark.parametrize("flag", ["batch_size", "max_pixels", "limit"])
def test_evaluate_config_zero_is_refused(flag: str) -> None:
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')} 0: give at least 1"):
        dataclasses.replace(EVALUATE, **{flag: 0})


def test_evaluate_config_batch_size_is_derived() -> None:
    assert EVALUATE.photos_per_pass == 8
    assert dataclasses.replace(EVALUATE, use_gpu=True).photos_per_pass == 128
    assert dataclasses.replace(EVALUATE, batch_size=3).photos_per_pass == 3


SHARDS = ShardsConfig(images="i", masks="m", output="o")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "--num-classes 1"),
        ({"image_size": (8, 64)}, "--image-size 8 64"),
        ({"shard_size": 0}, "--shard-size 0: give at least 1"),
    ],
)
def test_shards_config_invalid_setting_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SHARDS, **settings)


def test_shards_config_default_shard_holds_32_mb_of_pixels() -> None:
    assert SHARDS.pairs_per_shard == 327  # 160 × 160 × 4 bytes
    assert dataclasses.replace(SHARDS, image_size=(4096, 4096)).pairs_per_shard == 1
    assert dataclasses.replace(SHARDS, shard_size=5).pairs_per_shard == 5


@pytest.mark.parametrize("url", ["ftp://a/b", "file:///a", "a/b", "https:///a", "data:,a"])
def test_oxford_config_url_other_than_http_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=f"--url {url}: give an address that begins with https:// or http://"):
        OxfordConfig(output="o", url=url)
