"""A backbone that gives maps, a head that gives scores, one class for every pixel: any pair, by two words."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.models.segmentation_backbones import backbone_named
from edgetrain.models.segmentation_heads import FCNHead, SegFormerHead, UPerHead, resized

HEADS = {"segformer": (SegFormerHead, 256), "uper": (UPerHead, 512)}  # with the channels of the published models
AUXILIARY_MAP, AUXILIARY_WEIGHT = -2, 0.4  # the third of four maps; the share of its loss


class Segmenter(nn.Module):
    """Images float32 [batch, 3, height, width], of any size, to logits [batch, num_classes, height, width].

    auxiliary_head: on the last but one map, for training alone; auxiliary_weight: its loss's, beside the head's 1.
    """

    auxiliary_weight = AUXILIARY_WEIGHT

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        num_classes: int,
        input_shape: Sequence[int],
        auxiliary_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.auxiliary_head = backbone, head, auxiliary_head
        self.num_classes, self.input_shape = num_classes, tuple(input_shape)

    def forward(self, images: Tensor) -> Tensor:
        return resized(self.head(self.backbone(images)), images.shape[2:])

    def forward_all(self, images: Tensor) -> list[Tensor]:
        """For training: logits of the head and, where there is one, of the auxiliary head, as large as their maps."""
        maps = self.backbone(images)
        logits = [self.head(maps)]
        if self.auxiliary_head is not None:
            logits.append(self.auxiliary_head(maps[AUXILIARY_MAP]))
        return logits

    def repeated_blocks(self) -> list[nn.Module]:
        """Those of the backbone, where it has some."""
        return self.backbone.repeated_blocks() if hasattr(self.backbone, "repeated_blocks") else []


def segmenter(
    backbone: str,
    num_classes: int,
    head: Literal["segformer", "uper"] = "segformer",
    head_channels: int | None = None,
    head_dropout: float = 0.1,
    auxiliary: bool | None = None,
    input_shape: Sequence[int] = (3, 512, 512),
    options: Mapping[str, Any] | None = None,
) -> Segmenter:
    """A Segmenter, untrained.

    backbone: see segmentation_backbones.py; options: its own. head_channels: of the head; None: 256 for segformer, 512
    for uper. head_dropout: share of channels left out before the classifier. auxiliary: an FCN head besides; None: with
    uper. input_shape: channels, height, width of images, for traces and exports.

    Raises UserError for an unknown backbone or option, and for settings that are no sizes.
    """
    if num_classes < 1:
        raise UserError(f"model.num_classes={num_classes} leaves nothing to tell apart; set it to at least 1")
    if len(input_shape) != 3 or input_shape[0] != 3 or min(input_shape) < 1:
        raise UserError(
            f"model.input_shape={list(input_shape)} is not 3, height and width of an image, as [3, 96, 128]"
        )
    if head_channels is not None and head_channels < 1:
        raise UserError(f"model.head_channels={head_channels} must be at least 1, or null")
    maps = backbone_named(backbone, options or {})
    build, channels = HEADS[head]
    made = build(maps.channels, num_classes, head_channels or channels, head_dropout)
    besides = head == "uper" if auxiliary is None else auxiliary
    fcn = FCNHead(maps.channels[AUXILIARY_MAP], num_classes, dropout=head_dropout) if besides else None
    return Segmenter(maps, made, num_classes, input_shape, fcn)
