"""What was costed, printed: devices, then the layers that take most."""

from edgetrain.folder import Row, RunFolder
from edgetrain.hardware.costing import MOST_LAYERS
from edgetrain.report.terminal import print_table
from edgetrain.report.values import parsed

UNIT = " ms"
MOST_WITH_ENERGY = 3  # devices whose columns of millijoules fit beside those of milliseconds
MOST_DEVICES = 6  # for more there is no room on a line, and the layers are in the report alone


def print_costs(folder: RunFolder) -> None:
    """The tables `cost` and `cost_layers` of a run; of many layers those with the largest share of a device's time."""
    devices, layers = ([_values(row) for row in folder.read_table(name)] for name in ("cost", "cost_layers"))
    shown = layers
    if len(layers) > MOST_LAYERS:
        timed = [column for column in layers[0] if column.endswith(UNIT)]
        totals = {column: sum(row[column] or 0 for row in layers) or 1 for column in timed}
        share = {id(row): max(((row[column] or 0) / totals[column] for column in timed), default=0.0) for row in layers}
        largest = sorted(layers, key=lambda row: -share[id(row)])[:MOST_LAYERS]
        shown = [row for row in layers if any(row is other for other in largest)]
    columns = [column for column in layers[0] if len(devices) <= MOST_WITH_ENERGY or not column.endswith(" mJ")]
    title = "layers" if shown is layers else f"the {len(shown)} of {len(layers)} layers that take most on any device"
    if len(devices) <= MOST_DEVICES:
        print_table(columns, shown, title)
        print()
    print_table(list(devices[0]), devices, "modelled, not measured")


def _values(row: dict[str, str]) -> Row:
    return {key: parsed(text) if text else None for key, text in row.items()}
