"""The CIFAR-10 network of CMSIS-NN against its paper's table 1, as `deployment.md` 1.1 has it from memory."""

import pytest
import torch
import torch.nn.functional as F

from edgetrain.hardware.tracing import trace
from edgetrain.methods.quantize import post_training
from edgetrain.models.cmsis_cifar10 import CMSISCifar10

# Channels, height and width of what convolution, pool, convolution, ... give.
OUTPUTS = [(32, 32, 32), (32, 16, 16), (32, 16, 16), (32, 8, 8), (64, 8, 8), (64, 4, 4)]


@pytest.fixture(scope="module")
def network() -> CMSISCifar10:
    torch.manual_seed(0)
    return CMSISCifar10().eval()


def outputs(network: CMSISCifar10, images: torch.Tensor) -> list[torch.Tensor]:
    given = [images]
    for layer in network.features:
        given.append(layer(given[-1]))
    return [
        each for each, layer in zip(given[1:], network.features, strict=True) if not isinstance(layer, torch.nn.ReLU)
    ]


def test_every_layer_has_the_papers_output(network: CMSISCifar10):
    given = outputs(network, torch.zeros(2, 3, 32, 32))
    assert [tuple(each.shape[1:]) for each in given] == OUTPUTS
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_weights_are_as_large_as_the_papers(network: CMSISCifar10):
    sizes = [weight.numel() for name, weight in network.named_parameters() if name.endswith("weight")]
    assert sizes == [2_400, 25_600, 51_200, 10_240]  # 2.3, 25, 50 and 10 KB
    assert round(sum(sizes) / 1024) == 87


def test_macs_are_half_of_the_papers_operations(network: CMSISCifar10):
    macs = [layer.macs for layer in trace(network, (torch.zeros(1, *network.input_shape),)) if layer.macs]
    assert macs == [2_457_600, 6_553_600, 3_276_800, 10_240]
    assert [round(2 * each / 1e6, 1) for each in macs[:3]] == [4.9, 13.1, 6.6]  # the paper's millions of operations
    assert sum(macs) == 12_298_240
    pools = 9 * (32 * 16**2 + 32 * 8**2 + 64 * 4**2)  # 73.7, 18.4 and 9.2 thousand
    assert round((2 * sum(macs) + pools) / 1e6, 1) == 24.7


def test_a_pool_starts_at_the_edge_and_its_last_window_is_cut(network: CMSISCifar10):
    """Caffe's pools: output 16 of 32 looks at rows 30 and 31 alone."""
    pool = network.features[2]
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    assert pool(ramp)[0, 0, 0].tolist() == [min(2 * place + 2, 31) for place in range(16)]
    assert pool(-ramp)[0, 0, 0].tolist() == [-2 * place for place in range(16)]


def test_logits_are_those_of_the_definition(network: CMSISCifar10):
    images = torch.randn(3, 3, 32, 32)
    x = images
    weights = dict(network.named_parameters())
    for place in (0, 3, 6):
        x = F.conv2d(x, weights[f"features.{place}.weight"].contiguous(), weights[f"features.{place}.bias"], padding=2)
        x = F.pad(x.clamp(min=0), (0, 1, 0, 1))  # of what is not negative the largest stays when zeros are added
        side = x.shape[2] - 1
        x = torch.stack([x[:, :, i : i + side : 2, j : j + side : 2] for i in range(3) for j in range(3)]).amax(0)
    logits = x.reshape(3, -1) @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert torch.allclose(network(images), logits, atol=1e-5)


def test_it_quantises_and_takes_other_numbers_of_classes(network: CMSISCifar10):
    class Noise:
        def samples(self, split: str) -> list:
            draw = torch.Generator().manual_seed(0)
            return [(torch.randn(3, 32, 32, generator=draw), 0) for _ in range(16)]

    images = torch.stack([image for image, _ in Noise().samples("test")])
    quantised = post_training(network, (torch.zeros(1, 3, 32, 32),), Noise())
    assert (quantised(images) - network(images)).abs().max() < 0.05 * network(images).abs().max()
    assert CMSISCifar10(num_classes=7)(images).shape == (16, 7)
