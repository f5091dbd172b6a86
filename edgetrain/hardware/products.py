"""Operators that multiply and add: linear layers, matrix products, attention, einsum, recurrent layers."""

from collections.abc import Sequence
from math import prod

from edgetrain.hardware.operator_rows import Call, Operand, Row, product_rows, sizes
from edgetrain.hardware.workload import Kind, Loops


def linear(call: Call) -> list[Row]:
    x, weight = call["input"], call["weight"]
    if not weight.constant:
        return matrix_product(call, x, weight.part(*reversed(weight.shape)), call["bias"])
    return product_rows("linear", _tokens(x.shape, weight.shape[0]), call, (x, weight), biases=(call["bias"],))


def _tokens(shape: tuple[int, ...], out_features: int) -> Loops:
    *tokens, in_features = shape
    batch, height = (*tokens, 1, 1)[:2]
    return Loops(batch, 1, out_features, in_features, height, prod(tokens[2:]))


def matrix_product(call: Call, a: Operand, b: Operand, added: Operand | None = None) -> list[Row]:
    """a [..., n, k] times b [..., k, m]; linear where one of the two is constant."""
    a_shape = a.shape if len(a.shape) > 1 else (1, *a.shape)
    b_shape = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    if a.constant and not b.constant:  # (a b)^T = b^T a^T
        a, b = b, a
        a_shape, b_shape = (*b_shape[:-2], b_shape[-1], b_shape[-2]), (*a_shape[:-2], a_shape[-1], a_shape[-2])
    (*outer, n, k), (*inner, _, m) = a_shape, b_shape
    kind: Kind = "linear" if b.constant else "matmul"
    biases, reads = ((added,), (a, b)) if b.constant and added and added.constant else ((), (a, b, added))
    if b.constant and prod(inner) == 1:
        return product_rows(kind, _tokens((*outer, n, k), m), call, reads, biases=biases)
    ranks = max(len(outer), len(inner))
    pairs = zip([1] * (ranks - len(outer)) + outer, [1] * (ranks - len(inner)) + inner, strict=True)
    shared = [max(pair) for pair in pairs]
    batch, groups = (shared[0], prod(shared[1:])) if ranks > 1 else (1, prod(shared))
    loops = Loops(batch, groups, groups * m, groups * k, n)
    return product_rows(kind, loops, call, reads, biases=biases)


def matmul(call: Call) -> list[Row]:
    names = [name for name in ("self", "mat1", "batch1", "other", "mat2", "batch2", "vec", "tensor") if call[name]]
    added = call["self"] if call.name in ("addmm", "baddbmm", "addmv") else None
    first, second = (call[name] for name in names if call[name] is not added)
    return matrix_product(call, first, second, added)


def int8_matmul(call: Call) -> list[Row]:
    """torch's weight-only int8 product: x [n, k], weight [m, k], one scale for each output."""
    x, weight = call["self"], call["mat2"]
    return product_rows("linear", _tokens(x.shape, weight.shape[0]), call, (x, weight), biases=(call["scales"],))


def attention(call: Call) -> list[Row]:
    """Scores, softmax and sum over values. Scores are counted for all pairs, those that a causal mask hides too."""
    q, k, v, out = call["query"], call["key"], call["value"], call.output
    batch, heads = (q.shape[0], prod(q.shape[1:-2])) if len(q.shape) > 3 else (1, prod(q.shape[:-2]))
    queries, keys, width, value_width = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    shape = (*q.shape[:-2], queries, keys)
    scores, weights = call.new(shape, out.format), call.new(shape, out.format)
    qk = Loops(batch, heads, heads * keys, heads * width, queries)
    pv = Loops(batch, heads, heads * value_width, heads * keys, queries)
    steps = 6 + (call["attn_mask"] is not None or bool(call["is_causal"]))  # softmax, scale, mask
    return [
        Row("matmul", qk, (q, k), (scores,), 2 * qk.macs, qk.macs, suffix="qk"),
        Row("softmax", sizes(shape), (scores, call["attn_mask"]), (weights,), steps * prod(shape), suffix="softmax"),
        Row("matmul", pv, (weights, v), (out,), 2 * pv.macs, pv.macs, suffix="pv"),
    ]


