"""GGUF files of our Llamas for llama.cpp: weights, settings and vocabulary in one file.

llama.cpp's architecture `llama` rotates the pairs (2i, 2i + 1) of a head, our models and Hugging Face's the pairs
(i, i + head_dim/2), so the rows of the query and key products change places (`interleaved`). It has no layers that
share a block: a block that is visited twice is written twice.

Here a file is judged by reading it back: its weights, as stored, in our own Llama. llama.cpp itself is not run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact, Predict
from edgetrain.export.gguf_tokenizer import add_tokenizer
from edgetrain.export.language import STEM, Session, as_llama, check_llama
from edgetrain.export.single_graph import damaged, require
from edgetrain.models.huggingface import unrolled_weights
from edgetrain.models.llama import Llama

TYPES = ("F16", "Q8_0", "Q4_0")
TOLERANCE = 1e-4  # of a logit, from the model whose weights are rounded as the file's are
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class GGUF:
    """llama_<type>.gguf of each type: F16, Q8_0 (8 bits, a scale for each 32 weights of a row), Q4_0 (4 bits, alike).

    formats: types to write; None writes all. Norms are float32; the embedding and the head of a Q4_0 file are Q8_0;
    rows that are no multiple of 32 stay F16. Raises UserError for another type.
    """

    opening_runs_code = False

    def __init__(self, formats: list[str] | None = None) -> None:
        self.formats = list(TYPES if formats is None else formats)
        if not self.formats or set(self.formats) - set(TYPES):
            raise UserError(f"export.gguf.formats={self.formats} must name some of F16, Q8_0 and Q4_0")

    def check(self, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
        """Raises UserError for a model that is no Llama, or shares keys and values between layers."""
        require("gguf", "gguf")
        check_llama(model, "gguf")
        if getattr(model, "share_kv", False) and model.share != "none":
            raise UserError(
                "export.gguf: llama.cpp has no model.share_kv=true; train with share_kv=false to export one"
            )

    def export(
        self, model: nn.Module, example_inputs: tuple[Tensor, ...], calibration: Any, out: Path
    ) -> list[Artefact]:
        """One file a type, each read back. Raises UserError for a model or a tokenizer that llama.cpp does not know."""
        self.check(model, example_inputs)
        llama = unrolled(as_llama(model, "gguf"))
        tokenizer = getattr(calibration, "tokenizer", None)
        return [self.write(llama, tokenizer, kind, out) for kind in self.formats]

    def write(self, llama: Llama, tokenizer: Any, kind: str, out: Path) -> Artefact:
        """llama: without shared blocks."""
        import gguf

        file = f"{STEM}_{kind}.gguf"
        writer = gguf.GGUFWriter(out / file, "llama")
        add_settings(writer, llama, kind)
        add_tokenizer(writer, tokenizer, llama.vocab_size)
        reference = as_llama(llama, "gguf")
        weights, rounded = llama.state_dict(), reference.state_dict()
        for place in places(llama):
            weight = weights[place.key].numpy()
            stored = gguf.GGMLQuantizationType[type_of(place, weight, kind)]
            rounded[place.key].copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(weight, stored), stored)))
            if place.heads:
                weight = interleaved(weight, place.heads)
            writer.add_tensor(place.name, gguf.quantize(weight, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        session = opened(out / file)
        facts = {
            "judged_by": "reading the file back into PyTorch; llama.cpp was not run",
            "layers": llama.layers,
            "runtime": {"gguf": metadata.version("gguf")},
        }
        return Artefact(
            kind, (file,), session.predict, reference, TOLERANCE, facts=facts, generate=session.generate, timed=False
        )

    def load(self, folder: Path, name: str, files: tuple[str, ...]) -> Predict:
        """The weights of the file in our own Llama. Raises UserError for a damaged file and where gguf is missing."""
        require("gguf", "gguf")
        return opened(folder / files[0]).predict


@dataclass(frozen=True)
class Place:
    """A tensor. name: in the file; key: in our state dict; heads: whose rows are interleaved, 0 for none."""

    name: str
    key: str
    heads: int = 0


def places(llama: Llama) -> Iterator[Place]:
    """Every tensor of a Llama without shared blocks. A tied head is not written."""
    attention = llama.model.layers[0].self_attn
    heads = {"attn_q": attention.heads, "attn_k": attention.kv_heads}
    for name, key in ENDS.items():
        if not (name == "output" and llama.tied):
            yield Place(f"{name}.weight", f"{key}.weight")
    for layer in range(llama.layers):
        for name, key in LAYER.items():
            yield Place(f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{key}.weight", heads.get(name, 0))


def type_of(place: Place, weight: np.ndarray, kind: str) -> str:
    """How a tensor is stored in a file of that kind."""
    if weight.ndim == 1:
        return "F32"
    if weight.shape[1] % 32:
        return "F16"
    return "Q8_0" if kind == "Q4_0" and not place.name.startswith("blk.") else kind


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + head_dim/2 of each head become its rows 2i and 2i + 1. weight [heads * head_dim, n]."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def add_settings(writer: Any, llama: Llama, kind: str) -> None:
    """What llama.cpp reads of a `llama`."""
    import gguf

    block = llama.model.layers[0]
    writer.add_type("model")
    writer.add_name(STEM)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(llama.vocab_size)
    writer.add_context_length(llama.context)
    writer.add_embedding_length(llama.model.embed_tokens.embedding_dim)
    writer.add_block_count(llama.layers)
    writer.add_feed_forward_length(block.mlp.up_proj.out_features)
    writer.add_head_count(block.self_attn.heads)
    writer.add_head_count_kv(block.self_attn.kv_heads)
    writer.add_rope_dimension_count(block.self_attn.head_dim)
    writer.add_rope_freq_base(llama.rope_theta)
    writer.add_layer_norm_rms_eps(llama.norm_eps)


def unrolled(llama: Llama) -> Llama:
    """The same function with a block of its own for every visit."""
    if llama.share == "none":
        return llama
    block = llama.model.layers[0]
    plain = Llama(
        llama.vocab_size,
        llama.model.embed_tokens.embedding_dim,
        llama.layers,
        block.self_attn.heads,
        block.self_attn.kv_heads,
        block.mlp.up_proj.out_features,
        llama.context,
        llama.tied,
        llama.rope_theta,
        llama.norm_eps,
    )
    plain.load_state_dict(unrolled_weights(llama.state_dict(), [visit.block for visit in llama.model.visits]))
    return plain.eval().requires_grad_(False)


def opened(path: Path) -> Session:
    """A file that `GGUF` wrote, in our own Llama. Raises UserError when it cannot be read."""
    try:
        llama = read_llama(path)
    except Exception as error:  # of numpy, a key or a shape, as the damage has it
        raise damaged(path, error) from error
    caches = [llama.new_cache(length=1)]

    def step(tokens: Tensor, start: int) -> Tensor:
        if start == 0:
            caches[0] = llama.new_cache()
        with torch.inference_mode():
            return llama.head(llama.run_layers(llama.embed(tokens), 0, llama.layers, caches[0], start))

    return Session(step, llama.context, llama.context)


def read_llama(path: Path) -> Llama:
    """The Llama of a file, its weights dequantised to float32."""
    import gguf

    reader = gguf.GGUFReader(path)

    def setting(key: str) -> Any:
        return reader.get_field(f"llama.{key}").contents()

    stored = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    llama = Llama(
        setting("vocab_size"),
        setting("embedding_length"),
        setting("block_count"),
        setting("attention.head_count"),
        setting("attention.head_count_kv"),
        setting("feed_forward_length"),
        setting("context_length"),
        "output.weight" not in stored,
        setting("rope.freq_base"),
        setting("attention.layer_norm_rms_epsilon"),
    )
    weights = llama.state_dict()
    for place in places(llama):
        weight = np.array(stored[place.name])  # a writable copy
        weights[place.key].copy_(torch.from_numpy(half_split(weight, place.heads) if place.heads else weight))
    return llama.eval().requires_grad_(False)
