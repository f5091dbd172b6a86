"""Images a second and memory of the models in `segmenters`, in turns: what both segmentation benches do."""

from typing import Any

from edgetrain.bench.results import show_rows, timing_rows
from edgetrain.bench.segmenters import (
    NOT_RUN,
    OFFICIAL,
    OURS,
    PLAIN_LOSS,
    SEGFORMER,
    STEPS,
    Setting,
    builders,
    check_equal,
    memory_rows,
    prepared,
)
from edgetrain.bench.side_by_side import Contender, measure, ratio
from edgetrain.folder import RunFolder


def rates(folder: RunFolder, kind: str, setting: Setting, repeats: int, minutes: float) -> dict[str, Any]:
    """kind: training or inference. One table of rates and memory; metrics of both."""
    difference = check_equal(setting)
    contenders = []
    for name, build in builders(kind, setting).items():
        model = prepared(build(), setting)
        contenders.append(Contender(name, STEPS[kind](model, setting)))
    timings = {each.name: each for each in measure(contenders, repeats, 1, setting.device, minutes=minutes)}
    memory = {row["contender"]: row["peak above the model, MiB"] for row in memory_rows(setting, kind)}
    rows = timing_rows(list(timings.values()), timings[OURS], "images")
    rows = [row | {"peak above the model, MiB": memory[row["contender"]]} for row in rows]
    if OFFICIAL not in timings:
        rows.append({"contender": OFFICIAL, "images/s": NOT_RUN})
    same = "" if difference is None else f" Logits equal the official code's within {difference:.1g} in float64."
    caption = (
        f"{setting.words}; 150 classes, a score of every pixel; median and quartiles of {len(timings[OURS].rates)} "
        f"repeats in turns. Memory: the peak of two steps in a fresh process, above the model's own.{same}"
    )
    show_rows(folder, f"{kind}_segmentation", rows, f"HRViT-b1 with SegFormer's head: {kind}", caption)
    metrics: dict[str, Any] = {f"images_per_s/{name}": timing.median for name, timing in timings.items()}
    metrics |= {f"memory_above_mib/{name}": size for name, size in memory.items()}
    for name in (PLAIN_LOSS, OFFICIAL, SEGFORMER):
        if name in timings:
            found = ratio(timings[OURS], timings[name])
            print(f"rate over {name:26} {found}")
            metrics[f"speedup_over_{name}"] = found.median if found.quotable else str(found)
    return metrics
