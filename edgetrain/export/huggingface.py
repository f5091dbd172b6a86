"""Export a Llama as a folder that `transformers.AutoModelForCausalLM` and everything built on it loads."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.models.huggingface import save_llama
from edgetrain.models.llama import Llama


class HuggingFace:
    """config.json, model.safetensors, generation_config.json, and the tokenizer where the data has one.

    tolerance: largest difference of a logit between the model and the artefact, in fp32; unrolled: write shared blocks
    as often as they are visited, for tools that know only plain Llamas.
    """

    def __init__(self, tolerance: float = 1e-3, unrolled: bool = False) -> None:
        self.tolerance, self.unrolled = tolerance, unrolled

    def export(self, model: nn.Module, example_inputs: tuple[Tensor, ...], calibration: Any, out: Path) -> Artefact:
        """Write the folder and load it back with transformers. Raises UserError for a model that is not a Llama."""
        from transformers import AutoModelForCausalLM

        if not isinstance(model, Llama):
            raise UserError(f"export.huggingface writes Llama models; this one is a {type(model).__name__}")
        save_llama(model, out, getattr(calibration, "tokenizer", None), self.unrolled)
        ours = (out / "shared_llama.py").is_file()  # the only code there, written a moment ago
        loaded = AutoModelForCausalLM.from_pretrained(out, local_files_only=True, trust_remote_code=ours).eval()
        return Artefact(out, lambda tokens: loaded(tokens).logits, self.tolerance)
