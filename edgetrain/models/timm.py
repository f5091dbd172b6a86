"""Any image model of timm, by its name there."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from edgetrain.errors import UserError, nearest


def timm_model(
    name: str, pretrained: bool = False, input_shape: Sequence[int] | None = None, **settings: Any
) -> nn.Module:
    """`timm.create_model`. pretrained: with weights from the hub; settings: of that architecture, as num_classes.

    input_shape: channels, height and width of its images, for traces and exports; None takes what timm made it for.

    Raises UserError for a name that timm does not have, settings that it does not take, or weights out of reach.
    """
    import timm

    known = timm.list_models()
    architecture = name.partition(".")[0]
    if architecture not in known and not name.startswith(("hf-hub:", "local-dir:")):
        raise UserError(f"model.name={name}: timm has no such model{nearest(architecture, known)}")
    try:
        model = timm.create_model(name, pretrained=pretrained, **settings)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise UserError(f"model.name={name} cannot be built: {str(error).splitlines()[0]}") from error
    if input_shape is not None and len(input_shape) != 3:
        raise UserError(
            f"model.input_shape={list(input_shape)} is not channels, height and width; a timm model has these"
        )
    shape = input_shape or default_shape(model, settings)
    if shape is not None:
        model.input_shape = tuple(shape)
    return model


def default_shape(model: nn.Module, settings: dict[str, Any]) -> tuple[int, ...] | None:
    """Channels, height and width that timm made it for; None where it does not say. Settings that change them do."""
    made_for = (getattr(model, "default_cfg", None) or {}).get("input_size")
    if made_for is None:
        return None
    size = settings.get("img_size") or made_for[1:]
    height, width = (size, size) if isinstance(size, int) else size
    return settings.get("in_chans", made_for[0]), height, width
