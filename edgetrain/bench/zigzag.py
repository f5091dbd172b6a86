"""The peer of the cost bench: ZigZag (Mei et al. 2021) on the ResNet-18 and the TPU-like machine of its own package."""

import contextlib
import importlib.util
import io
import logging
import tempfile
from pathlib import Path

LOOPS = 4  # lpf_limit: prime factors of loops that are ordered; each more takes several times as long


def installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("zigzag", "six"))


def ask_zigzag() -> tuple[float, float]:
    """Cycles, and energy in the package's own unit, with the fastest loop orders found."""
    import zigzag
    from zigzag.api import get_hardware_performance_zigzag

    inputs = Path(zigzag.__file__).parent / "inputs"
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
            energy, cycles, *_ = get_hardware_performance_zigzag(
                str(inputs / "workload" / "resnet18.onnx"),
                str(inputs / "hardware" / "tpu_like.yaml"),
                str(inputs / "mapping" / "tpu_like.yaml"),
                opt="latency",
                dump_folder=place,
                pickle_filename=str(Path(place) / "costs.pickle"),
                lpf_limit=LOOPS,
                loma_show_progress_bar=False,
            )
    finally:
        logging.disable(logging.NOTSET)
    return cycles, energy
