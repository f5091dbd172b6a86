"""Any image model of timm, by its name there."""

from typing import Any

from torch import nn

from edgetrain.errors import UserError, nearest


def timm_model(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
    """`timm.create_model`. pretrained: with weights from the hub; settings: of that architecture, as num_classes.

    Raises UserError for a name that timm does not have, settings that it does not take, or weights out of reach.
    """
    import timm

    known = timm.list_models()
    architecture = name.partition(".")[0]
    if architecture not in known and not name.startswith(("hf-hub:", "local-dir:")):
        raise UserError(f"model.name={name}: timm has no such model{nearest(architecture, known)}")
    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise UserError(f"model.name={name} cannot be built: {str(error).splitlines()[0]}") from error