def einsum(call: Call) -> list[Row] | None:
    """A product of two tensors: what both and the result have is batch, what only both have is summed over."""
    operands = call["tensors"]
    left, _, right = call["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if len(operands) != 2 or "." in left or not right:
        return None
    size = {letter: n for term, x in zip(terms, operands, strict=True) for letter, n in zip(term, x.shape, strict=True)}
    a, b = operands
    a_letters, b_letters = map(set, terms)
    if (a_letters ^ b_letters) - set(right):
        return None
    if a.constant:
        a, b, a_letters, b_letters = b, a, b_letters, a_letters
    batch = prod(size[letter] for letter in a_letters & b_letters & set(right))
    summed = prod(size[letter] for letter in (a_letters & b_letters) - set(right))
    rows, columns = (prod(size[letter] for letter in own) for own in (a_letters - b_letters, b_letters - a_letters))
    if not (a_letters & b_letters) - set(right):
        return [Row("elementwise", sizes(call.output.shape), (a, b), call.outputs, prod(call.output.shape))]
    kind: Kind = "linear" if b.constant else "matmul"
    return product_rows(kind, Loops(1, batch, batch * columns, batch * summed, rows), call, (a, b))


# Recurrent layers: gates, and operations for each hidden unit and step beside the products

CELLS = {"lstm": (4, 9), "gru": (3, 7), "rnn_tanh": (1, 1), "rnn_relu": (1, 1)}


def recurrent(call: Call) -> list[Row] | None:
    """One row for each layer and direction. Both directions write into one tensor. Not for packed sequences."""
    x = call["input"]
    if x is None:
        return None
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    projected = call.name == "lstm" and states[0].shape[-1] != states[1].shape[-1]
    tensors = 2 + 2 * bool(call["has_biases"]) + projected
    directions = 1 + bool(call["bidirectional"])
    rows = []
    for layer in range(call["num_layers"]):
        width = call.output.shape[-1] // directions
        whole = call.output
        if layer + 1 < call["num_layers"]:
            whole = call.new((*x.shape[:-1], width * directions), x.format)
        for direction in range(directions):
            first = (layer * directions + direction) * tensors
            parameters = call["params"][first : first + tensors]
            own = [state.part(1, *state.shape[1:]) for state in states]
            new = [state.part(1, *state.shape[1:]) for state in call.outputs[1:]]
            suffix = f"l{layer}" + "_reverse" * direction
            steps = prod(x.shape[:-1])
            writes = (whole.part(*whole.shape[:-1], width), *new)
            biases = parameters[2:4] if call["has_biases"] else []
            weights = [*parameters[:2], *parameters[4 if biases else 2 :]]
            batched = len(x.shape) == 3
            batch = x.shape[0 if call["batch_first"] else 1] if batched else 1
            rows.append(_recurrent_row(call.name, x, own, weights, biases, writes, batch, steps // batch, suffix))
        x = whole
    return rows


def _recurrent_row(
    cell: str,
    x: Operand,
    states: Sequence[Operand],
    weights: Sequence[Operand],
    biases: Sequence[Operand | None],
    writes: Sequence[Operand],
    batch: int,
    steps: int,
    suffix: str = "",
) -> Row:
    """Weights: input to gates, hidden to gates, and of an LSTM with proj_size hidden to output, whose MACs the loops
    do not show."""
    _, own_operations = CELLS[cell]
    gates, features = weights[0].shape
    recurrent_features = weights[1].shape[1]
    loops = Loops(batch, 1, gates, features + recurrent_features, steps)
    projection = batch * steps * prod(weights[2].shape) if len(weights) > 2 else 0
    macs = loops.macs + projection
    operations = 2 * macs + own_operations * batch * steps * (gates // CELLS[cell][0])
    return Row(
        "recurrent",
        loops,
        (x, *states, *weights),
        writes,
        operations,
        macs,
        biases,
        suffix=suffix,
        carried=tuple(zip(states, writes[-len(states) :], strict=True)),
    )


def recurrent_cell(call: Call) -> list[Row]:
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    x = call["input"]
    weights, biases = (call["w_ih"], call["w_hh"]), (call["b_ih"], call["b_hh"])
    name = call.name.removesuffix("_cell")
    return [_recurrent_row(name, x, states, weights, biases, call.outputs, prod(x.shape[:-1]), 1)]
