"""Images of any height and width within bounds, in one exported graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import Dim

from edgetrain.errors import UserError


@dataclass(frozen=True)
class FreeSize:
    """Height and width of an image, each free from `least` to `most` pixels in multiples of `step`."""

    least: int
    most: int
    step: int

    def __str__(self) -> str:
        multiples = f", multiples of {self.step}" if self.step > 1 else ""
        return f"{self.least} to {self.most} pixels{multiples}"

    def allows(self, shape: Sequence[int]) -> bool:
        """Whether an image [..., height, width] may have this shape."""
        return all(self.least <= side <= self.most and side % self.step == 0 for side in shape[-2:])

    def shapes(self, inputs: tuple[Tensor, ...], target: str) -> tuple[dict[int, Any], ...]:
        """As torch.export takes them. Raises UserError when the example is no image, or not within the bounds."""
        if len(inputs) != 1 or inputs[0].dim() != 4:
            shapes = [list(value.shape) for value in inputs]
            raise UserError(
                f"export.{target}.dynamic=true is for a model of images [batch, channels, height, width], and this one "
                f"takes {shapes}; set it to false"
            )
        if not self.allows(inputs[0].shape):
            raise UserError(
                f"export.{target}: model.input_shape={list(inputs[0].shape[1:])} is not within export.{target}.sides="
                f"[{self.least}, {self.most}] and export.{target}.step={self.step}, height and width of {self}; change "
                "one of them"
            )
        return ({2: self.side("height"), 3: self.side("width")},)

    def side(self, name: str) -> Any:
        counted = Dim(name, min=self.least // self.step, max=self.most // self.step)
        return self.step * counted if self.step > 1 else counted


def free_size(target: str, sides: Sequence[int], step: int) -> FreeSize:
    """From the settings of an exporter. Raises UserError for those that no image could have."""
    if step < 1:
        raise UserError(f"export.{target}.step={step} must be at least 1 pixel")
    if len(sides) != 2 or not 2 <= sides[0] < sides[1]:
        raise UserError(
            f"export.{target}.sides={list(sides)} must be the least and the most pixels of a side, as [64, 512]"
        )
    least, most = -(-sides[0] // step) * step, sides[1] // step * step
    if least >= most:
        raise UserError(
            f"export.{target}.sides={list(sides)} holds no two multiples of export.{target}.step={step}; widen it"
        )
    return FreeSize(least, most, step)


def check_sizes(target: str, free: FreeSize | None, example: tuple[int, ...], called: set[tuple[int, ...]]) -> None:
    """Raises UserError when the held-out data would call an artefact with images of a size that it does not take.

    example: shape of the images of a fixed size, without the batch; called: shapes that it will be called with.
    """
    others = sorted(shape for shape in called if not (shape == example if free is None else free.allows(shape)))
    if not others:
        return
    size = " x ".join(map(str, others[0][-2:]))
    if free is None:
        raise UserError(
            f"export.{target}: the model is exported for images of {example[-2]} x {example[-1]} (model.input_shape), "
            f"but the test split gives it {size}; make them the same, or set export.{target}.dynamic=true"
        )
    raise UserError(
        f"export.{target}: height and width are free from {free}, but the test split gives the model {size}; change "
        f"export.{target}.sides, export.{target}.step or the size of the data"
    )
