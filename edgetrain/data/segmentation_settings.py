"""Settings of SegmentationData that no data is needed to refuse."""

from typing import Any

from edgetrain.errors import UserError


def check_settings(data: Any) -> None:
    """Raises UserError for a setting of a SegmentationData that is out of range, with the key as typed."""
    for key in ("size", "scale"):
        given = getattr(data, key)
        if given is not None and (len(given) != 2 or min(given) < 1):
            raise UserError(f"data.{key}={given} is not a height and a width, in pixels")
    if len(data.ratio_range) != 2 or not 0 < data.ratio_range[0] <= data.ratio_range[1]:
        raise UserError(f"data.ratio_range={data.ratio_range} is not the least and the largest ratio, both above 0")
    if not 0 < data.category_max_ratio <= 1:
        raise UserError(f"data.category_max_ratio={data.category_max_ratio} is no share above 0, up to 1 for any cut")
    if not 0 <= data.flip <= 1:
        raise UserError(f"data.flip={data.flip} is no probability; set it to 0 to 1")
    for key in ("labels", "palette"):
        given = getattr(data, key)
        if given is not None and len(given) != data.num_classes:
            raise UserError(
                f"data.{key} has {len(given)} entries for data.num_classes={data.num_classes}; give one for each class"
            )
    if data.labels is not None and len(set(data.labels)) < len(data.labels):
        twice = next(label for label in data.labels if data.labels.count(label) > 1)
        raise UserError(f"data.labels names {twice} twice; give every class a name of its own")
    for colour in data.palette or []:
        if len(colour) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in colour):
            raise UserError(f"data.palette holds {colour}, which is not [red, green, blue] of 0 to 255")
