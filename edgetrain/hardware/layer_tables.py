"""A workload as a file: CSV, a row a layer for people and spreadsheets, and JSON; MAESTRO's networks to read.

Columns have MAESTRO's letters: N batch, G groups, K output and C input channels (of all groups), Y' X' the size of the
output, R S the kernel. A table of a user's own needs `name`, `K` and `C`. What is left out is 1, or follows: `kind`
from the groups, `macs` from the loops, `weights` from channels and kernel; instead of Y' and X' it may have Y and X,
the size of the input with its padding, and `stride` for both strides. Unknown columns are refused, as what they say
would be lost. Integer operands are not written.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from edgetrain.errors import UserError, listing, nearest
from edgetrain.folder import write_atomic
from edgetrain.hardware.formats import FP32, Format, parse_format
from edgetrain.hardware.maestro_networks import loops_on_input, read_maestro, unique_names
from edgetrain.hardware.workload import KINDS, MAC_KINDS, Activation, Layer, Loops, Workload

SIZES = ("N", "G", "K", "C", "Y'", "X'", "R", "S", "stride Y", "stride X")  # in the order of Loops
COUNTS = ("macs", "operations", "weights", "biases")
COLUMNS = (
    *("name", "component", "kind", *SIZES, *COUNTS),
    *("weight_name", "weight_format", "inputs", "outputs", "density", "rank", "degenerate"),
)
SHORTHANDS = ("Y", "X", "stride")
NEEDED = ("name", "K", "C")
TENSOR = re.compile(
    r"(?P<name>.*)\[(?P<shape>(?:[0-9]{1,18}(?:x[0-9]{1,18})*)?)\] (?P<format>\w+)(?P<flags>(?: (?:state|in|out))*)",
    re.S,
)


def write_csv(workload: Workload, path: Path) -> None:
    """Every layer; the workload's name is the file's when it is read again."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for layer in workload:
        row = _row(layer, workload)
        tensors = {key: "; ".join(row[key]) for key in ("inputs", "outputs")}
        writer.writerow(row | tensors | {"degenerate": "yes" if layer.degenerate else ""})
    write_atomic(path, text.getvalue())


def write_json(workload: Workload, path: Path) -> None:
    """Everything."""
    rows = [_row(layer, workload) for layer in workload]
    content = {"name": workload.name, "inputs": workload.inputs, "outputs": workload.outputs, "layers": rows}
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_layer_table(path: str | Path) -> Workload:
    """A workload from .csv, .json or .m; the networks of a .m file are components. Raises UserError naming the row."""
    path = Path(path)
    readers = {".csv": _read_csv, ".json": _read_json, ".m": _read_networks}
    if path.suffix not in readers:
        raise UserError(f"{path} is not a layer table; its name must end in {listing(readers)}")
    return readers[path.suffix](path)


def _row(layer: Layer, workload: Workload) -> dict[str, Any]:
    """A layer by columns; tensors as text, with what they are to the workload."""

    def text(tensor: Activation) -> str:
        name = tensor.name.replace("%", "%25").replace(";", "%3B")
        flags = {"state": tensor.state, "in": tensor.name in workload.inputs, "out": tensor.name in workload.outputs}
        shown = "".join(f" {flag}" for flag, is_so in flags.items() if is_so)
        return f"{name}[{'x'.join(map(str, tensor.shape))}] {tensor.format}{shown}"

    return {
        "name": layer.name,
        "component": layer.component,
        "kind": layer.kind,
        **dict(zip(SIZES, layer.loops, strict=True)),
        **{count: getattr(layer, count) for count in COUNTS},
        "weight_name": layer.weight_name,
        "weight_format": str(layer.weight_format),
        "inputs": [text(tensor) for tensor in layer.inputs],
        "outputs": [text(tensor) for tensor in layer.outputs],
        "density": layer.density,
        "rank": layer.rank,
        "degenerate": layer.degenerate,
    }


