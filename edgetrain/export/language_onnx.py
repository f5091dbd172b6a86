"""A Llama as one ONNX graph with past and present keys and values, of any batch size and number of tokens.

Inputs and outputs are named as Hugging Face Optimum and ONNX Runtime GenAI name them: `input_ids`,
`past_key_values.<slot>.key`, `.value`, `logits`, `present.<slot>.key`, `.value`. The past of a text's first tokens has
length 0. A slot is a layer; with model.share_kv it is a block.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.export.language import STEM, Session, as_llama
from edgetrain.export.onnx import LARGEST
from edgetrain.export.single_graph import damaged
from edgetrain.folder import write_atomic
from edgetrain.hardware.exported_graph import silence
from edgetrain.models.llama import Llama

CONTEXT = "context"  # key of the file's metadata
PAST, TOKENS = 3, 4  # of the example that is traced; two equal sizes would be taken for one


class PastLlama(nn.Module):
    """forward(int64 tokens [batch, n], past) -> (logits [batch, n, vocab], present), by the model's own blocks.

    past, present: keys, values of slot 0, keys, values of slot 1, ..., each [batch, kv_heads, positions, head_dim].
    """

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self.llama = llama

    def forward(self, tokens: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        backbone, start, n = self.llama.model, past[0].shape[2], tokens.shape[1]
        rotary = (backbone.cosines[start : start + n], backbone.sines[start : start + n])
        mask = torch.arange(start + n) <= (start + torch.arange(n))[:, None]
        cache = PastCache(past)
        x = self.llama.embed(tokens)
        for visit in backbone.visits:
            x = backbone.layers[visit.block](x, rotary, mask, cache, visit)
        return self.llama.head(x), cache.present


class PastCache:
    """What was given, and behind it what this pass computes; as `models.llama.KVCache`, but nothing is written."""

    def __init__(self, past: list[Tensor]) -> None:
        self.present = list(past)

    def write(self, slot: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.present[2 * slot] = torch.cat((self.present[2 * slot], keys), dim=2)
        self.present[2 * slot + 1] = torch.cat((self.present[2 * slot + 1], values), dim=2)
        return self.read(slot, start)

    def read(self, slot: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.present[2 * slot], self.present[2 * slot + 1]


def export_llama(model: nn.Module, out: Path) -> list[Artefact]:
    """Write llama_fp32.onnx; weights of more than 2 GiB go into llama_fp32.onnx.data.

    Raises UserError for a model that is not a Llama.
    """
    llama = as_llama(model, "onnx")
    program = translated(llama)
    tidy(program.model)
    program.model.metadata_props[CONTEXT] = str(llama.context)
    path = out / f"{STEM}_fp32.onnx"
    if sum(weight.numel() * weight.element_size() for weight in llama.parameters()) < LARGEST:
        write_atomic(path, program.model_proto.SerializeToString())
    else:
        program.save(path, external_data=True)
    files = tuple(sorted(file.name for file in out.glob(f"{path.name}*")))
    facts = {
        "opset": program.model.opset_imports[""],
        "ir_version": program.model.ir_version,
        "runtime": {"onnxruntime": metadata.version("onnxruntime")},
    }
    return [load_llama(out, files).artefact("fp32", files, llama, facts)]


def translated(llama: Llama) -> Any:
    """What torch.onnx makes of `PastLlama`. Raises UserError for a context that the example does not fit into."""
    if llama.context < PAST + TOKENS:
        raise UserError(
            f"export.onnx: a context of {llama.context} tokens is below {PAST + TOKENS}; train with a longer"
        )
    cache = llama.new_cache(2, PAST)
    past = [held for pair in zip(cache.keys, cache.values, strict=True) for held in pair]
    slots = [f"{slot}.{kind}" for slot in range(len(cache.keys)) for kind in ("key", "value")]
    batch, n, start = (torch.export.Dim(name) for name in ("batch", "tokens", "past"))
    with torch.no_grad(), silence():
        return torch.onnx.export(
            PastLlama(llama),
            (torch.zeros(2, TOKENS, dtype=torch.int64), past),
            dynamo=True,
            verbose=False,
            input_names=["input_ids", *(f"past_key_values.{slot}" for slot in slots)],
            output_names=["logits", *(f"present.{slot}" for slot in slots)],
            dynamic_shapes=({0: batch, 1: n}, [{0: batch, 2: start} for _ in past]),
        )


def tidy(model: Any) -> None:
    """Weights of a shared block once, which torch.onnx turns around for each visit; no notes of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass

    largest = max(value.const_value.size for value in model.graph.initializers.values())
    DeduplicateInitializersPass(size_limit=largest)(model)
    ClearMetadataAndDocStringPass()(model)


def load_llama(folder: Path, files: tuple[str, ...]) -> Session:
    """What `export_llama` wrote, in ONNX Runtime, on one thread. Raises UserError for a damaged file."""
    import onnxruntime

    path = folder / files[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        context = int(session.get_modelmeta().custom_metadata_map[CONTEXT])
    except Exception as error:  # its exceptions share no base class
        raise damaged(path, error) from error
    tokens, *places = session.get_inputs()
    empty = {place.name: np.zeros((1, place.shape[1], 0, place.shape[3]), np.float32) for place in places}
    past = dict(empty)

    def step(ids: Tensor, start: int) -> Tensor:
        if start == 0:
            past.update(empty)
        logits, *present = session.run(None, {tokens.name: ids.numpy(), **past})
        past.update(zip(past, present, strict=True))
        return torch.from_numpy(logits)

    return Session(step, context, chunk=context)
