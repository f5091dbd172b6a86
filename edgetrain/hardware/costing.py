"""Cost a workload on several devices, into a run's folder: tables, figures, metrics."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgetrain.folder import Row, RunFolder
from edgetrain.hardware.cost import Cost, Device, LayerCost
from edgetrain.hardware.layer_tables import write_csv, write_json
from edgetrain.hardware.workload import KINDS, Workload
from edgetrain.report.figures import bar_chart, heatmap
from edgetrain.report.roofline import roofline_chart

TIME, ENERGY = " ms", " mJ"  # ends of column names
MOST_LAYERS = 24  # in the figure; the table has all
MODELLED = "Modelled, not measured; batch norms are folded into the layers before them."


def cost_devices(
    workload: Workload, devices: Mapping[str, Device], folder: RunFolder
) -> tuple[dict[str, Cost], dict[str, float]]:
    """Costs by device, and metrics `cost/<device>/...`. Writes workload.json and workload.csv, tables and figures.

    Raises UserError when a device cannot read the workload; then nothing is written.
    """
    costs = {name: device.cost(workload) for name, device in devices.items()}
    write_json(workload, folder.path / "workload.json")
    write_csv(workload, folder.path / "workload.csv")
    _tables(workload, costs, folder)
    _figures(workload, costs, folder)
    metrics: dict[str, float] = {"cost/macs": workload.macs, "cost/weights": workload.weights}
    for name, cost in costs.items():
        if cost.watts:
            metrics[f"cost/{name}/milliwatts"] = 1e3 * sum(cost.watts.values())
        metrics |= {f"cost/{name}/{key}": value for key, value in summary(cost).items() if value is not None}
    return costs, metrics


def summary(cost: Cost) -> dict[str, float | None]:
    """Totals of one device; None where it has no figure."""
    return {
        "milliseconds": 1e3 * cost.seconds or None,
        "millijoules": None if cost.joules is None else 1e3 * cost.joules,
        "weight_bytes": cost.weight_bytes,
        "activation_bytes": cost.activation_bytes,
        "area_mm2": cost.area_mm2,
        "fits": int(cost.fits) if cost.limits and len(cost.uncovered) < len(cost.rows) else None,
        "uncovered_layers": len(cost.uncovered),
    }


def device_rows(costs: Mapping[str, Cost]) -> list[Row]:
    """A row a device, as the terminal and the report show it."""
    rows = []
    for name, cost in costs.items():
        row: Row = {"device": name} | summary(cost)
        if row["fits"] is not None:
            row["fits"] = (
                "yes" if cost.fits else ", ".join(f"no: {limit.name}" for limit in cost.limits if not limit.fits)
            )
        rows.append(row)
    return [{key: row[key] for key in row if any(other[key] is not None for other in rows)} for row in rows]


def layer_rows(workload: Workload, costs: Mapping[str, Cost]) -> list[Row]:
    """A row a layer: what it is, then milliseconds and millijoules on every device; empty where it is uncovered."""
    rows = []
    for number, layer in enumerate(workload):
        row: Row = {"layer": layer.name, "kind": layer.kind, "macs": layer.macs, "weights": layer.weights}
        if layer.component:
            row = {"component": layer.component} | row
        for name, cost in costs.items():
            one = cost.rows[number]
            if cost.seconds:
                row[f"{name}{TIME}"] = None if one.uncovered else 1e3 * one.seconds
            if cost.joules is not None:
                row[f"{name}{ENERGY}"] = None if one.uncovered or one.joules is None else 1e3 * one.joules
        rows.append(row)
    return rows


def alike(rows: list[Row]) -> list[Row]:
    """The same with layers that differ only in the numbers of their names as one row, their figures added up."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        same = (row.get("component"), row["kind"], row["macs"], row["weights"], re.sub(r"\d+", "*", row["layer"]))
        groups.setdefault(same, []).append(row)
    return [_together(group) for group in groups.values()]