def _read_csv(path: Path) -> Workload:
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        header, *lines = [line for line in reader if line] or [[]]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is not CSV: {error}") from error
    header = [column.strip() for column in header]
    _check_columns(header, str(path))
    layers: list[Layer] = []
    sides: dict[str, dict[str, None]] = {"in": {}, "out": {}}
    for number, cells in enumerate(lines, 1):
        place = f"{path}, row {number}"
        if len(cells) > len(header):
            raise UserError(f"{place}: {len(cells)} cells for {len(header)} columns; quote cells that have commas")
        row: dict[str, Any] = {column: cell for column, cell in zip(header, cells, strict=False) if cell.strip()}
        row |= {key: row[key].split("; ") for key in ("inputs", "outputs") if key in row}
        layers.append(_Row(row, place).layer())
        for text in (*row.get("inputs", ()), *row.get("outputs", ())):
            found = TENSOR.fullmatch(text)
            for flag in found["flags"].split():
                sides.get(flag, {})[_unescaped(found["name"])] = None
    return _workload(path.stem, layers, path, sides["in"], sides["out"])


def _read_json(path: Path) -> Workload:
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); the file was damaged, write it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("layers"), list):
        raise UserError(f"{path} is not a workload: it must be an object with a list of 'layers'")
    layers = []
    for number, row in enumerate(content["layers"], 1):
        place = f"{path}, layer {number}"
        if not isinstance(row, dict):
            raise UserError(f"{place} is not an object")
        _check_columns(list(row), place)
        layers.append(_Row({key: value for key, value in row.items() if value is not None}, place).layer())
    name, sides = content.get("name", path.stem), [content.get(side, []) for side in ("inputs", "outputs")]
    names = [name, *(item for side in sides for item in (side if isinstance(side, list) else [None]))]
    if not all(isinstance(item, str) for item in names):
        raise UserError(f"{path}: 'name' must be text, 'inputs' and 'outputs' lists of names")
    return _workload(name, layers, path, *sides)


