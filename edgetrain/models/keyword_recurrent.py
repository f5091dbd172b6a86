"""The recurrent networks of Hello Edge: basic LSTM, LSTM, GRU, CRNN (arXiv 1711.07128, section 3; sizes in `keyword`).

All read the output of the last frame.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.models.keyword_convolutional import Shape, one_channel, valid_convolution, valid_size
from edgetrain.models.keyword_network import KeywordNetwork, xavier_
from edgetrain.models.recurrent_cells import GRU, LSTM


class LSTMNetwork(KeywordNetwork):
    """cells: width of the state; projection: of the output, with peepholes; None for the basic LSTM, without both."""

    def __init__(
        self,
        cells: int,
        classes: int,
        frames: int,
        coefficients: int,
        projection: int | None = None,
        **inputs: Any,
    ) -> None:
        super().__init__(frames, coefficients, **inputs)
        self.lstm = LSTM(coefficients, cells, peepholes=projection is not None, projection=projection)
        self.classifier = nn.Linear(self.lstm.outputs, classes)
        xavier_(self.classifier)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.lstm(features)[:, -1])


class GRUNetwork(KeywordNetwork):
    """cells: width of the state of each of the layers."""

    def __init__(
        self, cells: int, classes: int, frames: int, coefficients: int, layers: int = 1, **inputs: Any
    ) -> None:
        super().__init__(frames, coefficients, **inputs)
        self.grus = gru_layers(coefficients, cells, layers)
        self.classifier = nn.Linear(cells, classes)
        xavier_(self.classifier)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.grus(features)[:, -1])


class CRNN(KeywordNetwork):
    """A convolution without padding or norm, GRU layers over its frames, a hidden layer."""

    def __init__(
        self,
        first: Shape,
        layers: int,
        cells: int,
        hidden: int,
        classes: int,
        frames: int,
        coefficients: int,
        **inputs: Any,
    ) -> None:
        super().__init__(frames, coefficients, **inputs)
        self.conv = valid_convolution(1, first, bias=True)
        self.grus = gru_layers(first[0] * valid_size((frames, coefficients), first)[1], cells, layers)
        self.hidden = nn.Linear(cells, hidden)
        self.classifier = nn.Linear(hidden, classes)
        for module in (self.conv, self.hidden, self.classifier):
            xavier_(module)

    def logits(self, features: Tensor) -> Tensor:
        x = F.relu(self.conv(one_channel(features)))
        x = self.grus(x.permute(0, 2, 3, 1).flatten(2))[:, -1]
        return self.classifier(F.relu(self.hidden(x)))


def gru_layers(inputs: int, cells: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(GRU(cells if layer else inputs, cells) for layer in range(layers)))
