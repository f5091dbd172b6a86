"""The firmware networks of Hello Edge in the integer arithmetic that they run in on a microcontroller.

Weights and shifts of ARM-software/ML-KWS-for-MCU (Apache-2.0), one scale a layer, a power of two (`edgetrain.ops.q7`).
Weights lie as its kernels read them: [out, height, width, in], depthwise [height, width, channels]. The released sizes
of the DNN have no shifts: those of its layers are unverified, but its formats and labels agree with them.
"""

import json
from typing import Any

from torch import Tensor, nn

from edgetrain.checkpoint import read_weights
from edgetrain.errors import UserError
from edgetrain.models.keyword_pretrained import LABELS, find_released
from edgetrain.ops import q7

DNN_SHIFTS = ((1, 7), (2, 8), (2, 9), (0, 6))  # of bias and output; inputs have 2 fractional bits, biases 8
POOL_SHIFT = 2


def keyword_int8(name: str, path: str = "kws_pretrained") -> nn.Module:
    """ds_cnn_s_int8 or dnn_s_int8, of <path>/<name>.safetensors and .json; labels as of `keyword_pretrained`.

    Raises UserError for files that are not there, are damaged or hold another network.
    """
    if name not in NETWORKS:
        raise UserError(f"model.name={name} is not one of {', '.join(NETWORKS)}")
    weights = find_released(f"{name}.safetensors", path)
    facts = find_released(f"{name}.json", path)
    try:
        return NETWORKS[name](read_weights(str(weights)), json.loads(facts.read_text()))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{weights} and {facts.name} do not hold {name} ({error}); copy them again") from error


class IntegerNetwork(nn.Module):
    """Features float32 [batch, frames, coefficients], rounded to int8, to int8 logits [batch, classes]."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        self.input_shape = (facts["NUM_FRAMES"], facts["NUM_MFCC_COEFFS"])
        self.labels = LABELS
        self.feature_bits = facts["MFCC_DEC_BITS"]

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1:] != self.input_shape:
            raise UserError(
                f"the model takes features {['batch', *self.input_shape]}, but was given {list(features.shape)}; set "
                "data.stride_ms, data.frames and data.coefficients to the model's"
            )
        return self.logits(q7.quantize(features, self.feature_bits))

    def logits(self, features: Tensor) -> Tensor:
        """int8 [batch, classes] of features as int8 [batch, frames, coefficients]; each network's own."""
        raise NotImplementedError


class IntegerLayer(nn.Module):
    """Weights int8 in PyTorch's order, biases int8, and the two shifts of a layer."""

    def __init__(self, weight: Tensor, bias: Tensor, bias_shift: int, out_shift: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)
        self.bias_shift, self.out_shift = bias_shift, out_shift


class IntegerLinear(IntegerLayer):
    def forward(self, x: Tensor) -> Tensor:
        return q7.fully_connected(x, self.weight, self.bias, self.bias_shift, self.out_shift)


class IntegerConvolution(IntegerLayer):
    """padding: left, right, above, below; followed by ReLU."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        bias_shift: int,
        out_shift: int,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        groups: int = 1,
    ) -> None:
        super().__init__(weight, bias, bias_shift, out_shift)
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, x: Tensor) -> Tensor:
        shifts = self.bias_shift, self.out_shift
        return q7.relu(q7.convolution(x, self.weight, self.bias, *shifts, self.stride, self.padding, self.groups))


class IntegerDNN(IntegerNetwork):
    def __init__(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.layers = nn.ModuleList(
            IntegerLinear(tensors[f"ip{index}_wt"].view(len(bias), -1), bias, *shifts)
            for index, shifts in enumerate(DNN_SHIFTS, 1)
            for bias in [tensors[f"ip{index}_bias"]]
        )

    def logits(self, features: Tensor) -> Tensor:
        x = features.flatten(1)
        for layer in self.layers[:-1]:
            x = q7.relu(layer(x))
        return self.layers[-1](x)


class IntegerDSCNN(IntegerNetwork):
    def __init__(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.conv, size = spatial(tensors, facts, "conv1", self.input_shape)
        self.blocks = nn.ModuleList()
        for block in range(2, 2 + sum(name.endswith("_ds_wt") for name in tensors)):
            depthwise, size = spatial(tensors, facts, f"conv{block}_ds", size)
            name = f"conv{block}_pw"
            bias = tensors[f"{name}_bias"]
            weight = tensors[f"{name}_wt"].view(len(bias), -1, 1, 1)
            self.blocks += [depthwise, IntegerConvolution(weight, bias, *shifts_of(facts, name))]
        bias = tensors["final_fc_bias"]
        weight = tensors["final_fc_wt"].view(len(bias), -1)
        self.classifier = IntegerLinear(weight, bias, *shifts_of(facts, "final_fc"))

    def logits(self, features: Tensor) -> Tensor:
        x = self.conv(features[:, None])
        for block in self.blocks:
            x = block(x)
        return self.classifier(q7.average_pool(x, POOL_SHIFT))


Size = tuple[int, int]  # frames, coefficients


def spatial(
    tensors: dict[str, Tensor], facts: dict[str, Any], name: str, size: Size
) -> tuple[IntegerConvolution, Size]:
    """A convolution, of one channel or depthwise, and the size of what it gives; zeros that are odd go last."""
    key = name.upper()
    bias = tensors[f"{name}_bias"]
    kernel, stride, before = ((facts[f"{key}_{what}Y"], facts[f"{key}_{what}X"]) for what in "KSP")
    out = tuple(-(-n // step) for n, step in zip(size, stride, strict=True))
    after = [
        (many - 1) * step + width - zeros - n
        for n, many, step, width, zeros in zip(size, out, stride, kernel, before, strict=True)
    ]
    depthwise = name.endswith("_ds")
    weight = tensors[f"{name}_wt"]
    weight = weight.view(*kernel, len(bias)).permute(2, 0, 1) if depthwise else weight.view(len(bias), *kernel)
    padding = before[1], after[1], before[0], after[0]
    groups = len(bias) if depthwise else 1
    return IntegerConvolution(weight[:, None], bias, *shifts_of(facts, name), stride, padding, groups), out


def shifts_of(facts: dict[str, Any], name: str) -> tuple[int, int]:
    return facts[f"{name.upper()}_BIAS_LSHIFT"], facts[f"{name.upper()}_OUT_RSHIFT"]


NETWORKS = {"ds_cnn_s_int8": IntegerDSCNN, "dnn_s_int8": IntegerDNN}
