"""The trained networks that were released with Hello Edge, read tensor by tensor under their TensorFlow names.

ARM-software/ML-KWS-for-MCU (Apache-2.0), the constants of its frozen graphs as safetensors. How TensorFlow orders gates
is unverified; the released networks label clips right in the order that is written in `recurrent_cells`.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from edgetrain.checkpoint import read_weights
from edgetrain.errors import UserError, listing, nearest
from edgetrain.models.keyword import FAMILIES, SIZES, keyword, stride_ms
from edgetrain.models.keyword_convolutional import CNN, DNN, DSCNN
from edgetrain.models.keyword_network import SAMPLES, KeywordNetwork
from edgetrain.models.keyword_recurrent import CRNN, GRUNetwork, LSTMNetwork
from edgetrain.models.recurrent_cells import GRU, LSTM
from edgetrain.ops.mfcc import MFCC

LABELS = ["silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]

# Which axis of which tensor is as long as the first number of a size.
WIDTHS = {
    "dnn": ("fc1/W", 1),
    "cnn": ("Variable", 3),
    "basic_lstm": ("W_o", 0),
    "lstm": ("lstm/rnn/lstm_cell/w_i_diag", 0),
    "gru": ("W_o", 0),
    "crnn": ("W", 3),
    "ds_cnn": ("MobileNet/conv_1/weights", 3),
}


def keyword_pretrained(name: str, path: str = "kws_pretrained", front_end: bool = False) -> KeywordNetwork:
    """The network of <path>/<name>.safetensors; its labels, in order, are `LABELS`.

    name: a family and a size, as in ds_cnn_s; the size is told by the tensors. path: a folder, looked for in
    $EDGETRAIN_DATA and then here. Raises UserError for a file that is not there, and one that lacks a tensor or has it
    in another shape.
    """
    family = name.rpartition("_")[0]
    if family not in FAMILIES:
        raise UserError(
            f"model.name={name} is not a family and a size as in ds_cnn_s; families are {listing(FAMILIES)}"
            f"{nearest(family or name, FAMILIES)}"
        )
    tensors = Released(find_released(f"{name}.safetensors", path))
    size = size_of(family, tensors)
    milliseconds = stride_ms(family, size)
    frames = MFCC(stride_ms=milliseconds).frames(SAMPLES)
    network = keyword(family, size, None, len(LABELS), frames, front_end=front_end, stride_ms=milliseconds)
    with torch.no_grad():
        load(network, tensors)
    network.labels = LABELS
    return network


def find_released(file: str, path: str) -> Path:
    """A file of a folder that is looked for in $EDGETRAIN_DATA and then here. Raises UserError when it is not there."""
    shared = os.environ.get("EDGETRAIN_DATA")
    places = [Path(place).expanduser() / path / file for place in (shared, ".") if place]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        there = sorted({other.name for place in places for other in place.parent.glob(f"*{Path(file).suffix}")})
        raise UserError(
            f"there is no {' nor '.join(map(str, places))}; "
            + (f"the folder has {listing(there)}" if there else "set EDGETRAIN_DATA to the folder that holds it")
        )
    return found


class Released:
    """The tensors of a file, float32, each asked for with its shape."""

    def __init__(self, file: Path) -> None:
        self.file, self.tensors = file, read_weights(str(file))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise UserError(f"{self.file} has no tensor {name}{nearest(name, self.tensors)}; it is not this network's")
        return self.tensors[name]

    def take(self, name: str, *shape: int) -> Tensor:
        tensor = self[name]
        if tensor.shape != shape:
            raise UserError(
                f"{self.file}: the tensor {name} is {list(tensor.shape)} where the network has {list(shape)}"
            )
        return tensor


def size_of(family: str, tensors: Released) -> str:
    """The size whose first width is that of the file. Raises UserError when there is none."""
    name, axis = WIDTHS[family]
    width = tensors[name].shape[axis] if axis < tensors[name].ndim else 0
    widths = {}
    for size, arguments in SIZES[family].items():
        first = next(iter(arguments.values()))
        widths[first if isinstance(first, int) else first[0]] = size
    if width not in widths:
        raise UserError(
            f"{tensors.file}: the tensor {name} is {list(tensors[name].shape)}, and no size of {family} has that width "
            f"(its axis {axis} is {listing(map(str, widths))})"
        )
    return widths[width]


def load(network: KeywordNetwork, tensors: Released) -> None:
    """Copy the tensors into a network of their sizes."""
    if isinstance(network, DNN):
        for index, layer in enumerate(network.layers, 1):
            linear(layer, tensors, f"fc{index}/W", f"fc{index}/b")
        linear(network.classifier, tensors, "final_fc", "Variable")
    elif isinstance(network, CNN):
        convolution(network.conv1, tensors, "Variable")
        norm(network.norm1, tensors, "bn1", "Variable_1")
        convolution(network.conv2, tensors, "Variable_2")
        norm(network.norm2, tensors, "bn2", "Variable_3")
        linear(network.low_rank, tensors, "W", "b")
        linear(network.hidden, tensors, "Variable_4")
        norm(network.norm3, tensors, "bn3", "Variable_5")
        linear(network.classifier, tensors, "Variable_6", "Variable_7")
    elif isinstance(network, LSTMNetwork):
        lstm(network.lstm, tensors)
        linear(network.classifier, tensors, "W_o", "b_o")
    elif isinstance(network, GRUNetwork):
        grus(network.grus, tensors)
        linear(network.classifier, tensors, "W_o", "b_o")
    elif isinstance(network, CRNN):
        convolution(network.conv, tensors, "W", "Variable")
        grus(network.grus, tensors)
        linear(network.hidden, tensors, "fcw", "Variable_1")
        linear(network.classifier, tensors, "Variable_2", "Variable_3")
    elif isinstance(network, DSCNN):
        ds_cnn(network, tensors)


def linear(layer: nn.Linear, tensors: Released, weight: str, bias: str | None = None) -> None:
    layer.weight.copy_(tensors.take(weight, layer.in_features, layer.out_features).T)
    if bias is not None:
        layer.bias.copy_(tensors.take(bias, layer.out_features))


def convolution(layer: nn.Conv2d, tensors: Released, weight: str, bias: str | None = None) -> None:
    """TensorFlow's kernels are [height, width, in, out], depthwise ones [height, width, channels, 1]."""
    out_channels, in_channels, *kernel = layer.weight.shape
    if layer.groups > 1:
        layer.weight.copy_(tensors.take(weight, *kernel, out_channels, 1).permute(2, 3, 0, 1))
    else:
        layer.weight.copy_(tensors.take(weight, *kernel, in_channels, out_channels).permute(3, 2, 0, 1))
    if bias is not None:
        layer.bias.copy_(tensors.take(bias, out_channels))


def norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, tensors: Released, name: str, bias: str) -> None:
    """bias: of the layer before, which ours has not: the norm subtracts a mean from it, and so from that mean."""
    channels = layer.num_features
    layer.running_mean.copy_(tensors.take(f"{name}/moving_mean", channels) - tensors.take(bias, channels))
    layer.running_var.copy_(tensors.take(f"{name}/moving_variance", channels))
    layer.bias.copy_(tensors.take(f"{name}/beta", channels))
    if isinstance(layer.weight, nn.Parameter):
        layer.weight.copy_(tensors.take(f"{name}/gamma", channels))


def ds_cnn(network: DSCNN, tensors: Released) -> None:
    convolution(network.conv, tensors, "MobileNet/conv_1/weights")
    norm(network.norm, tensors, "MobileNet/conv_1/batch_norm", "MobileNet/conv_1/biases")
    for index, block in enumerate(network.blocks, 1):
        place = f"MobileNet/conv_ds_{index}"
        convolution(block.depthwise, tensors, f"{place}/depthwise_conv/depthwise_weights")
        norm(block.depthwise_norm, tensors, f"{place}/dw_batch_norm", f"{place}/depthwise_conv/biases")
        convolution(block.pointwise, tensors, f"{place}/pointwise_conv/weights")
        norm(block.pointwise_norm, tensors, f"{place}/pw_batch_norm", f"{place}/pointwise_conv/biases")
    linear(network.classifier, tensors, "MobileNet/fc1/weights", "MobileNet/fc1/biases")


def lstm(layer: LSTM, tensors: Released) -> None:
    """TensorFlow keeps one matrix for input and state, and adds the 1 of the forget gate when it runs."""
    name = "lstm/rnn/basic_lstm_cell" if layer.peepholes is None else "lstm/rnn/lstm_cell"
    inputs, cells = layer.input.in_features, layer.cells
    kernel = tensors.take(f"{name}/kernel", inputs + layer.outputs, 4 * cells)
    layer.input.weight.copy_(kernel[:inputs].T)
    layer.recurrent.weight.copy_(kernel[inputs:].T)
    layer.input.bias.copy_(tensors.take(f"{name}/bias", 4 * cells))
    layer.input.bias[2 * cells : 3 * cells] += 1
    if layer.peepholes is not None:
        for row, gate in zip(layer.peepholes, "ifo", strict=True):
            row.copy_(tensors.take(f"{name}/w_{gate}_diag", cells))
    if layer.projection is not None:
        linear(layer.projection, tensors, f"{name}/projection/kernel")


def grus(layers: nn.Sequential, tensors: Released) -> None:
    for index, layer in enumerate(layers):
        assert isinstance(layer, GRU)
        place = f"rnn/multi_rnn_cell/cell_{index}/gru_cell"
        inputs, cells = layer.input.in_features, layer.cells
        gates = tensors.take(f"{place}/gates/kernel", inputs + cells, 2 * cells)
        candidate = tensors.take(f"{place}/candidate/kernel", inputs + cells, cells)
        layer.input.weight.copy_(torch.cat([gates[:inputs], candidate[:inputs]], 1).T)
        layer.recurrent.weight.copy_(gates[inputs:].T)
        layer.candidate.weight.copy_(candidate[inputs:].T)
        biases = tensors.take(f"{place}/gates/bias", 2 * cells), tensors.take(f"{place}/candidate/bias", cells)
        layer.input.bias.copy_(torch.cat(biases))