def _read_networks(path: Path) -> Workload:
    networks = read_maestro(path)
    if len(networks) == 1:
        return next(iter(networks.values()))
    layers = [
        replace(layer, name=f"{name}.{layer.name}", component=name)
        for name, network in networks.items()
        for layer in network
    ]
    return _workload(path.stem, layers, path)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the layer table {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a layer table: it is not text in UTF-8") from error


def _check_columns(columns: list[str], place: str) -> None:
    known = (*COLUMNS, *SHORTHANDS)
    for column in columns:
        if column not in known:
            raise UserError(
                f"{place}: unknown column '{column}'{nearest(column, known)}; columns are {listing(known, 30)}"
            )
    missing = [column for column in NEEDED if column not in columns]
    if missing:
        raise UserError(f"{place}: there is no column {listing(missing)}; a layer table needs {listing(NEEDED)}")


def _workload(
    name: str, layers: list[Layer], path: Path, inputs: Iterable[str] = (), outputs: Iterable[str] = ()
) -> Workload:
    if not layers:
        raise UserError(f"{path} has no layers")
    return Workload(name, tuple(unique_names(layers)), tuple(inputs), tuple(outputs))


def _unescaped(name: str) -> str:
    return name.replace("%3B", ";").replace("%25", "%")


@dataclass(frozen=True)
class _Row:
    """A layer's columns, text of a CSV or values of a JSON; `place` names the file and the row."""

    values: dict[str, Any]
    place: str

    def layer(self) -> Layer:
        loops, degenerate = self.loops()
        degenerate = degenerate or self.flag("degenerate")
        kind = self.text("kind")
        if not kind:
            kind = "conv" if loops.groups == 1 else "depthwise" if loops.groups == loops.in_channels else "grouped"
        multiplies = kind in MAC_KINDS and not degenerate
        outputs = 0 if degenerate else prod((loops.batch, loops.out_channels, loops.out_height, loops.out_width))
        kernel = loops.out_channels * (loops.in_channels // loops.groups) * loops.kernel_height * loops.kernel_width
        macs = self.integer("macs", loops.macs if multiplies else 0, least=0)
        steps = {"pool": loops.kernel_height * loops.kernel_width, "move": 0, "embedding": 0}
        return Layer(
            self.text("name"),
            kind,
            loops,
            self.tensors("inputs"),
            self.tensors("outputs"),
            macs,
            self.integer("operations", 2 * macs if kind in MAC_KINDS else outputs * steps.get(kind, 1), least=0),
            self.integer("weights", kernel if kind in MAC_KINDS - {"matmul"} else 0, least=0),
            self.integer("biases", 0, least=0),
            self.text("weight_name"),
            self.format(self.text("weight_format") or str(FP32)),
            self.share("density"),
            self.integer("rank", 1) if "rank" in self.values else None,
            self.text("component"),
            degenerate,
        )

    def loops(self) -> tuple[Loops, bool]:
        """The loop nest, and whether the kernel is larger than the input."""
        grouped = self.text("kind") in ("depthwise", "pool")
        sizes = {key: self.integer(key, 1) for key in SIZES if key in self.values or key in NEEDED}
        channels = sizes["C"] if grouped else 1
        stride = self.integer("stride", 1)
        sizes = {"G": channels, "stride Y": stride, "stride X": stride} | sizes
        for key in ("K", "C"):
            if sizes[key] % sizes["G"]:
                self.refuse(f"{key}={sizes[key]} is no multiple of G={sizes['G']} groups")
        if not self.values.keys() & {"Y", "X"}:
            return Loops(*(sizes.get(key, 1) for key in SIZES)), False
        if self.values.keys() & {"Y'", "X'"}:
            self.refuse("gives the size of the input, Y or X, and that of the output, Y' or X'; leave one of them out")
        rest = (sizes.get(key, 1) for key in SIZES if key not in ("Y'", "X'"))
        return loops_on_input(self.integer("Y", 1), self.integer("X", 1), *rest)

    def refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.place}: {why}")

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        if not isinstance(value, str):
            self.refuse(f"{key} must be text, not {value!r}")
        if key in NEEDED and not value:
            self.refuse(f"{key} is empty")
        if key == "kind" and value and value not in KINDS:
            self.refuse(f"'{value}' is no kind of layer{nearest(value, KINDS)}; kinds are {listing(KINDS)}")
        return value

    def integer(self, key: str, default: int, least: int = 1) -> int:
        value = self.values.get(key, None if key in NEEDED else default)
        if value is None:
            self.refuse(f"{key} is empty")
        if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.refuse(f"{key} must be a whole number of at least {least}, not {value!r}")
        return value

    def share(self, key: str) -> float:
        value = self.values.get(key, 1.0)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if not 0 <= number <= 1:
            self.refuse(f"{key} must be a number from 0 to 1, not {value!r}")
        return number

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if value not in (True, False, "yes", "no"):
            self.refuse(f"{key} must be yes or no, not {value!r}")
        return value in (True, "yes")

    def format(self, text: str) -> Format:
        try:
            return parse_format(text)
        except UserError as error:
            raise UserError(f"{self.place}: {error}") from error

    def tensors(self, key: str) -> tuple[Activation, ...]:
        texts = self.values.get(key, [])
        if not isinstance(texts, list):
            self.refuse(f"{key} must be a list of tensors, not {texts!r}")
        found = []
        for text in texts:
            match = TENSOR.fullmatch(text) if isinstance(text, str) else None
            if match is None:
                self.refuse(f"{key}: {text!r} is no tensor; write name[1x64x32x32] int8, and several with '; ' between")
            shape = tuple(int(size) for size in match["shape"].split("x") if size)
            state = "state" in match["flags"].split()
            found.append(Activation(_unescaped(match["name"]), shape, self.format(match["format"]), state))
        return tuple(found)
