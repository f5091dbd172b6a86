"""How well a run uses its machine: floating-point operations of the model, share of the peak, largest memory.

Model FLOPs are those that the model's equations ask for, 2 a multiply-add, as in PaLM (Chowdhery et al. 2022, arXiv
2204.02311, appendix B): three times a forward pass, since the backward pass forms two gradients of every product. For a
causal language model that is 6 M + 12 L d n a token: M the weights of its matrices, the head's among them, once for
every visit; L layers of attention of inner width d over n positions, of which the causal mask is not taken off. What a
method adds or leaves out (early exits, dropped layers) and what is computed twice to save memory are not counted.
"""

import resource
import sys
from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgetrain.environment import resident

Shape = tuple[int, ...]

# Dense bfloat16 FLOP/s by the first name that torch's device name contains; NVIDIA's data sheets, whose figures with
# sparsity are twice these.
PEAKS = {
    "A100": 312e12,  # A100 80GB, June 2021
    "H100 PCIe": 756e12,  # H100, 2023: 1,513e12 with sparsity
    "H100 80GB HBM3": 989e12,  # the SXM board of the same sheet: 1,979e12
    "H200 NVL": 835e12,  # H200, 2024: 1,671e12
    "H200": 989e12,  # the SXM board of the same sheet: 1,979e12
}


def forward_flops(model: nn.Module, shapes: Iterable[Shape], dtype: torch.dtype = torch.int64) -> int:
    """Of model(inputs of these shapes), as torch's own counter has it: matrix products and convolutions.

    Nothing is computed. Attention is taken apart into its two products, which the counter knows on every device.
    """
    tensors = chain(model.named_parameters(), model.named_buffers())
    state = {name: tensor.detach().to("meta") for name, tensor in tensors}
    inputs = tuple(torch.zeros(shape, dtype=dtype, device="meta") for shape in shapes)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        functional_call(model, state, inputs)
    return counter.get_total_flops()


def training_flops(model: nn.Module, shapes: Iterable[Shape], dtype: torch.dtype = torch.int64) -> int:
    """Of one forward and backward pass."""
    return 3 * forward_flops(model, shapes, dtype)


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU; None for a CPU and a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def peak_memory(device: torch.device) -> float:
    """Largest so far, in GiB: of this process on a CPU, of torch's tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    largest = resident("VmHWM")
    if largest is None:  # not Linux: getrusage counts bytes on macOS, KiB elsewhere
        unit = 1 if sys.platform == "darwin" else 1024
        largest = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 2**30
