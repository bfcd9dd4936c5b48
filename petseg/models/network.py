"""Interface between a network and the rest of petseg. To add a network, subclass it and add it to `build.NETWORKS`."""

import copy

from torch import Tensor, nn


class Network(nn.Module):
    """Network from pixels (N, 3, H, W), 0..255 of any dtype, to logits (N, num_classes, H, W), for any H and W."""

    num_classes: int

    stride: int = 16
    """Side in pixels of the input that one pixel of the narrowest layer stands for."""

    last_layer: str = "head"
    """Name of the module that gives the logits. It is not taken from a network with other classes."""

    @property
    def pretrained_part(self) -> nn.Module | None:
        """Part of the network that may start from pretrained weights, and learns at a rate of its own, if any."""
        return None

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        """Return logits (N, num_classes, H, W) for pixels (N, 3, H, W)."""
        raise NotImplementedError

    def narrowest_features(self, pixels_nchw: Tensor) -> Tensor:
        """Return the narrowest feature map (N, F, h, w) for pixels (N, 3, H, W)."""
        raise NotImplementedError

    def for_inference(self) -> nn.Module:
        """Return a copy that gives the same output within rounding. A subclass may return a faster one."""
        return copy.deepcopy(self).eval()
