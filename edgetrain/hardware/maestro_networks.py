"""MAESTRO's description of networks, and XRBench's: `Network X { Layer conv1 { Type: CONV Dimensions { K: 64 } } }`.

Y and X are the sizes of the input with its padding, the convolution is valid and its stride 1 unless given: K C R S
(Y-R+1) (X-S+1) MACs. A layer whose kernel is larger than its input is kept, flagged, and computes nothing. Of a
depthwise layer (DSCONV) K counts the outputs of one channel, of a grouped one (NGCONV) those of one group. Of a
transposed one (TRCONV) every input pixel meets the whole kernel, as in a traced one. What does not describe layers
(FPS, dependencies, dataflows) is passed over.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from edgetrain.errors import UserError, listing, nearest
from edgetrain.hardware.workload import Kind, Layer, Loops, Workload

TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|[{}]|[^\s{}:,;]+|\n", re.S)
TYPES: dict[str, Kind] = {
    "CONV": "conv",
    "TRCONV": "conv",
    "DSCONV": "depthwise",
    "NGCONV": "grouped",
    "GEMM": "linear",
}
DIMENSIONS = ("N", "G", "K", "C", "Y", "X", "R", "S", "M")


def loops_on_input(
    height: int,
    width: int,
    batch: int,
    groups: int,
    out_channels: int,
    in_channels: int,
    kernel_height: int,
    kernel_width: int,
    stride_height: int,
    stride_width: int,
) -> tuple[Loops, bool]:
    """Loops of a valid convolution by the size of its input, and whether its kernel is larger than that."""
    out_height = max(1, (height - kernel_height) // stride_height + 1)
    out_width = max(1, (width - kernel_width) // stride_width + 1)
    kernel = (kernel_height, kernel_width, stride_height, stride_width)
    loops = Loops(batch, groups, out_channels, in_channels, out_height, out_width, *kernel)
    return loops, kernel_height > height or kernel_width > width


def unique_names(layers: Iterable[Layer]) -> Iterator[Layer]:
    """The second layer of a name gets :2, and so on."""
    seen: set[str] = set()
    for layer in layers:
        name, count = layer.name, 1
        while name in seen:
            count += 1
            name = f"{layer.name}:{count}"
        seen.add(name)
        yield layer if name == layer.name else replace(layer, name=name)


def read_maestro(path: str | Path) -> dict[str, Workload]:
    """The networks of a file by name. Raises UserError naming the line."""
    return _Parser(Path(path)).networks()


class _Parser:
    def __init__(self, path: Path) -> None:
        self.path, self.line = path, 1
        self.constants: dict[str, int] = {}
        try:
            self.tokens = list(self._tokens(path.read_bytes().decode("utf-8-sig")))
        except OSError as error:
            raise UserError(f"cannot read the networks of {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} describes no networks: it is not text in UTF-8") from error
        self.position = 0

    def _tokens(self, text: str) -> Iterator[tuple[str, int]]:
        line = 1
        for match in TOKEN.finditer(text):
            token = match[0]
            if not token.startswith(("//", "/*", "\n")):
                yield token, line
            line += token.count("\n")

    def networks(self) -> dict[str, Workload]:
        found: dict[str, Workload] = {}
        while self.more():
            word = self.next()
            if word == "Constant":
                name = self.next()
                self.constants[name] = self.number(name)
            elif word == "Network":
                name = self.next()
                if name in found:
                    self.refuse(f"there is a network {name} above")
                found[name] = Workload(name, tuple(unique_names(self.layers())))
            else:
                self.refuse(f"'{word}' stands where 'Network' is expected")
        empty = [name for name, network in found.items() if not len(network)]
        if empty or not found:
            raise UserError(f"{self.path} describes no {'network' if not found else f'layer of {listing(empty)}'}")
        return found

    def layers(self) -> Iterator[Layer]:
        self.expect("{")
        while (word := self.next()) != "}":
            if word == "Layer":
                yield self.layer(self.next())
            else:  # FPS 30, Probability 0.2, Dependency { ... }
                self.skip_value()

    def layer(self, name: str) -> Layer:
        self.expect("{")
        kind, sizes, strides = "", dict.fromkeys(DIMENSIONS, 1), {"Y": 1, "X": 1}
        while (word := self.next()) != "}":
            if word == "Type":
                kind = self.next()
                if kind not in TYPES:
                    self.refuse(f"layer {name}: unknown Type {kind}{nearest(kind, TYPES)}; it is {listing(TYPES)}")
            elif word == "Dimensions":
                sizes |= self.sizes(DIMENSIONS)
            elif word == "Stride":
                strides |= self.sizes(DIMENSIONS)
            else:
                self.skip_value()
        if not kind:
            self.refuse(f"layer {name} has no Type")
        return self.described(name, kind, sizes, strides)

    def described(self, name: str, type_name: str, sizes: dict[str, int], strides: dict[str, int]) -> Layer:
        n, g, k, c, y, x, r, s, m = (sizes[key] for key in DIMENSIONS)
        kind = TYPES[type_name]
        if type_name == "GEMM":  # [M, K] times [K, N]
            loops, degenerate = Loops(out_channels=n, in_channels=k, out_height=m), False
        elif type_name == "TRCONV":
            loops, degenerate = Loops(n, 1, k * r * s, c, y, x), False
        else:
            groups = {"DSCONV": c, "NGCONV": g}.get(type_name, 1)
            if c % groups:
                self.refuse(f"layer {name}: C={c} is no multiple of G={groups}")
            loops, degenerate = loops_on_input(y, x, n, groups, k * groups, c, r, s, strides["Y"], strides["X"])
        macs = 0 if degenerate else loops.macs
        weights = loops.out_channels * (loops.in_channels // loops.groups) * loops.kernel_height * loops.kernel_width
        return Layer(name, kind, loops, macs=macs, operations=2 * macs, weights=weights, degenerate=degenerate)

    def sizes(self, known: tuple[str, ...]) -> dict[str, int]:
        self.expect("{")
        sizes = {}
        while (name := self.next()) != "}":
            if name not in known:
                self.refuse(f"unknown dimension {name}{nearest(name, known)}; they are {listing(known)}")
            sizes[name] = self.number(name)
        return sizes

    def number(self, name: str) -> int:
        word = self.next()
        value = self.constants.get(word, int(word) if re.fullmatch("[0-9]{1,18}", word) else 0)
        if value < 1:
            self.refuse(f"{name} must be a whole number of at least 1, not '{word}'")
        return value

    def skip_value(self) -> None:
        """One word, or all between two braces."""
        depth = 1 if self.next() == "{" else 0
        while depth:
            depth += {"{": 1, "}": -1}.get(self.next(), 0)

    def more(self) -> bool:
        return self.position < len(self.tokens)

    def next(self) -> str:
        if not self.more():
            self.refuse("the file ends in the middle of a network")
        token, self.line = self.tokens[self.position]
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        word = self.next()
        if word != token:
            self.refuse(f"'{word}' stands where '{token}' is expected")

    def refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.path}, line {self.line}: {why}")
