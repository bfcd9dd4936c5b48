import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, save

from petseg.errors import InputError
from petseg.models import build, checkpoint
from petseg.models.network import Network


def weights(network: Network) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


def test_build_seeded_same_seed_same_weights() -> None:
    state = torch.get_rng_state()
    first, again, other = (weights(build.build_seeded(CONFIG, seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_build_unknown_network_is_refused() -> None:
    message = (
        r"^unknown network 'resnet'; this version of petseg has unet, encoder-unet; use the version that trained "
        r"the checkpoint$"
    )
    with pytest.raises(InputError, match=message):
        build.build(dataclasses.replace(CONFIG, network="resnet"))


class Tiny(Network):
    """One convolution: a network that is not the U-Net."""

    last_layer = "conv"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = torch.nn.Conv2d(3, num_classes, 1)

    def forward(self, pixels_nchw: torch.Tensor) -> torch.Tensor:
        return self.conv(pixels_nchw.float() / 255)


def test_build_other_network_trains_saves_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training step, checkpoint, prediction and `petseg.load` know no network by name."""
    import numpy as np

    import petseg
    from petseg.config.train import TrainConfig
    from petseg.training import recipes
    from petseg.training.trainer import Trainer

    monkeypatch.setitem(build.NETWORKS, "tiny", lambda config: Tiny(config.num_classes))
    config = dataclasses.replace(CONFIG, network="tiny")
    trainer = Trainer(recipes.resolve(TrainConfig(batch_size=2)), config, torch.device("cpu"), "fp32")
    photos = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    trainer.train_step(photos, torch.zeros(2, 32, 32, dtype=torch.uint8), 0, 1, (1, 0, 1, 0))
    checkpoint.save(str(tmp_path / "run"), trainer.eval_model, trainer.state(), config, [{"epoch": 1, "val_loss": 1.0}])

    segmenter = petseg.load(str(tmp_path / "run"), precision="fp32")
    assert isinstance(checkpoint.load_model(checkpoint.find(str(tmp_path / "run"))), Tiny)
    mask = segmenter.predict(np.zeros((20, 30, 3), np.uint8))
    assert mask.class_ids.shape == (20, 30)


def test_load_pretrained_other_network_leaves_out_its_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", lambda config: Tiny(config.num_classes))
    config = dataclasses.replace(CONFIG, network="tiny")
    checkpoint.save(str(tmp_path), Tiny(3), checkpoint.TrainState({}), config, [{"epoch": 1, "val_loss": 1.0}])
    assert set(checkpoint.load_pretrained(str(tmp_path), config)[1]) == {"conv.weight", "conv.bias"}
    others = dataclasses.replace(config, class_names=("a", "b", "c"))
    assert checkpoint.load_pretrained(str(tmp_path), others)[1] == {}
    assert "the last layer starts from random weights" in capsys.readouterr().out
    with pytest.raises(InputError, match="its network is tiny, but this run trains unet"):
        checkpoint.load_pretrained(str(tmp_path), CONFIG)


def test_find_checkpoint_without_later_settings_keeps_its_fingerprint(tmp_path: Path) -> None:
    save(tmp_path, 1.0)
    new = checkpoint.find(str(tmp_path))
    expected = checkpoint.fingerprint(new, b"weights")
    file = Path(new.location) / "config.json"
    settings = json.loads(file.read_text())
    added = {name: settings.pop(name) for name in ("network", "scale", "encoder", "encoder_library")}
    assert added == {"network": "unet", "scale": None, "encoder": "", "encoder_library": ""}
    stored = (json.dumps(settings, indent=2) + "\n").encode()
    assert hashlib.sha256(stored + b"weights").hexdigest() == expected  # as versions without these settings gave it
    file.write_text(json.dumps(settings))
    old = checkpoint.find(str(tmp_path))
    assert old.model == new.model
    assert checkpoint.fingerprint(old, b"weights") == expected
