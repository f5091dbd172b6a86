"""What every keyword network shares: what it takes, its optional front end, and the pieces of its layers.

Zhang, Suda, Lai & Chandra 2017, "Hello Edge" (arXiv 1711.07128), as released with the paper.
"""

import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.ops.mfcc import MFCC

SAMPLES = 16000  # of a clip: one second
NORM_EPS = 1e-3
NORM_MOMENTUM = 0.04  # 1 - the decay of running statistics


class KeywordNetwork(nn.Module):
    """Features float32 [batch, frames, coefficients] to logits [batch, classes]; a subclass says `logits(features)`.

    front_end: takes samples [batch, 16000] in [-1, 1] instead and computes the features itself, a frame of window_ms
    every stride_ms; it adds no state-dict keys. Raises UserError when such frames are not as many as `frames`, and for
    input of another shape.
    """

    def __init__(
        self, frames: int, coefficients: int, front_end: bool = False, window_ms: float = 40, stride_ms: float = 20
    ) -> None:
        super().__init__()
        self.feature_shape = self.input_shape = (frames, coefficients)
        self.front_end: MFCC | None = None
        if front_end:
            self.input_shape = (SAMPLES,)
            self.front_end = MFCC(window_ms=window_ms, stride_ms=stride_ms, coefficients=coefficients)
            if (given := self.front_end.frames(SAMPLES)) != frames:
                raise UserError(
                    f"model.frames={frames}, but a second has {given} frames of {window_ms} ms every {stride_ms} ms; "
                    f"set data.frames={given}, or another data.stride_ms"
                )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.input_shape:
            raise UserError(self._refusal(x))
        return self.logits(x if self.front_end is None else self.front_end(x))

    def logits(self, features: Tensor) -> Tensor:
        """[batch, classes] of features [batch, frames, coefficients]; each family's own."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        return self.classifier.out_features

    def _refusal(self, x: Tensor) -> str:
        takes = "samples [batch, 16000]" if self.front_end else "features [batch, frames, coefficients]"
        keys = "data.features" if self.front_end or x.ndim == 2 else "data.frames, data.stride_ms and data.coefficients"
        return (
            f"the model takes {takes} = {['batch', *self.input_shape]}, but was given {list(x.shape)}; "
            f"make {keys} and the model's agree"
        )


class ShiftNorm(nn.BatchNorm2d):
    """Batch normalisation with a shift (beta) and no scale (gamma): in TensorFlow slim's default it is the constant 1.

    The ones are a buffer outside the state dict, so that whatever folds a batch norm finds them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        del self.weight
        self.register_buffer("weight", torch.ones(channels), persistent=False)


def xavier_(network: nn.Module) -> None:
    """Glorot & Bengio's uniform weights and zero biases, for every convolution and linear layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
