"""TensorFlow 1's recurrent cells written out frame by frame, as its documentation defines them."""

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_by_definition(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    forget_bias: float,
    diagonals: dict[str, np.ndarray] | None = None,
    projection: np.ndarray | None = None,
) -> np.ndarray:
    """x [frames, in], kernel [in + out, 4 cells] with gates i, j, f, o: outputs [frames, out]."""
    cells = kernel.shape[1] // 4
    c, h = np.zeros(cells), np.zeros(len(kernel) - x.shape[1])
    zeros = {gate: np.zeros(cells) for gate in "ifo"}
    w = diagonals or zeros
    outputs = []
    for frame in x:
        i, j, f, o = np.split(np.concatenate([frame, h]) @ kernel + bias, 4)
        new = sigmoid(f + forget_bias + w["f"] * c) * c + sigmoid(i + w["i"] * c) * np.tanh(j)
        h = sigmoid(o + w["o"] * new) * np.tanh(new)
        c = new
        if projection is not None:
            h = h @ projection
        outputs.append(h)
    return np.stack(outputs)


def gru_by_definition(
    x: np.ndarray, gates: np.ndarray, gate_bias: np.ndarray, candidate: np.ndarray, candidate_bias: np.ndarray
) -> np.ndarray:
    """gates [in + cells, 2 cells] in the order r, u; candidate [in + cells, cells], whose state is reset before."""
    h = np.zeros(candidate.shape[1])
    outputs = []
    for frame in x:
        r, u = np.split(sigmoid(np.concatenate([frame, h]) @ gates + gate_bias), 2)
        new = np.tanh(np.concatenate([frame, r * h]) @ candidate + candidate_bias)
        h = u * h + (1 - u) * new
        outputs.append(h)
    return np.stack(outputs)
