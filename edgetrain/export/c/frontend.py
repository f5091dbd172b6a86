"""The audio front end of a C folder: its sizes and tables as constants, and the files that compute with them.

Tables come from the float64 expressions of `ops/mfcc.py`, rounded once to float32. The window is stored up to its
middle, since it is symmetric; one period of a sine, which is every root of unity; and of each bin of the mel bank its
weight in the triangle that rises there, for the one that falls has the rest.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetrain.errors import UserError
from edgetrain.export.c.literals import filled, real
from edgetrain.export.c.source import renamed
from edgetrain.ops.mfcc import FLOOR, MFCC, dct, mel

SOURCES = Path(__file__).parent / "csrc"
FEATURES = "mfcc as in edgetrain.ops.mfcc"  # what a data module's preprocessing() calls them
WINDOWS = range(3, 2**13 + 1)  # samples of a frame; the longest needs 32 KiB to be computed in


def has_front_end(preprocessing: Mapping[str, Any]) -> bool:
    """Whether a model of this data gets the features that the C front end computes."""
    return preprocessing.get("features") == FEATURES


def frontend_files(preprocessing: Mapping[str, Any], name: str = "model") -> dict[str, str]:
    """{file name: text}; the same values give the same text.

    preprocessing: of a data module with `has_front_end`; name: the prefix of the network's functions, whose header is
    model.h. Raises UserError for a window that is too short or too long.
    """
    files = {each: (SOURCES / each).read_text() for each in ("frontend.h", "frontend.c", "stream.c")}
    files["stream.c"] = renamed(files["stream.c"], name)
    sizes, tables = constants(preprocessing)
    guard = "EDGETRAIN_FRONTEND_TABLES_H"
    files["frontend_tables.h"] = "\n".join(
        [
            f"#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n",
            *(f"#define EDGETRAIN_{size} {value} /* {meaning} */" for size, (value, meaning) in sizes.items()),
            "",
            *(
                f"extern const {c_type} edgetrain_{table}[{len(values)}]; /* {meaning} */"
                for table, (c_type, values, meaning) in tables.items()
            ),
            "\n#endif\n",
        ]
    )
    files["frontend_tables.c"] = '#include "frontend_tables.h"\n' + "".join(
        f"\nconst {c_type} edgetrain_{table}[{len(values)}] = {{\n{filled(literals(c_type, values))}\n}};\n"
        for table, (c_type, values, _) in tables.items()
    )
    return files


def frontend_facts(preprocessing: Mapping[str, Any]) -> dict[str, int]:
    """For the manifest: bytes of constants, and of memory that is kept or used while a frame is computed."""
    sizes, tables = constants(preprocessing)
    width = {"float": 4, "uint16_t": 2}
    return {
        "table_bytes": sum(width[c_type] * len(values) for c_type, values, _ in tables.values()),
        "working_bytes": 4 * sizes["POINTS"][0],
    }


def constants(
    preprocessing: Mapping[str, Any],
) -> tuple[dict[str, tuple[Any, str]], dict[str, tuple[str, np.ndarray, str]]]:
    """{name: (value, meaning)} of the sizes, and {name: (type in C, values, meaning)} of the tables."""
    rate, bins, coefficients = (preprocessing[key] for key in ("sample_rate", "mel_bins", "coefficients"))
    band = {key: preprocessing[key] for key in ("mel_bins", "low_hz", "high_hz", "coefficients")}
    window = round(rate * preprocessing["window_ms"] / 1000)
    if window not in WINDOWS:  # before MFCC makes tables for it
        raise UserError(
            f"export.c: the front end takes windows of {WINDOWS[0]} to {WINDOWS[-1]} samples, and "
            f"data.window_ms={preprocessing['window_ms']} at {rate} Hz is {window}; set another data.window_ms"
        )
    mfcc = MFCC(rate, preprocessing["window_ms"], preprocessing["stride_ms"], **band)
    first, ends, weights = mel_segments(mfcc.points, rate, bins, preprocessing["low_hz"], preprocessing["high_hz"])
    sizes = {
        "SAMPLE_RATE": (rate, "Hz"),
        "WINDOW": (window, "samples of a frame"),
        "STRIDE": (mfcc.stride, "samples from frame to frame"),
        "POINTS": (mfcc.points, "of the DFT"),
        "FIRST_BIN": (first, "of the DFT that counts"),
        "MEL_BINS": (bins, "triangles"),
        "FLOOR": (f"{FLOOR}f", "less in a triangle counts as this much"),
        "COEFFICIENTS": (coefficients, "of a frame"),
        "FRAMES": (mfcc.frames(round(preprocessing["clip_seconds"] * rate)), "of a clip"),
    }
    half = np.arange(window // 2 + 1)
    tables = {
        "window": ("float", (1 - np.cos(2 * math.pi * half / window)) / 4, "Hann's times 1/2, up to its middle"),
        "sine": ("float", sine(mfcc.points), "one period"),
        "mel_end": ("uint16_t", ends, "the bin after those below the centre of a triangle, of the band at last"),
        "mel_weight": ("float", weights, "of a bin in the triangle that rises there"),
        "dct": ("float", dct(bins, coefficients).numpy().ravel(), "[triangle][coefficient]"),
    }
    return sizes, tables


def mel_segments(
    points: int, sample_rate: int, mel_bins: int, low_hz: float, high_hz: float
) -> tuple[int, np.ndarray, np.ndarray]:
    """The mel bank of `ops.mfcc.mel_bank`, whose band the centres of its triangles cut into mel_bins + 1 segments.

    Its first bin; the bin after each segment [mel_bins + 1]; how far through its segment each bin is [bins], 0 to 1.
    """
    spacing = sample_rate / points
    first, last = max(1, int(1.5 + low_hz / spacing)), int(high_hz / spacing)
    low, high = mel(torch.tensor([low_hz, high_hz], dtype=torch.float64))
    place = (mel(spacing * torch.arange(first, last + 1, dtype=torch.float64)) - low) / (high - low) * (mel_bins + 1)
    place = place[place < mel_bins + 1].numpy()
    segment = np.floor(place)
    ends = first + np.searchsorted(segment, np.arange(mel_bins + 1), side="right")
    return first, ends, place - segment


def sine(points: int) -> np.ndarray:
    """One period, of a multiple of four points, in which quarters are mirror images to the bit."""
    quarter = np.sin(2 * math.pi / points * np.arange(points // 4 + 1))
    half = np.concatenate([quarter, quarter[-2:0:-1]])
    return np.concatenate([half, -half])


def literals(c_type: str, values: np.ndarray) -> Iterable[str]:
    return (real(value) if c_type == "float" else str(value) for value in values)
