import dataclasses
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG

from petseg.config.train import TrainConfig
from petseg.errors import InputError
from petseg.models import build, checkpoint, encoder_weights
from petseg.models.encoder_weights import DEFAULT_ENCODER, load_encoder_weights, with_encoder

LITE = with_encoder(CONFIG, DEFAULT_ENCODER)


def test_with_encoder_names_the_encoder_and_its_library() -> None:
    assert (LITE.network, LITE.encoder) == ("encoder-unet", DEFAULT_ENCODER)
    assert LITE.encoder_library.startswith("timm 1.")


def test_installed_weights_fit_the_encoder_and_classify() -> None:
    """The stem's filters are edges and colours: far from random, whose mean square is 2 / fan-in."""
    weights = load_encoder_weights(LITE, "")
    network = build.build(LITE)
    expected = {name for name in network.state_dict() if name.startswith("encoder.")}
    assert weights.keys() == expected
    network.load_state_dict(weights, strict=False)
    assert weights["encoder.bn1.running_var"].std() > 0.1
    network.eval()
    with torch.inference_mode():
        *_, features = network.encoder(torch.zeros(1, 3, 64, 64))  # pyright: ignore[reportCallIssue]
    assert features.isfinite().all() and features.std() > 0


def test_installed_weights_equal_those_that_timm_publishes_by_name() -> None:
    """The package numbers the blocks in one row; a block of each stage is compared by hand."""
    weights = load_encoder_weights(LITE, "")
    file = torch.load(encoder_weights._installed_file(), weights_only=True)
    for ours, theirs in {
        "encoder.conv_stem.weight": "_conv_stem.weight",
        "encoder.blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
        "encoder.blocks.1.1.conv_pw.weight": "_blocks.2._expand_conv.weight",
        "encoder.blocks.4.2.bn2.running_mean": "_blocks.10._bn1.running_mean",
        "encoder.blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
    }.items():
        assert torch.equal(weights[ours], file[theirs])


def test_no_weights_are_asked_for_by_name() -> None:
    assert load_encoder_weights(LITE, "none") == {}
    with pytest.raises(InputError, match="--network resnet18: petseg has no weights for it; pass --encoder-weights"):
        load_encoder_weights(with_encoder(CONFIG, "resnet18"), "")


def test_weights_of_a_file_are_taken_by_timms_names(tmp_path: Path) -> None:
    network = build.build(with_encoder(CONFIG, "resnet18"))
    state = {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}
    torch.save(state | {"fc.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    found = load_encoder_weights(with_encoder(CONFIG, "resnet18"), str(tmp_path / "weights.pth"))
    assert torch.equal(found["encoder.conv1.weight"], state["conv1.weight"])
    for config, message in ((LITE, "it lacks conv_stem.weight"), (with_encoder(CONFIG, "resnet50"), "it has|it lacks")):
        with pytest.raises(InputError, match=rf"--encoder-weights .*weights.pth: ({message}).*give weights of timm's"):
            load_encoder_weights(config, str(tmp_path / "weights.pth"))


def test_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"text")
    with pytest.raises(InputError, match=r"weights.pth: not a valid checkpoint file"):
        load_encoder_weights(LITE, str(tmp_path / "weights.pth"))
    with pytest.raises(InputError, match=r"--encoder-weights .*missing.pth: cannot be read"):
        load_encoder_weights(LITE, str(tmp_path / "missing.pth"))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_weights, "_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="the package no-such-package is not installed"):
        load_encoder_weights(dataclasses.replace(LITE), "")


def test_init_from_a_network_with_another_encoder_is_refused(tmp_path: Path) -> None:
    other = with_encoder(CONFIG, "resnet18")
    history = [{"epoch": 1, "val_loss": 1.0}]
    checkpoint.save(str(tmp_path), build.build(other), checkpoint.TrainState({}), other, history)
    with pytest.raises(InputError, match="its network is resnet18, but this run trains tf_efficientnet_lite0"):
        checkpoint.load_pretrained(str(tmp_path), LITE)
    config, weights = checkpoint.load_pretrained(str(tmp_path), other)
    assert config == other and "encoder.conv1.weight" in weights


def test_two_sources_of_weights_are_refused() -> None:
    with pytest.raises(InputError, match="--init-from, --encoder-weights: both give"):
        TrainConfig(init_from="runs/first", encoder_weights="weights.pth")
