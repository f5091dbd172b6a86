"""How a number is stored: integers of any width, and floating point by exponent and mantissa."""

import re
from typing import NamedTuple

from edgetrain.errors import UserError

NAMED = {"fp64": (64, 11), "fp32": (32, 8), "fp16": (16, 5), "bf16": (16, 8)}  # bits, exponent bits
ALIASES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "bool": "int1"}


class Format(NamedTuple):
    """bits: of one number, its sign included; exponent: bits of the exponent, 0 for an integer."""

    bits: int
    exponent: int = 0

    @property
    def mantissa(self) -> int:
        """Stored bits of the mantissa; of an integer all but the sign."""
        return self.bits - 1 - self.exponent

    @property
    def is_float(self) -> bool:
        return self.exponent > 0

    def __str__(self) -> str:
        for name, format in NAMED.items():
            if format == self:
                return name
        return f"e{self.exponent}m{self.mantissa}" if self.exponent else f"int{self.bits}"


def parse_format(text: str) -> Format:
    """A format from "int8", "fp16" (or torch's name, "float16") or "e4m3". Raises UserError for anything else."""
    name = ALIASES.get(text, text)
    if name in NAMED:
        return Format(*NAMED[name])
    integer, floating = re.fullmatch(r"u?int(\d{1,3})", name), re.fullmatch(r"e(\d{1,2})m(\d{1,2})", name)
    if integer and 1 <= int(integer[1]) <= 128:
        return Format(int(integer[1]))
    if floating and int(floating[1]) > 0:
        exponent, mantissa = int(floating[1]), int(floating[2])
        return Format(1 + exponent + mantissa, exponent)
    raise UserError(
        f"'{text}' is not a number format; write int8, fp16, bf16, fp32, or exponent and mantissa as in e4m3"
    )


INT8 = Format(8)
FP32 = Format(*NAMED["fp32"])
