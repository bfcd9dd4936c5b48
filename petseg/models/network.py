"""What the rest of petseg asks of a network. Another network is a subclass, named in `build.NETWORKS`."""

import copy

from torch import Tensor, nn


class Network(nn.Module):
    """Pixels (N, 3, H, W), 0..255 of any dtype, to logits (N, num_classes, H, W), for any height and width."""

    num_classes: int

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, num_classes, H, W)."""
        raise NotImplementedError

    def for_inference(self) -> nn.Module:
        """Return a copy that computes the same within rounding, and faster where the network knows how."""
        return copy.deepcopy(self).eval()
