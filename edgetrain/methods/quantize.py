"""From float to 8 bits: after training, or learnt while training."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgetrain.errors import UserError
from edgetrain.methods.calibration import draw
from edgetrain.methods.q7 import check_q7, power_of_two
from edgetrain.methods.quantize_capture import (
    LAYERS,
    PRODUCTS,
    batch_norms,
    capture,
    check_packages,
    folded,
    in_front_end,
    owner,
)
from edgetrain.methods.quantize_graph import Ranges, check_output, quantized
from edgetrain.methods.quantize_training import Rounding, learnt_ranges, plain_layers, round_layers
from edgetrain.models.quantized import QuantizedModel, float_network


def check_post_training(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The model's captured graph. Raises UserError, before anything is trained, where `post_training` would."""
    check_packages()
    program = capture(model, example_inputs)
    norms = batch_norms(model, program)
    check_output(model, capture(folded(model, norms), example_inputs) if norms else program)
    return program


def post_training(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    data: Any,
    samples: int = 256,
    seed: int = 0,
    bits: int = 8,
    ranges: Ranges | None = None,
) -> QuantizedModel:
    """The trained model in 8 bits, its batch norms folded; the model itself stays as it is.

    example_inputs: one float tensor of any batch; data: its train split gives at most `samples` calibration samples,
    drawn by `seed`; bits: of the weights, 2 to 8; ranges: as `quantized` takes them. The graph takes any batch, and
    `torch.export.export(graph, (x,))` with an x of batch 1 fixes it, for runtimes that want it so. Raises UserError for
    a model that cannot be quantised so: several inputs, whole numbers, no convolution or linear layer, a graph that
    cannot be captured, a last operator without an 8-bit form.
    """
    check_packages()
    program = capture(model, example_inputs)
    calibration = draw(data, samples, seed)
    return quantized(folded(model, batch_norms(model, program)), example_inputs, calibration, bits, ranges)


SCHEMES = {"int8": post_training, "q7": power_of_two}


def in_scheme(model: nn.Module, scheme: str, example_inputs: tuple[Tensor, ...], data: Any) -> QuantizedModel:
    """The model in int8 or q7: itself where it is, else its float network quantised after training with the defaults.

    Raises UserError for a network that has no such form.
    """
    if isinstance(model, QuantizedModel) and model.scheme.name == scheme:
        return model
    return SCHEMES[scheme](float_network(model), example_inputs, data)


class Quantize:
    """int8 or q7, after training or, with qat_start, also while training.

    scheme: int8 has weights with a scale for each output channel and activations with a zero point; q7 has powers of
    two only (`methods.q7`). qat_start: the optimiser step from which training rounds as the 8-bit network will; None
    trains in floating point. samples, seed: of the calibration; bits: of weights, 2 to 8, in int8. The plan holds the
    layers that round.

    `finish` changes the function: every output moves by what rounding adds up to over the layers, in deep networks by
    several of its steps (LSB). What accuracy that costs is for the measure `classification` to say.
    """

    changes_numerics = True

    def __init__(
        self,
        scheme: Literal["int8", "q7"] = "int8",
        qat_start: int | None = None,
        samples: int = 256,
        bits: int = 8,
        seed: int = 0,
    ) -> None:
        if samples < 1:
            raise UserError(f"method.quantize.samples={samples} must be at least 1: ranges are read from samples")
        if not 2 <= bits <= 8:
            raise UserError(f"method.quantize.bits={bits} is outside 2 to 8")
        if qat_start is not None and qat_start < 0:
            raise UserError(f"method.quantize.qat_start={qat_start} must be at least 0, or null")
        if scheme == "q7" and (qat_start is not None or bits != 8):
            raise UserError("method.quantize.scheme=q7 has 8 bits, after training only; leave out qat_start and bits")
        self.scheme, self.qat_start, self.samples, self.bits, self.seed = scheme, qat_start, samples, bits, seed
        self.rounding = Rounding(bits)

    def plan(self, model: nn.Module, data: Any) -> dict[str, Any]:
        """{"layers": names of those that round, "output": the one that gives the output, or None}.

        Raises UserError for a model that cannot be quantised.
        """
        if not hasattr(model, "input_shape"):
            raise UserError(
                f"method.quantize needs a network that says its input_shape, as model=keyword and timm do; "
                f"{type(model).__name__} has none (a Llama gets 8 and 4 bits from export=[gguf])"
            )
        example_inputs = (torch.zeros(1, *model.input_shape),)
        if self.scheme == "q7":
            program = capture(model, example_inputs)
            check_q7(model, example_inputs)
        else:
            program = check_post_training(model, example_inputs)
        modules = dict(model.named_modules())
        products = [node for node in program.graph.nodes if node.target in PRODUCTS and not in_front_end(node)]
        names = [name for node in products if isinstance(modules.get(name := owner(program, node.args[1])), LAYERS)]
        last = program.graph.find_nodes(op="output")[0].args[0][0]
        output = owner(program, last.args[1]) if last in products else None
        return {"layers": list(dict.fromkeys(names)), "output": output}

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        if self.qat_start is not None:
            round_layers(model, plan["layers"], plan["output"], self.rounding)
            self.after_step(model, 0)
        return model

    def after_step(self, model: nn.Module, step: int) -> None:
        self.rounding.on = self.qat_start is not None and step >= self.qat_start

    def finish(self, model: nn.Module, context: Any) -> QuantizedModel:
        """The quantised model, with the ranges that training saw, or else calibration. context: task and data."""
        ranges = learnt_ranges(model)
        plain_layers(model)
        model = model.cpu()
        inputs = context.task.example_inputs()
        if self.scheme == "q7":
            return power_of_two(model, inputs, context.data, self.samples, self.seed)
        return post_training(model, inputs, context.data, self.samples, self.seed, self.bits, ranges)
