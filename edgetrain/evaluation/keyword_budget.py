"""What a keyword network asks of a microcontroller as its paper counts it, and into which classes of them it fits.

Zhang et al. 2017, Hello Edge (arXiv 1711.07128); `models.keyword_budget` has the rules.
"""

from typing import Any

from torch import nn

from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.models.keyword_budget import MICROCONTROLLERS, budget
from edgetrain.models.keyword_network import KeywordNetwork
from edgetrain.models.quantized import float_network


class KeywordBudget:
    """The measure `keyword_budget`."""

    def check(self, model: nn.Module) -> None:
        """Raises UserError for a model that is not a keyword network."""
        if not isinstance(float_network(model), KeywordNetwork):
            raise UserError(
                f"measure.keyword_budget counts keyword networks, not {type(model).__name__}; hardware=[cortex_m7] "
                "costs any model"
            )

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """The table; memory_kb (1,000 bytes), mops (million an inference) and macs, each after `keyword_budget/`."""
        self.check(trained.model)
        found = budget(float_network(trained.model))
        rows = [
            {
                "class": each.name,
                "memory_kb": each.memory / 1000,
                "mops": each.operations / 1e6,
                "fits": "yes" if found.fits(each) else "no",
            }
            for each in MICROCONTROLLERS
        ]
        kilobytes, millions = found.memory / 1000, found.operations / 1e6
        caption = (
            f"The network asks for {kilobytes:.1f} KB and {millions:.2f} million operations an inference, with 8-bit "
            "weights and activations. The classes are known from memory (unverified)."
        )
        folder.add_table("keyword_budget", rows, "Which microcontrollers it fits", caption)
        return {
            "keyword_budget/memory_kb": kilobytes,
            "keyword_budget/mops": millions,
            "keyword_budget/macs": found.macs,
        }
