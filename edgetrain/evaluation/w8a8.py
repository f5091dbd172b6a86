"""What 8 bits cost: the held-out loss of every exit before and after `quantize_w8a8`.

Liu et al. 2024, MobileLLM (arXiv 2402.14905), Table 15; see `methods.w8a8` for what is quantised.
"""

from itertools import islice
from typing import Any

from edgetrain.decoding.exits import exit_rows
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.methods.w8a8 import quantize_w8a8
from edgetrain.report.figures import line_chart


class W8A8:
    """The measure `w8a8`, teacher-forced on the test split. batches: how many are read, None reads all.

    head: also the output head is quantised.
    """

    def __init__(self, batches: int | None = None, head: bool = False) -> None:
        if batches is not None and batches < 1:
            raise UserError(f"measure.w8a8.batches={batches} must be at least 1, or null for all")
        self.batches, self.head = batches, head

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Table and figure `w8a8`. w8a8/loss_difference: nats a token that the last exit's loss rises by."""
        model = trained.model.eval()
        before, after = (
            exit_rows(each, islice(trained.data.test_dataloader(), self.batches))
            for each in (model, quantize_w8a8(model, self.head))
        )
        rows = [
            {
                "layer": exact["layer"],
                "loss": exact["loss"],
                "loss_w8a8": rounded["loss"],
                "loss_difference": rounded["loss"] - exact["loss"],
                "accuracy": exact["accuracy"],
                "accuracy_w8a8": rounded["accuracy"],
            }
            for exact, rounded in zip(before, after, strict=True)
        ]
        caption = (
            "Held-out text, nats a token. Weights have 8 bits and a scale for each output channel, activations 8 bits "
            f"and a scale for each token, in all linear layers {'and' if self.head else 'but'} the head."
        )
        folder.add_table("w8a8", rows, "Loss in 8 bits at every exit", caption)
        figure = line_chart(
            {"W8A8 minus float": [(row["layer"], row["loss_difference"]) for row in rows]},
            "exit after layer",
            "rise of the loss (nats per token)",
            markers=True,
        )
        folder.add_figure("w8a8", figure, "What 8 bits cost at every exit", "Above 0: the loss is higher in 8 bits.")
        last = rows[-1]
        return {
            "w8a8/loss": last["loss_w8a8"],
            "w8a8/loss_difference": last["loss_difference"],
            "w8a8/accuracy_difference": last["accuracy_w8a8"] - last["accuracy"],
        }
