"""Small checkpoints for tests: a network after one step, saved with a history."""

from pathlib import Path

import torch

from petseg.config.base import ModelConfig
from petseg.data import labels
from petseg.models import checkpoint
from petseg.models.checkpoint import TrainState
from petseg.models.unet import UNet

CONFIG = ModelConfig(
    num_classes=3,
    image_size=(32, 32),
    class_names=labels.class_names(3),
    palette=labels.palette(3),
    label_map="1:0,2:1,3:2",
)


def history(*val_losses: float | None) -> checkpoint.History:
    return [{"epoch": i, "val_loss": loss} for i, loss in enumerate(val_losses, 1)]


def trained(seed: int) -> tuple[UNet, torch.optim.Optimizer]:
    """A network after one step, so that the optimizer and the statistics hold something."""
    torch.manual_seed(seed)
    model = UNet(3, input_scale=CONFIG.input_scale, input_offset=CONFIG.input_offset)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 32, 32) * 255).square().mean().backward()
    optimizer.step()
    return model, optimizer


def save(run: Path, *val_losses: float | None, seed: int = 0) -> UNet:
    model, optimizer = trained(seed)
    checkpoint.save(str(run), model, TrainState(optimizer.state_dict()), CONFIG, history(*val_losses))
    return model
