"""Recurrent layers as TensorFlow 1 defines their cells, which is not as PyTorch does.

Sak, Senior & Beaufays 2014 (arXiv 1402.1128, section 2) for the LSTM with peepholes and a projection; Cho et al. 2014
(arXiv 1406.1078, section 2.3) for the GRU, whose reset gate acts on the state before the candidate's product, where
torch.nn.GRU's acts after it. The order of the gates is unverified; the released networks label clips right with it.

A layer maps [batch, frames, in] to the outputs of all frames, [batch, frames, out], from a state of zeros. The product
of the inputs is formed for all frames at once, the recurrent one frame by frame in a loop, which torch.export unrolls.
"""

import math

import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    """Gates in the order input, candidate, forget, output; the forget gate's bias starts at 1.

        i = sigma(W_i x + R_i h [+ p_i c])      f = sigma(W_f x + R_f h [+ p_f c])      j = tanh(W_j x + R_j h)
        c' = f c + i j                          o = sigma(W_o x + R_o h [+ p_o c'])     h' = [P] (o tanh c')

    peepholes: with the diagonal p; projection: width of h' when it is not that of c.
    """

    def __init__(self, inputs: int, cells: int, peepholes: bool = False, projection: int | None = None) -> None:
        super().__init__()
        self.cells, self.outputs = cells, projection or cells
        self.input = nn.Linear(inputs, 4 * cells)
        self.recurrent = nn.Linear(self.outputs, 4 * cells, bias=False)
        self.peepholes = nn.Parameter(torch.empty(3, cells)) if peepholes else None  # input, forget, output
        self.projection = nn.Linear(cells, projection, bias=False) if projection else None
        glorot_(self.input.weight, self.recurrent.weight)
        with torch.no_grad():
            self.input.bias.zero_()[2 * cells : 3 * cells] = 1
        if self.peepholes is not None:
            nn.init.uniform_(self.peepholes, -math.sqrt(3 / cells), math.sqrt(3 / cells))
        if self.projection is not None:
            nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = c = None  # the state before the first frame: zeros, whose products are zero
        outputs = []
        for product in self.input(x).unbind(1):
            i, j, f, o = (product if h is None else product + self.recurrent(h)).chunk(4, 1)
            if c is not None and self.peepholes is not None:
                i, f = i + self.peepholes[0] * c, f + self.peepholes[1] * c
            new = i.sigmoid() * j.tanh()
            c = new if c is None else new + f.sigmoid() * c
            if self.peepholes is not None:
                o = o + self.peepholes[2] * c
            h = o.sigmoid() * c.tanh()
            if self.projection is not None:
                h = self.projection(h)
            outputs.append(h)
        return torch.stack(outputs, 1)


class GRU(nn.Module):
    """Gates in the order reset, update; `input` holds those and the candidate. The gates' biases start at 1.

    r = sigma(W_r x + R_r h)    u = sigma(W_u x + R_u h)    c = tanh(W_c x + R_c (r h))    h' = u h + (1 - u) c
    """

    def __init__(self, inputs: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.input = nn.Linear(inputs, 3 * cells)
        self.recurrent = nn.Linear(cells, 2 * cells, bias=False)
        self.candidate = nn.Linear(cells, cells, bias=False)
        glorot_(self.input.weight[: 2 * cells], self.recurrent.weight)
        glorot_(self.input.weight[2 * cells :], self.candidate.weight)
        with torch.no_grad():
            self.input.bias.zero_()[: 2 * cells] = 1

    def forward(self, x: Tensor) -> Tensor:
        gates, candidates = self.input(x).split([2 * self.cells, self.cells], 2)
        h = None  # before the first frame: zeros, whose products are zero
        outputs = []
        for gate, candidate in zip(gates.unbind(1), candidates.unbind(1), strict=True):
            r, u = (gate if h is None else gate + self.recurrent(h)).sigmoid().chunk(2, 1)
            c = (candidate if h is None else candidate + self.candidate(r * h)).tanh()
            h = (1 - u) * c if h is None else c + u * (h - c)
            outputs.append(h)
        return torch.stack(outputs, 1)


@torch.no_grad()
def glorot_(of_input: Tensor, of_state: Tensor) -> None:
    """Uniform, as Glorot & Bengio draw the one matrix that TensorFlow keeps for both: [out, in] and [out, state]."""
    limit = math.sqrt(6 / (of_input.shape[0] + of_input.shape[1] + of_state.shape[1]))
    of_input.uniform_(-limit, limit)
    of_state.uniform_(-limit, limit)
