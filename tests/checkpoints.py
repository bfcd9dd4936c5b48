"""Small checkpoints for tests: a network after one training step, saved with a history."""

from pathlib import Path

import torch

from petseg.config.model import ModelConfig
from petseg.data import labels
from petseg.models import checkpoint
from petseg.models.checkpoint import TrainState
from petseg.models.unet import UNet

CONFIG = ModelConfig(
    num_classes=3,
    image_size=(32, 32),
    class_names=("pet", "background", "border"),
    palette=labels.palette(3),
    label_map="1:0,2:1,3:2",
)


def history(*val_losses: float | None) -> checkpoint.History:
    return [{"epoch": i, "val_loss": loss} for i, loss in enumerate(val_losses, 1)]


def trained(seed: int) -> tuple[UNet, torch.optim.Optimizer]:
    """Return a network after one training step, with non-trivial optimizer state and batch-norm statistics."""
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


def all_classes_network(config: ModelConfig) -> UNet:
    """Return a network with updated batch-norm statistics that predicts every class somewhere."""
    torch.manual_seed(3)
    model = UNet(3, input_scale=config.input_scale, input_offset=config.input_offset)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randint(0, 256, (4, 3, 32, 48)))
        model.head.weight *= 8
    return model
