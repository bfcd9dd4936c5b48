import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from petseg.data.decode import Photo
from petseg.data.tiles import Tiling
from petseg.inference import probabilities
from petseg.inference.predictor import Prediction, Predictor
from petseg.inference.probabilities import unsure_fraction
from petseg.models.unet import UNet

CPU = torch.device("cpu")
SIZE = (32, 48)


@pytest.mark.parametrize("size", [(40, 64), (7, 5), (1, 1), (123, 77), (16, 24)])
@pytest.mark.parametrize("strip_values", [1, 2000, 2**22])
def test_prediction_mask_is_argmax_of_bilinear_upsampling(
    size: tuple[int, int], strip_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probabilities, "STRIP_VALUES", strip_values)
    values = (torch.randn(4, 16, 24, generator=torch.Generator().manual_seed(0)) * 3).softmax(0)
    mask = Prediction(values, *size, keep_probabilities=True).mask()
    whole = F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]
    top = whole.topk(2, 0).values
    clear = (top[0] - top[1] > 1e-5).numpy()  # rounding does not decide here
    assert mask.class_ids.shape == size and mask.class_ids.dtype == np.uint8
    assert np.array_equal(mask.class_ids[clear], whole.argmax(0).numpy()[clear])
    assert clear.mean() > 0.99
    assert mask.class_pixels == np.bincount(mask.class_ids.ravel(), minlength=4).tolist()
    assert mask.confidence == pytest.approx(whole.amax(0).mean().item(), rel=1e-5)
    assert mask.unsure == unsure_fraction(values)
    assert mask.probabilities is not None and mask.probabilities.dtype == np.uint8
    assert np.abs(mask.probabilities / 255 - whole.numpy()).max() <= 0.5 / 255 + 1e-5


def photos(count: int) -> list[Photo]:
    generator = np.random.default_rng(0)
    return [Photo(generator.integers(0, 256, (*SIZE, 3), np.uint8), 20 + i, 30 + i) for i in range(count)]


