"""Export a Llama as a folder that `transformers.AutoModelForCausalLM` and everything built on it loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import LlamaForCausalLM

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.models.huggingface import SHARED_LLAMA, save_llama
from edgetrain.models.llama import Llama
from edgetrain.models.shared_llama import SharedLlamaForCausalLM


class HuggingFace:
    """config.json, model.safetensors, generation_config.json, and the tokenizer where the data has one.

    tolerance: largest difference of a logit between the model and the artefact, in fp32; unrolled: write shared blocks
    as often as they are visited, for tools that know only plain Llamas.
    """

    formats: ClassVar[list[str]] = ["fp32"]
    opening_runs_code = False

    def __init__(self, tolerance: float = 1e-3, unrolled: bool = False) -> None:
        self.tolerance, self.unrolled = tolerance, unrolled

    def check(self, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
        """Raises UserError for a model that is not a Llama."""
        if not isinstance(model, Llama):
            raise UserError(
                f"export.huggingface writes Llama models; this one is a {type(model).__name__}; other targets are "
                "export=[executorch,onnx,pt2]"
            )

    def export(
        self, model: nn.Module, example_inputs: tuple[Tensor, ...], calibration: Any, out: Path
    ) -> list[Artefact]:
        """Write the folder and load it back with transformers. Raises UserError for a model that is not a Llama."""
        self.check(model, example_inputs)
        save_llama(model, out, getattr(calibration, "tokenizer", None), self.unrolled)
        files = tuple(sorted(path.name for path in out.iterdir()))
        return [Artefact("fp32", files, self.load(out, "fp32", files), model, self.tolerance)]

    def load(self, folder: Path, name: str, files: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
        """The folder in transformers, by classes that are named here: no code that is in it ever runs."""
        kind = SharedLlamaForCausalLM if SHARED_LLAMA.name in files else LlamaForCausalLM
        loaded = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        return lambda tokens: loaded(tokens).logits
