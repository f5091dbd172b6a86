"""What was costed, printed: the layers that take most, then the devices."""

from edgetrain.folder import Row, RunFolder
from edgetrain.hardware.costing import ENERGY, alike, costliest
from edgetrain.report.terminal import print_table
from edgetrain.report.values import parsed

MOST_WITH_ENERGY = 3  # devices whose columns of millijoules fit beside those of milliseconds
MOST_DEVICES = 6  # for more there is no room on a line, and the layers are in the report alone


def print_costs(folder: RunFolder) -> None:
    """The tables `cost` and `cost_layers` of a run; of many layers those with the largest share of a device's time."""
    devices, layers = ([_values(row) for row in folder.read_table(name)] for name in ("cost", "cost_layers"))
    rows = alike(layers)
    shown = costliest(rows)
    title = (
        "layers"
        if shown == rows
        else f"the {len(shown)} of {len(rows)} rows (layers that are alike are one) that take most on any device"
    )
    columns = [column for column in rows[0] if len(devices) <= MOST_WITH_ENERGY or not column.endswith(ENERGY)]
    if len(devices) <= MOST_DEVICES:
        print_table(columns, shown, title)
        print()
    print_table(list(devices[0]), devices, "modelled, not measured")


def _values(row: dict[str, str]) -> Row:
    """As written; names stay text."""
    return {key: text if key == "layer" else parsed(text) if text else None for key, text in row.items()}
