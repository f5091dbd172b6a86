"""LoRA through peft: low-rank adapters on linear layers, everything else frozen (Hu et al., arXiv 2106.09685)."""

from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn

from edgetrain.errors import UserError


class LoRA:
    """rank: of each adapter; alpha: scale, applied as alpha/rank; targets: endings of the linear layers' names.

    `finish` merges the adapters, so that the trained model has its own state-dict keys again; the function stays the
    same up to rounding.
    """

    def __init__(self, rank: int, alpha: float, targets: list[str], dropout: float = 0.0) -> None:
        self.settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout)

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        try:
            self.tuner = LoraModel(model, self.settings, "default")
        except ValueError as error:
            raise UserError(f"method.lora.targets: {str(error).splitlines()[0]}") from error
        return model

    def finish(self, model: nn.Module, context: Any) -> nn.Module:
        return self.tuner.merge_and_unload()