def _together(rows: list[Row]) -> Row:
    """One row for several: blocks.*.conv x3."""
    names = zip(*(re.split(r"(\d+)", row["layer"]) for row in rows), strict=True)
    name = "".join(parts[0] if len(set(parts)) == 1 else "*" for parts in names)
    merged = rows[0] | {"layer": f"{name} x{len(rows)}" if len(rows) > 1 else name}
    for column in merged.keys() - {"layer", "component", "kind"}:
        known = [row[column] for row in rows if row[column] is not None]
        merged[column] = sum(known) if known else None
    return merged


def costliest(rows: list[Row], most: int = MOST_LAYERS) -> list[Row]:
    """The rows with the largest share of the time of any device, in their order."""
    timed = [column for column in rows[0] if column.endswith(TIME)] if rows else []
    totals = {column: sum(row[column] or 0.0 for row in rows) or 1.0 for column in timed}
    shares = [max(((row[column] or 0.0) / totals[column] for column in timed), default=0.0) for row in rows]
    chosen = sorted(range(len(rows)), key=lambda number: -shares[number])[:most]
    return [rows[number] for number in sorted(chosen)]


def _tables(workload: Workload, costs: dict[str, Cost], folder: RunFolder) -> None:
    folder.add_table("cost", device_rows(costs), f"What {workload.name} costs", MODELLED)
    notes = [{"device": name, "note": note} for name, cost in costs.items() for note in cost.notes]
    if notes:
        folder.add_table("cost_notes", notes, "What to know of these figures")
    if len(workload.components) > 1:
        folder.add_table(
            "cost_components",
            _component_rows(workload, costs),
            "By component",
            "One call of each, one after the other.",
        )
    watts = [
        {"device": name, "component": component, "milliwatts": 1e3 * power}
        for name, cost in costs.items()
        for component, power in cost.watts.items()
    ]
    if watts:
        folder.add_table("cost_power", watts, "Power", f"At the components' rates of invocation. {MODELLED}")
    folder.add_table("cost_layers", layer_rows(workload, costs), "By layer", MODELLED)
    for name, cost in costs.items():
        folder.write_table(f"cost_{name}", [_detail(row) for row in cost.rows])
    uncovered = Counter((name, row.kind, row.uncovered) for name, cost in costs.items() for row in cost.uncovered)
    if uncovered:
        rows = [{"device": name, "kind": kind, "layers": n, "why": why} for (name, kind, why), n in uncovered.items()]
        caption = "Layers for which a device has no figure: they count nothing in its totals."
        folder.add_table("cost_uncovered", rows, "Not covered", caption)
    sources = [
        {
            "device": name,
            "constant": constant,
            "source": text,
            "read there": "no" if constant in cost.unverified else "yes",
        }
        for name, cost in costs.items()
        for constant, text in cost.sources.items()
    ]
    folder.add_table("cost_sources", sources, "Where the constants are from", "No: taken from memory or second hand.")


def _component_rows(workload: Workload, costs: Mapping[str, Cost]) -> list[Row]:
    rows = []
    for component in workload.components:
        row: Row = {"component": component, "macs": workload.component(component).macs}
        for name, cost in costs.items():
            own = [one for one in cost.rows if one.component == component]
            if cost.seconds:
                row[f"{name}{TIME}"] = 1e3 * sum(one.seconds for one in own)
            if cost.joules is not None:
                row[f"{name}{ENERGY}"] = 1e3 * sum(one.joules or 0.0 for one in own)
        rows.append(row)
    return rows


def _detail(row: LayerCost) -> Row:
    """Everything that a device said of a layer."""
    head: Row = {"layer": row.name, "component": row.component, "kind": row.kind, "macs": row.macs}
    if row.device:
        head["device"] = row.device
    moved = {f"bytes {level}": count for level, count in row.moved.items()}
    energy = {f"joules {part}": value for part, value in row.energy.items()}
    return head | {"seconds": row.seconds, "joules": row.joules} | moved | energy | {"uncovered": row.uncovered}


