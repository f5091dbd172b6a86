"""The peer of the benches: transformers' own model of a folder of weights."""

from pathlib import Path
from typing import Any


def load_peer(weights: Path) -> Any:
    """transformers' model, with SDPA as its documentation advises, in eval mode and without a progress bar."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(weights, local_files_only=True, attn_implementation="sdpa")
