"""Build a network from its settings. Only this module knows which networks exist."""

from collections.abc import Callable

import torch

from petseg.config.model import ModelConfig
from petseg.errors import InputError
from petseg.models.network import Network
from petseg.models.unet import UNet


def _unet(config: ModelConfig) -> Network:
    return UNet(config.num_classes, input_scale=config.input_scale, input_offset=config.input_offset)


def _encoder_unet(config: ModelConfig) -> Network:
    from petseg.models.encoder_unet import EncoderUNet  # here, because importing timm takes a second

    return EncoderUNet(
        config.num_classes, config.encoder, input_scale=config.input_scale, input_offset=config.input_offset
    )


NETWORKS: dict[str, Callable[[ModelConfig], Network]] = {"unet": _unet, "encoder-unet": _encoder_unet}
"""Map from the value of `ModelConfig.network` to the function that builds that network."""


def build(config: ModelConfig) -> Network:
    """Return a network with random weights, on the CPU, in training mode.

    Raises `InputError` if this version of petseg has no network of that name.
    """
    if config.network not in NETWORKS:
        raise InputError(
            f"unknown network {config.network!r}; this version of petseg has {', '.join(NETWORKS)}; use the version "
            "that trained the checkpoint"
        )
    return NETWORKS[config.network](config)


def build_seeded(config: ModelConfig, seed: int) -> Network:
    """Return a network whose random weights depend only on `seed`. Leaves the global random state unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)
