"""The network against a plain second implementation: TensorFlow's operations with Keras-shaped weights."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petseg.errors import InputError
from petseg.models import unet
from petseg.models.keras_weights import from_keras
from petseg.models.unet import UNet

Weights = list[np.ndarray]


def keras_shapes(num_classes: int) -> list[tuple[int, ...]]:
    """Return the shapes of `keras.Model.get_weights()` for the example's network, from its description."""

    def norm(width: int) -> list[tuple[int, ...]]:
        return [(width,)] * 4

    shapes: list[tuple[int, ...]] = [(3, 3, 3, 32), (32,), *norm(32)]
    before = 32
    for width in (64, 128, 256):
        for inner in (before, width):
            shapes += [(3, 3, inner, 1), (1, 1, inner, width), (width,), *norm(width)]
        shapes += [(1, 1, before, width), (width,)]
        before = width
    for width in (256, 128, 64, 32):
        for inner in (before, width):
            shapes += [(3, 3, width, inner), (width,), *norm(width)]
        shapes += [(1, 1, before, width), (width,)]
        before = width
    return [*shapes, (3, 3, 32, num_classes), (num_classes,)]


def random_keras_weights(num_classes: int) -> Weights:
    generator = np.random.default_rng(0)
    shapes = keras_shapes(num_classes)
    # All vectors are positive, as variances must be. The scale keeps activations near 1.
    return [
        generator.uniform(0.5, 1.5, shape) if len(shape) == 1 else generator.normal(0, 1, shape) / 3 / shape[2] ** 0.5
        for shape in shapes
    ]


def reference(weights: Weights, x: Tensor, training: bool) -> Tensor:
    """Compute the example's forward pass operation by operation as in Keras, in double precision, (N, C, H, W)."""
    following = iter(torch.from_numpy(np.asarray(w, np.float64)) for w in weights)

    def same(x: Tensor, value: float) -> Tensor:
        return F.pad(x, (0, 1, 0, 1), value=value)

    def norm(x: Tensor) -> Tensor:
        gamma, beta, mean, variance = (next(following) for _ in range(4))
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        scaled = (x - mean[:, None, None]) / torch.sqrt(variance + 1e-3)[:, None, None]
        return scaled * gamma[:, None, None] + beta[:, None, None]

    def separable(x: Tensor) -> Tensor:
        depthwise, pointwise, bias = (next(following) for _ in range(3))
        x = F.conv2d(x, depthwise.permute(2, 3, 0, 1), padding=1, groups=x.shape[1])
        return F.conv2d(x, pointwise.permute(3, 2, 0, 1), bias)

    def transposed(x: Tensor) -> Tensor:
        kernel, bias = next(following), next(following)
        return F.conv_transpose2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1)

    def conv(x: Tensor, **options: int) -> Tensor:
        kernel, bias = next(following), next(following)
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, **options)

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = previous = F.relu(norm(conv(same(x, 0), stride=2)))
    for _ in range(3):
        x = norm(separable(F.relu(x)))
        x = norm(separable(F.relu(x)))
        x = F.max_pool2d(same(x, -torch.inf), 3, 2)
        x = previous = x + conv(previous, stride=2)
    for _ in range(4):
        x = norm(transposed(F.relu(x)))
        x = double(norm(transposed(F.relu(x))))
        x = previous = x + conv(double(previous))
    return conv(x, padding=1)


@pytest.mark.parametrize("training", [False, True])
def test_forward_equals_the_keras_example(training: bool) -> None:
    weights = random_keras_weights(4)
    model = UNet(4).double().train(training)
    model.load_state_dict(from_keras(weights, UNet(4)))
    x = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (2, 3, 32, 48)))
    expected = reference([w.astype(np.float32) for w in weights], x, training)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


def test_doubled_conv_output_and_gradients_equal_upsample_then_conv() -> None:
    torch.manual_seed(0)
    conv = unet.DoubledConv2d(4, 3).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.double, requires_grad=True)
    inputs = [x, *conv.parameters()]
    doubled = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), conv.weight, conv.bias, padding=1)
    found = conv(x)
    torch.testing.assert_close(found, doubled)
    of_output = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, of_output), torch.autograd.grad(doubled, inputs, of_output)
    )