def network() -> UNet:
    """Return a network with non-trivial batch-norm statistics and weights, which folding must keep."""
    torch.manual_seed(0)
    model = UNet(3, input_scale=1 / 127.5, input_offset=-1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
        model(torch.randint(0, 256, (4, 3, *SIZE)))
    return model


def test_predictor_each_batch_size_gives_the_same_masks() -> None:
    model = network()
    together, alone = (list(Predictor(model, CPU, size, SIZE, "fp32", threads=2)(photos(5))) for size in (4, 1))
    assert len(together) == 5
    for i, (a, b) in enumerate((a.mask(), b.mask()) for a, b in zip(together, alone, strict=True)):
        assert a.class_ids.shape == (20 + i, 30 + i)
        assert (a.class_ids != b.class_ids).mean() < 0.01
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


def test_predictor_network_in_training_mode_is_left_unchanged() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predictor = Predictor(model, CPU, 2, SIZE, "bf16")
    assert list(predictor([])) == []
    mask = next(predictor(photos(2))).mask()
    assert mask.class_ids.shape == (20, 30) and mask.probabilities is None
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predictor_network_size_probabilities_equal_its_softmax() -> None:
    """At the network's own size nothing is enlarged, so the probabilities equal its softmax."""
    model = network()
    photo = Photo(photos(1)[0].pixels, *SIZE)
    [prediction] = Predictor(model, CPU, 1, SIZE, "fp32", probabilities=True)([photo])
    mask = prediction.mask()
    with torch.inference_mode():
        expected = model.eval()(torch.tensor(photo.pixels).permute(2, 0, 1)[None])[0].softmax(0).numpy()
    assert mask.probabilities is not None
    assert np.abs(mask.probabilities / 255 - expected).max() <= 0.5 / 255 + 1e-4
    assert expected.std() > 0.05


class Brightest(torch.nn.Module):
    """A network with one pixel as receptive field: the logits are the channels, so tiling has no effect."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float() / 16


def brightest(batch_size: int, tiling: Tiling) -> Predictor:
    predictor = Predictor(UNet(3), CPU, batch_size, SIZE, "fp32", tiling=tiling, probabilities=True)
    predictor._model = Brightest()  # pyright: ignore[reportAttributeAccessIssue]
    return predictor


@pytest.mark.parametrize("overlap", [0, 8, 31])
@pytest.mark.parametrize("strip_values", [200, 2**22])
def test_tiled_blended_tiles_equal_a_single_pass(
    overlap: int, strip_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probabilities, "STRIP_VALUES", strip_values)
    pixels = np.random.default_rng(1).integers(0, 256, (101, 130, 3), np.uint8)
    mask = brightest(3, Tiling(SIZE, overlap)).tiled(Image.fromarray(pixels)).mask()
    expected = (torch.tensor(pixels).permute(2, 0, 1) / 16).softmax(0).numpy()
    assert mask.probabilities is not None
    assert np.abs(mask.probabilities / 255 - expected).max() <= 0.5 / 255 + 1e-4
    assert np.array_equal(mask.class_ids, pixels.argmax(2))
    assert mask.confidence == pytest.approx(expected.max(0).mean(), rel=1e-5)
    assert 0 < mask.unsure < 1
    assert sum(mask.class_pixels) == 101 * 130


def test_tiled_disagreeing_tiles_blend_linearly() -> None:
    """Over the overlap of two disagreeing tiles, the second one's weight grows linearly."""

    class ByTile(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(pixels), 3, *SIZE)
            for i in range(len(pixels)):
                logits[i, i] = 100
            return logits

    predictor = brightest(2, Tiling(SIZE, 16))
    predictor._model = ByTile()  # pyright: ignore[reportAttributeAccessIssue]
    mask = predictor.tiled(Image.new("RGB", (48 + 32, 32))).mask()
    assert mask.probabilities is not None
    second = mask.probabilities[1, 10] / 255
    assert (second[:32] == 0).all() and (second[48:] == 1).all()
    assert second[32:48] == pytest.approx(np.arange(1, 17) / 17, abs=0.003)


@pytest.mark.parametrize("size", [(32, 48), (20, 48), (31, 9)])
def test_tiled_photo_within_one_tile_equals_untiled(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    picture = Image.fromarray(pixels)
    predictor = Predictor(network(), CPU, 2, SIZE, "fp32", tiling=Tiling((32, 48), 8), probabilities=True)
    [one_look] = predictor([Photo(np.asarray(picture.resize((48, 32), Image.Resampling.BILINEAR)), *size)])
    whole = one_look.mask()
    tiled = predictor.tiled(picture).mask()
    assert np.array_equal(whole.class_ids, tiled.class_ids)
    assert np.abs(whole.probabilities.astype(int) - tiled.probabilities).max() <= 1  # pyright: ignore


@pytest.mark.parametrize("size", [(20, 30), (20, 100), (90, 30), (64, 96)])
def test_tiled_at_a_fixed_scale_small_photo_is_extended_not_enlarged(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    mask = brightest(2, Tiling(SIZE, 8, keeps_scale=True)).tiled(Image.fromarray(pixels)).mask()
    assert np.array_equal(mask.class_ids, pixels.argmax(2))
    assert sum(mask.class_pixels) == size[0] * size[1]


HUNDRED_MEGAPIXELS = """
from pathlib import Path
import torch
from PIL import Image
from petseg.data.tiles import Tiling
from petseg.inference.predictor import Predictor
from petseg.models.unet import UNet

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1000

torch.set_num_threads(1)
picture = Image.effect_noise((100, 100), 60).resize((10_000, 10_000)).convert("RGB")
tiling = Tiling((1024, 1024), 128)
predictor = Predictor(UNet(3), torch.device("cpu"), 8, (64, 64), "fp32", tiling=tiling, threads=2)
before = peak()
mask = predictor.tiled(picture).mask()
assert sum(mask.class_pixels) == 10_000**2 and 1 / 3 <= mask.confidence <= 1
print(peak() - before)
"""


def test_tiled_hundred_megapixels_memory_is_bounded() -> None:
    """The mask takes 100 MB and a row of tiles 123 MB. With the allocator's reserve, 490 to 680 MB were measured.

    All probabilities at once would add 1,200 MB.
    """
    done = subprocess.run([sys.executable, "-c", HUNDRED_MEGAPIXELS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1000
