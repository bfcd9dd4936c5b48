import numpy as np
import pytest
import torch
import torch.nn.functional as F

from petseg import predict
from petseg.images import Photo
from petseg.predict import Predictor
from petseg.unet import UNet

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(40, 64), (7, 5), (1, 1), (123, 77), (16, 24)])
@pytest.mark.parametrize("strip_values", [1, 2000, 2**22])
def test_restore_is_bilinear_upsampling_then_argmax(
    size: tuple[int, int], strip_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "STRIP_VALUES", strip_values)
    logits = torch.randn(4, 16, 24, generator=torch.Generator().manual_seed(0)) * 3
    mask = predict.restore(logits, *size)
    whole = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    top = whole.topk(2, 0).values
    clear = (top[0] - top[1] > 1e-4).numpy()  # where rounding cannot decide
    assert mask.class_ids.shape == size and mask.class_ids.dtype == np.uint8
    assert np.array_equal(mask.class_ids[clear], whole.argmax(0).numpy()[clear])
    assert clear.mean() > 0.99
    assert mask.class_pixels == np.bincount(mask.class_ids.ravel(), minlength=4).tolist()
    assert mask.confidence == pytest.approx(whole.softmax(0).amax(0).mean().item(), rel=1e-5)


def photos(count: int) -> list[Photo]:
    generator = np.random.default_rng(0)
    return [Photo(generator.integers(0, 256, (32, 48, 3), np.uint8), 20 + i, 30 + i) for i in range(count)]


def test_masks_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = UNet(3, input_scale=1 / 127.5, input_offset=-1)
    together, alone = (list(Predictor(model, CPU, size, "fp32")(photos(5))) for size in (4, 1))
    assert len(together) == 5
    for i, (a, b) in enumerate(zip(together, alone, strict=True)):
        assert a.class_ids.shape == (20 + i, 30 + i)
        assert (a.class_ids != b.class_ids).mean() < 0.01
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


def test_the_network_predicts_in_evaluation_mode() -> None:
    model = UNet(3).train()
    before = model.entry_bn.running_mean
    assert before is not None
    before = before.clone()
    predictor = Predictor(model, CPU, 2, "bf16")
    assert list(predictor([])) == []
    mask, _ = predictor(photos(2))
    assert mask.class_ids.shape == (20, 30)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.equal(before, model.entry_bn.running_mean)  # pyright: ignore[reportArgumentType]
