"""Batch norms folded away: what remains equals torch's own fusion."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgetrain.hardware.folding import fold_batch_norms
from edgetrain.hardware.tracing import trace

X = torch.zeros(1, 3, 8, 8)


class Branches(nn.Module):
    """A batch norm whose convolution is read twice, one on its own, and one that is the model's end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.alone = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.alone(torch.relu(self.norm(y))) + y


def test_a_folded_network_is_the_one_that_torch_fuses():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    model.eval()
    fused = nn.Sequential(fuse_conv_bn_eval(model[0], model[1]), nn.ReLU(), fuse_conv_bn_eval(model[3], model[4]))
    folded, expected = fold_batch_norms(trace(model, (X,))), trace(fused, (X,))
    assert [(layer.kind, layer.loops, layer.weights, layer.biases) for layer in folded] == [
        (layer.kind, layer.loops, layer.weights, layer.biases) for layer in expected
    ]
    assert folded.weights == sum(parameter.numel() for parameter in fused.parameters())
    assert folded.layers[-1].outputs[0].name in folded.outputs
    assert [layer.inputs[0].name for layer in folded.layers[1:]] == [
        layer.outputs[0].name for layer in folded.layers[:-1]
    ]


def test_what_somebody_else_reads_is_not_folded():
    workload = trace(Branches(), (X,))
    assert fold_batch_norms(workload) == workload


class TwoEnds(nn.Sequential):
    """Gives back what is before the norm too."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self[0](x)
        return self[1](y), y


def test_an_end_of_the_model_is_not_folded_away():
    workload = trace(TwoEnds(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (X,))
    assert fold_batch_norms(workload) == workload


class Steps(nn.Module):
    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.norm = body, nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return self.norm(y if isinstance(y, torch.Tensor) else y[0])


def test_a_norm_over_tokens_and_one_after_a_recurrent_layer_stay():
    tokens = torch.zeros(1, 7, 10)
    for model in (Steps(nn.Linear(10, 20), 7), Steps(nn.GRU(10, 20, batch_first=True), 7)):
        workload = trace(model, (tokens,))
        assert any(layer.kind == "norm" for layer in workload)
        assert fold_batch_norms(workload) == workload


def test_layer_norms_and_shared_weights_stay():
    norms = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    assert len(fold_batch_norms(trace(norms, (X,)))) == 2
    conv = nn.Conv2d(3, 3, 1)
    shared = nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3))
    workload = trace(shared, (X,))
    assert fold_batch_norms(workload) == workload