def _figures(workload: Workload, costs: dict[str, Cost], folder: RunFolder) -> None:
    timed = {name: cost for name, cost in costs.items() if cost.seconds}
    if not timed:
        return
    folder.add_figure(
        "cost_kinds",
        bar_chart(kind_shares(timed), "share of the device's time (%)", stacked=True),
        "Where the time goes",
        f"Kinds of layers on every device. {MODELLED}",
    )
    rows = alike(layer_rows(workload, timed))
    shown = costliest(rows)
    more = "" if len(shown) == len(rows) else f" The {len(shown)} of {len(rows)} that take most on any device."
    folder.add_figure(
        "cost_layers",
        heatmap(
            [[_share(row[f"{name}{TIME}"], cost) for name, cost in timed.items()] for row in shown],
            list(timed),
            [": ".join(filter(None, (row.get("component"), row["layer"]))) for row in shown],
            "",
            "",
            ".1f",
            value_label="share of the device's time (%)",
        ),
        "Which layers cost what, on which device",
        f"Share of the time in per cent; grey: not covered.{more} Layers that are alike are one row. {MODELLED}",
    )
    _energy_figure(costs, folder)
    _roofline(workload, timed, folder)


def _share(milliseconds: float | None, cost: Cost) -> float | None:
    return None if milliseconds is None else 0.1 * milliseconds / cost.seconds


def kind_shares(costs: Mapping[str, Cost]) -> dict[str, dict[str, float | None]]:
    """Per cent of every device's time by kind of layer, kinds without any left out."""
    by_kind: dict[str, dict[str, float | None]] = {kind: {} for kind in KINDS}
    for name, cost in costs.items():
        for row in cost.rows:
            by_kind[row.kind][name] = (by_kind[row.kind].get(name) or 0.0) + 100 * row.seconds / cost.seconds
    return {kind: shares for kind, shares in by_kind.items() if any(shares.values())}


def _energy_figure(costs: dict[str, Cost], folder: RunFolder) -> None:
    """Where the energy goes, in per cent: devices are of very different sizes."""
    parts: dict[str, dict[str, float | None]] = {}
    for name, cost in costs.items():
        for row in cost.rows:
            for part, joules in row.energy.items():
                shares = parts.setdefault(part, {})
                shares[name] = (shares.get(name) or 0.0) + 100 * joules / (cost.joules or 1.0)
    if any(value for shares in parts.values() for value in shares.values()):
        folder.add_figure(
            "cost_energy",
            bar_chart(parts, "share of the device's energy (%)", stacked=True),
            "Where the energy goes",
            MODELLED,
        )


def _roofline(workload: Workload, costs: dict[str, Cost], folder: RunFolder) -> None:
    panels = {}
    for name, cost in costs.items():
        points = roofline_points(workload, cost)
        roof, slope = (None if rate is None else rate / 1e9 for rate in (cost.macs_per_second, cost.bytes_per_second))
        panels[name] = (points, roof, slope)
    if any(points for points, *_ in panels.values()):
        folder.add_figure(
            "cost_roofline",
            roofline_chart(panels, "MACs a byte of memory traffic", "GMACs a second"),
            "Rooflines",
            "Every layer under its device's limits: the flat roof is the arithmetic's, the slanted one the memory's. "
            f"Where a device does not count traffic, it is weights, inputs and outputs once. {MODELLED}",
        )


def roofline_points(workload: Workload, cost: Cost) -> dict[str, list[tuple[float, float]]]:
    """By kind, of every layer with MACs and a time: MACs a byte of memory traffic, and GMACs a second."""
    points: dict[str, list[tuple[float, float]]] = {}
    for layer, row in zip(workload, cost.rows, strict=True):
        least = layer.weight_bytes + sum(tensor.bytes for tensor in (*layer.inputs, *layer.outputs))
        moved = row.moved.get(cost.memory_level, 0) or least
        if row.seconds and row.macs and moved:
            points.setdefault(row.kind, []).append((row.macs / moved, row.macs / row.seconds / 1e9))
    return points
