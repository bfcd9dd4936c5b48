import copy

import pytest
import torch
from torch import nn

from petseg.errors import InputError
from petseg.models.encoder_unet import EncoderUNet

LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def model() -> EncoderUNet:
    torch.manual_seed(0)
    network = EncoderUNet(3, LITE, input_scale=1 / 127.5, input_offset=-1.0)
    network.train()
    with torch.no_grad():
        network(torch.rand(4, 3, 64, 64) * 255)  # statistics other than 0 and 1
    return network.eval()


@pytest.mark.parametrize("size", [(160, 160), (1, 1), (33, 64), (100, 37)])
def test_forward_any_size_gives_logits_of_that_size(size: tuple[int, int], model: EncoderUNet) -> None:
    with torch.inference_mode():
        logits = model(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    assert logits.shape == (2, 3, *size) and logits.isfinite().all()


def test_forward_padding_does_not_change_an_image_that_fits(model: EncoderUNet) -> None:
    photo = torch.rand(1, 3, 64, 96) * 255
    padded = nn.functional.pad(photo, (0, 1, 0, 1), mode="replicate")
    with torch.inference_mode():
        assert model(padded).shape == (1, 3, 65, 97)
        assert torch.allclose(model(photo), model(photo.clone()))


def test_for_inference_folds_all_batch_norms_within_rounding(model: EncoderUNet) -> None:
    before = copy.deepcopy(model.state_dict())
    folded = model.for_inference()
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    pixels = torch.rand(2, 3, 70, 50) * 255
    with torch.inference_mode():
        assert torch.allclose(folded(pixels), model(pixels), atol=2e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_other_encoders_of_timm_train_and_fold(name: str) -> None:
    network = EncoderUNet(2, name, input_scale=1.0, input_offset=0.0)
    pixels = torch.rand(2, 3, 64, 64)
    network(pixels).mean().backward()
    assert all(weight.grad is not None for weight in network.up.parameters())
    network.eval()
    with torch.inference_mode():
        assert torch.allclose(network.for_inference()(pixels), network(pixels), atol=1e-3)


@pytest.mark.parametrize("name", ["no_such_network", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "unet"])
def test_unknown_encoder_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(
        InputError, match=f"^--network {name}: (timm .* cannot build an encoder|its feature maps do not)"
    ) as caught:
        EncoderUNet(2, name, input_scale=1.0, input_offset=0.0)
    assert "\n" not in str(caught.value)


def test_depthwise_convolutions_are_computed_in_fp32_in_bf16_training() -> None:
    network = EncoderUNet(2, LITE, input_scale=1 / 127.5, input_offset=-1.0)
    seen = []
    depthwise = [module for module in network.encoder.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    depthwise[0].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.rand(2, 3, 32, 32))
        network.eval()
        network(torch.rand(2, 3, 32, 32))
    assert seen == [torch.float32, torch.bfloat16]
