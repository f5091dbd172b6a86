"""Forward and backward passes of HRViT-b1 with SegFormer's head, against the official code and SegFormer-B1."""

from typing import Any

from edgetrain.bench.segmentation_rates import rates
from edgetrain.bench.segmenters import Setting
from edgetrain.folder import RunFolder


def train_segmentation(
    folder: RunFolder,
    *,
    official: str | None = None,
    size: int = 256,
    batch: int = 4,
    precision: str = "32-true",
    compiled: bool = False,
    repeats: int = 7,
    minutes: float = 10.0,
) -> dict[str, Any]:
    """Images a second of HRViT-b1 with SegFormer's head in training, against the official code and SegFormer-B1.

    official: folder of a checkout of facebookresearch/HRViT, whose code runs; without one it is not compared. size:
    side of the images; precision: 32-true or bf16-mixed; minutes: no repeat begins that would end after so many.
    """
    return rates(folder, "training", Setting(size, batch, precision, compiled, official), repeats, minutes)
