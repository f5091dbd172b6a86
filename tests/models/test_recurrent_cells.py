"""Recurrent layers against TensorFlow 1's definitions written out frame by frame in numpy, and against torch's own."""

import numpy as np
import pytest
import torch
from recurrent_reference import gru_by_definition, lstm_by_definition
from torch import nn

from edgetrain.models.recurrent_cells import GRU, LSTM

FRAMES, BATCH, INPUTS, CELLS, PROJECTION = 5, 3, 4, 6, 2


def randomised(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    return layer.double()


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


@pytest.mark.parametrize("projection", [None, PROJECTION])
@pytest.mark.parametrize("peepholes", [False, True])
def test_the_lstm_is_the_definition(peepholes: bool, projection: int | None) -> None:
    layer = randomised(LSTM(INPUTS, CELLS, peepholes, projection))
    x = torch.randn(BATCH, FRAMES, INPUTS, dtype=torch.double)
    kernel = np.concatenate([array(layer.input.weight).T, array(layer.recurrent.weight).T])
    bias = array(layer.input.bias).copy()
    bias[2 * CELLS : 3 * CELLS] -= 1  # TensorFlow adds the forget bias of 1 when it runs
    diagonals = dict(zip("ifo", array(layer.peepholes), strict=True)) if peepholes else None
    matrix = array(layer.projection.weight).T if projection else None
    out = array(layer(x))
    for clip, result in zip(array(x), out, strict=True):
        np.testing.assert_allclose(result, lstm_by_definition(clip, kernel, bias, 1.0, diagonals, matrix), atol=1e-12)


def test_the_gru_is_the_definition() -> None:
    layer = randomised(GRU(INPUTS, CELLS))
    x = torch.randn(BATCH, FRAMES, INPUTS, dtype=torch.double)
    weight, bias = array(layer.input.weight).T, array(layer.input.bias)
    gates = np.concatenate([weight[:, : 2 * CELLS], array(layer.recurrent.weight).T])
    candidate = np.concatenate([weight[:, 2 * CELLS :], array(layer.candidate.weight).T])
    out = array(layer(x))
    for clip, result in zip(array(x), out, strict=True):
        reference = gru_by_definition(clip, gates, bias[: 2 * CELLS], candidate, bias[2 * CELLS :])
        np.testing.assert_allclose(result, reference, atol=1e-12)


def test_the_plain_lstm_is_torchs_with_its_gates_in_another_order() -> None:
    layer = randomised(LSTM(INPUTS, CELLS))
    theirs = nn.LSTM(INPUTS, CELLS, batch_first=True).double()
    order = [0, 2, 1, 3]  # i, j, f, o to i, f, j, o

    def reordered(rows: torch.Tensor) -> torch.Tensor:
        blocks = rows.detach().chunk(4)
        return torch.cat([blocks[gate] for gate in order])

    with torch.no_grad():
        theirs.weight_ih_l0.copy_(reordered(layer.input.weight))
        theirs.weight_hh_l0.copy_(reordered(layer.recurrent.weight))
        theirs.bias_ih_l0.copy_(reordered(layer.input.bias))
        theirs.bias_hh_l0.zero_()
    x = torch.randn(BATCH, FRAMES, INPUTS, dtype=torch.double)
    torch.testing.assert_close(layer(x), theirs(x)[0])


def test_the_gru_is_torchs_only_while_its_reset_gate_is_open() -> None:
    layer = randomised(GRU(INPUTS, CELLS))
    theirs = nn.GRU(INPUTS, CELLS, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(layer.input.weight)
        theirs.weight_hh_l0.copy_(torch.cat([layer.recurrent.weight, layer.candidate.weight]))
        theirs.bias_hh_l0.zero_()
    x = torch.randn(BATCH, FRAMES, INPUTS, dtype=torch.double)
    for open_gate in (True, False):
        with torch.no_grad():
            layer.input.bias[:CELLS] = 100.0 if open_gate else 0.0
            theirs.bias_ih_l0.copy_(layer.input.bias)
        assert torch.allclose(layer(x), theirs(x)[0]) == open_gate


def test_the_gates_start_open() -> None:
    """TensorFlow: forget bias 1, gates of the GRU 1, all others 0."""
    assert LSTM(INPUTS, 2).input.bias.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert GRU(INPUTS, 2).input.bias.tolist() == [1, 1, 1, 1, 0, 0]


def test_weights_start_within_glorots_limit_of_the_joint_matrix() -> None:
    torch.manual_seed(0)
    lstm, gru = LSTM(10, 100, projection=50), GRU(10, 100)
    for limit, weights in (
        ((6 / (10 + 50 + 400)) ** 0.5, [lstm.input.weight, lstm.recurrent.weight]),
        ((6 / (10 + 100 + 200)) ** 0.5, [gru.input.weight[:200], gru.recurrent.weight]),
        ((6 / (10 + 100 + 100)) ** 0.5, [gru.input.weight[200:], gru.candidate.weight]),
    ):
        for weight in weights:
            assert 0.98 * limit < weight.abs().max() <= limit


@pytest.mark.parametrize("layer", [LSTM(INPUTS, CELLS, True, PROJECTION), GRU(INPUTS, CELLS)], ids=["lstm", "gru"])
def test_torch_export_unrolls_the_loop(layer: nn.Module) -> None:
    x = torch.randn(1, FRAMES, INPUTS)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
