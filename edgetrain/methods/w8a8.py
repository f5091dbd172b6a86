"""W8A8: weights and activations of linear layers in 8 bits, after training and without calibration.

Liu et al. 2024, MobileLLM (arXiv 2402.14905), Table 15: per-token min-max quantisation, a drop of 0.0 to 0.4 points in
zero-shot accuracy. (The table is known to us from a secondary source; one scale for each output channel of a weight,
and no zero points, are our reading.) Activations are quantised where a linear layer reads them, each token with its own
scale; attention, norms, residual sums and the embedding table stay in floating point.
"""

import copy

import torch
from torch import Tensor, nn

from edgetrain.ops.quantization import quantize_rows, quantized_linear


class W8A8Linear(nn.Module):
    """A linear layer in 8 bits, simulated in floating point. weight: int8 [out, in]; scales: [out, 1]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        levels, scales = quantize_rows(linear.weight.detach().float())
        self.register_buffer("weight", levels.to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.weight, self.scales, self.bias)


def quantize_w8a8(model: nn.Module, head: bool = False) -> nn.Module:
    """A copy of the model whose linear layers are W8A8, for evaluation.

    head: also the output head, on a copy of its weight where that is the embedding table.
    """
    quantized = copy.deepcopy(model).eval()
    for module in list(quantized.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and (head or name != "lm_head"):
                setattr(module, name, W8A8Linear(child))
    return quantized
