"""The network: the Xception-style U-Net of the Keras example, in plain PyTorch. No Ray, no files, no training.

Architecture: https://keras.io/examples/vision/oxford_pets_image_segmentation/ (the version with transposed
convolutions). The modules stand in the order in which Keras creates its layers; `checkpoint.from_keras` relies on it.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BN_EPSILON = 1e-3
"""Keras's default; PyTorch's is 1e-5."""

BN_MOMENTUM = 0.01
"""Keras's 0.99 is the share of the old value that is kept, PyTorch's the share of the new one that is added."""

STRIDE = 16
"""Height and width are halved four times on the way down, and doubled as often on the way up."""

ENTRY_WIDTH = 32
DOWN_WIDTHS = (64, 128, 256)
UP_WIDTHS = (256, 128, 64, 32)


class SeparableConv2d(nn.Module):
    """A depthwise 3×3 convolution without bias, then a 1×1 convolution with one, as in Keras."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class DownBlock(nn.Module):
    """(N, C_in, H, W) → (N, C_out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SeparableConv2d(in_channels, out_channels)
        self.bn1 = _batch_norm(out_channels)
        self.conv2 = SeparableConv2d(out_channels, out_channels)
        self.bn2 = _batch_norm(out_channels)
        self.residual = nn.Conv2d(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(F.relu(x)))
        y = self.bn2(self.conv2(F.relu(y)))
        # TensorFlow's "same" max-pool of an even size pads the right and the bottom only: that is ceil_mode.
        return F.max_pool2d(y, 3, stride=2, ceil_mode=True) + self.residual(x)


class UpBlock(nn.Module):
    """(N, C_in, H, W) → (N, C_out, 2H, 2W).

    Keras has transposed convolutions of stride 1 here. Such a one is an ordinary convolution with the kernel flipped
    and its channel axes swapped, which PyTorch trains faster. And Keras upsamples before its 1×1 convolution; after
    it, and after the sum, the numbers are the same for a quarter of the work.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn1 = _batch_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = _batch_norm(out_channels)
        self.residual = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(F.relu(x)))
        y = self.bn2(self.conv2(F.relu(y)))
        return F.interpolate(y + self.residual(x), scale_factor=2, mode="nearest")


class UNet(nn.Module):
    """Pixels (N, 3, H, W), 0..255 of any dtype, to logits (N, num_classes, H, W).

    The network sees `pixel * input_scale + input_offset`; the defaults are the Keras example's, which feeds 0..255.
    Heights and widths that 16 does not divide are padded at the right and the bottom by repeating the edge, and the
    logits are cropped.
    """

    def __init__(self, num_classes: int, *, input_scale: float = 1.0, input_offset: float = 0.0) -> None:
        super().__init__()
        self.input_scale = input_scale
        self.input_offset = input_offset
        self.entry = nn.Conv2d(3, ENTRY_WIDTH, 3, stride=2)
        self.entry_bn = _batch_norm(ENTRY_WIDTH)
        widths = (ENTRY_WIDTH, *DOWN_WIDTHS)
        self.down = nn.ModuleList(map(DownBlock, widths[:-1], widths[1:]))
        widths = (DOWN_WIDTHS[-1], *UP_WIDTHS)
        self.up = nn.ModuleList(map(UpBlock, widths[:-1], widths[1:]))
        self.head = nn.Conv2d(UP_WIDTHS[-1], num_classes, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _init_like_keras(module)

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        height, width = pixels_nchw.shape[2:]
        x = pixels_nchw.to(self.entry.weight.dtype) * self.input_scale + self.input_offset
        bottom, right = -height % STRIDE, -width % STRIDE
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        # TensorFlow's "same" padding at stride 2 and an even size: none at the left and the top.
        x = F.relu(self.entry_bn(self.entry(F.pad(x, (0, 1, 0, 1)))))
        for block in (*self.down, *self.up):
            x = block(x)
        return self.head(x)[:, :, :height, :width]


def fold_batch_norms(model: UNet) -> UNet:
    """A copy for inference, each batch norm folded into the convolution before it: the same numbers within rounding."""
    model = copy.deepcopy(model).eval()
    model.entry = fuse_conv_bn_eval(model.entry, model.entry_bn)
    model.entry_bn = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    for block in (*model.down, *model.up):
        for number in "12":
            conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
            if isinstance(conv, SeparableConv2d):
                conv.pointwise = fuse_conv_bn_eval(conv.pointwise, norm)
            else:
                setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
            setattr(block, f"bn{number}", nn.Identity())
    return model


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)


def _init_like_keras(conv: nn.Conv2d) -> None:
    """Glorot-uniform kernel and zero bias: Keras's defaults for every convolution of the example."""
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_seeded(num_classes: int, seed: int, *, input_scale: float, input_offset: float) -> UNet:
    """A new network whose weights follow from `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(num_classes, input_scale=input_scale, input_offset=input_offset)
