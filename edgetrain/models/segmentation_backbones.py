"""Backbones by name, each a module from images [batch, 3, height, width] to a list of maps, with `channels` of each.

hrvit_b1, hrvit_b2, hrvit_b3, hrvit_nano; mit_b0 to mit_b5 and mit_nano, the encoders of SegFormer (Xie et al. 2021,
arXiv 2105.15203, table 6), from transformers; timm/NAME, any of timm's with features_only.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from edgetrain.errors import UserError, listing, nearest
from edgetrain.models import hrvit

HRVIT: Mapping[str, Callable[..., hrvit.HRViT]] = {
    name: getattr(hrvit, name) for name in ("hrvit_b1", "hrvit_b2", "hrvit_b3", "hrvit_nano")
}
MIT: Mapping[str, tuple[list[int], list[int], list[int], int]] = {  # channels, blocks, heads, MLP ratio of four stages
    "mit_b0": ([32, 64, 160, 256], [2, 2, 2, 2], [1, 2, 5, 8], 4),
    "mit_b1": ([64, 128, 320, 512], [2, 2, 2, 2], [1, 2, 5, 8], 4),
    "mit_b2": ([64, 128, 320, 512], [3, 4, 6, 3], [1, 2, 5, 8], 4),
    "mit_b3": ([64, 128, 320, 512], [3, 4, 18, 3], [1, 2, 5, 8], 4),
    "mit_b4": ([64, 128, 320, 512], [3, 8, 27, 3], [1, 2, 5, 8], 4),
    "mit_b5": ([64, 128, 320, 512], [3, 6, 40, 3], [1, 2, 5, 8], 4),
    "mit_nano": (
        [16, 32, 48, 64],
        [2, 2, 2, 2],
        [1, 2, 3, 4],
        2,
    ),  # not of the paper: hrvit_nano's parameters within 2%
}
TIMM = "timm/"
MOST_MAPS = 4


def backbone_named(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The backbone, untrained unless options say otherwise. Raises UserError for an unknown name or option."""
    if name in HRVIT:
        known = {**inspect.signature(hrvit.HRViT).parameters, **inspect.signature(HRVIT[name]).parameters}
        check_options(name, options, [key for key in known if key not in ("num_classes", "settings", "input_shape")])
        return HRVIT[name](**{**options, "num_classes": None})
    if name in MIT:
        return MixTransformer(name, options)
    if name.startswith(TIMM):
        return TimmFeatures(name.removeprefix(TIMM), options)
    known = [*HRVIT, *MIT]
    raise UserError(f"model.backbone={name}: no such backbone{nearest(name, known)}; {listing(known, 20)} or timm/NAME")


def check_options(name: str, options: Mapping[str, Any], known: list[str]) -> None:
    unknown = [key for key in options if key not in known]
    if unknown:
        raise UserError(
            f"model.options.{unknown[0]}: {name} has no such option{nearest(unknown[0], known)}; it has "
            f"{listing(known, 20)}"
        )


class MixTransformer(nn.Module):
    """SegFormer's encoder: four maps at strides 4, 8, 16 and 32. options: of transformers' SegformerConfig."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerModel

        channels, blocks, heads, ratio = MIT[name]
        settings = {"hidden_sizes": channels, "depths": blocks, "num_attention_heads": heads}
        settings |= {"mlp_ratios": [ratio] * len(channels), **options}
        check_options(name, options, list(SegformerConfig().to_dict()))
        self.channels = tuple(settings["hidden_sizes"])
        self.encoder = SegformerModel(SegformerConfig(**settings))

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.encoder(images, output_hidden_states=True).hidden_states)


class TimmFeatures(nn.Module):
    """The last four maps of a timm model, or all where it has fewer. options: of timm.create_model, as pretrained."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        import timm

        if name not in timm.list_models():
            raise UserError(f"model.backbone={TIMM}{name}: timm has no such model{nearest(name, timm.list_models())}")
        try:
            self.features = timm.create_model(name, features_only=True, **options)
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            raise UserError(f"model.backbone={TIMM}{name} cannot be built: {str(error).splitlines()[0]}") from error
        self.channels = tuple(self.features.feature_info.channels()[-MOST_MAPS:])

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.features(images))[-MOST_MAPS:]