def test_batch_norm_momentum_equals_keras() -> None:
    model = UNet(3).train()
    x = torch.from_numpy(np.random.default_rng(2).uniform(0, 255, (2, 3, 32, 32))).float()
    with torch.no_grad():
        entry = model.entry(F.pad(x, (0, 1, 0, 1)))
        model(x)
    assert model.entry_bn.running_mean is not None
    torch.testing.assert_close(model.entry_bn.running_mean, 0.01 * entry.mean((0, 2, 3)))


def test_parameter_counts_equal_the_keras_example() -> None:
    model = UNet(3)
    trainable = sum(p.numel() for p in model.parameters())
    statistics = sum(b.numel() for b in model.buffers() if b.ndim)
    assert trainable == 2_055_203
    assert trainable + statistics == 2_058_979


def test_initial_weights_are_glorot_uniform_and_biases_zero() -> None:
    model = UNet(3)
    for conv in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
        out_channels, in_channels, height, width = conv.weight.shape
        bound = (6 / (height * width * (in_channels + out_channels))) ** 0.5
        assert 0.8 * bound < conv.weight.abs().max() <= bound
        assert conv.bias is None or not conv.bias.any()


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (100, 37), (1, 5)])
def test_forward_each_input_size_is_kept(size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert UNet(5).eval()(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_forward_odd_size_is_padded_with_edge_pixels() -> None:
    model = UNet(3).eval()
    x = torch.rand(1, 3, 20, 32) * 255
    with torch.no_grad():
        padded = model(torch.cat([x, x[:, :, -1:].expand(-1, -1, 12, -1)], 2))
        torch.testing.assert_close(model(x), padded[:, :, :20])


def test_forward_input_scaling_is_part_of_the_network() -> None:
    scaled = UNet(3, input_scale=1 / 127.5, input_offset=-1).eval()
    plain = UNet(3).eval()
    plain.load_state_dict(scaled.state_dict())
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(scaled(pixels), plain(pixels / 127.5 - 1))


def test_from_keras_weights_of_another_network_are_refused() -> None:
    weights = random_keras_weights(3)
    with pytest.raises(InputError, match="111 arrays given, the network has 112"):
        from_keras(weights[:-1], UNet(3))
    with pytest.raises(InputError, match=r"head.weight is \(4, 32, 3, 3\) here, \(3, 32, 3, 3\) in the weights"):
        from_keras(weights, UNet(4))


@pytest.fixture
def golden() -> dict[str, np.ndarray]:
    path = os.environ.get("PETSEG_GOLDEN")
    if not path:
        pytest.skip("PETSEG_GOLDEN names no file of tensors from Keras")
    return dict(np.load(path))


def test_forward_and_gradients_equal_saved_keras_tensors(golden: dict[str, np.ndarray]) -> None:
    """TensorFlow computed the probabilities and, for one training pass, loss, gradients and batch-norm statistics."""
    model = UNet(3)
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(from_keras([golden[f"weights/{i:03d}"] for i in range(len(names))], UNet(3)))
    x = torch.from_numpy(golden["x"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        probabilities = model.eval()(x).softmax(1).permute(0, 2, 3, 1)
    assert (probabilities - torch.from_numpy(golden["probs"])).abs().max() <= 1e-5

    loss = F.cross_entropy(model.train()(x), torch.from_numpy(golden["y"]).long())
    loss.backward()
    assert abs(loss.item() - float(golden["train_loss"])) <= 1e-5
    after = model.state_dict()
    for key in (key for key in golden if key.startswith("after/")):
        expected = torch.from_numpy(golden[key])
        torch.testing.assert_close(after[names[int(key.removeprefix("after/"))]], expected, rtol=1e-5, atol=1e-4)
    parameters = dict(model.named_parameters())
    norms = [parameters[name].grad.norm().item() for name in names if name in parameters]  # pyright: ignore
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-3, atol=1e-3)
