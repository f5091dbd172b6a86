"""Export into the run folder, judge the artefact itself, and write manifest.json beside it."""

import hashlib
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from edgetrain.build import Trained
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder, write_atomic

JUDGED_BATCHES = 8  # of held-out data; enough to notice a broken artefact in seconds


def export_and_judge(name: str, exporter: Any, trained: Trained, folder: RunFolder) -> dict[str, float]:
    """export/<name>/, whole or not at all, with its manifest; returns the metrics `export/<name>/...`.

    Raises UserError when the artefact's output differs from the model's by more than the exporter's tolerance; what
    was exported is then removed.
    """
    target = folder.path / "export" / name
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as scratch:
        out = Path(scratch) / name
        out.mkdir()
        inputs = trained.task.example_inputs()
        artefact = exporter.export(trained.model, inputs, trained.data, out)
        manifest = judge_artefact(name, artefact, inputs, trained)
        write_atomic(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        for path in out.rglob("*"):  # some writers leave files that only their owner may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists():
            shutil.rmtree(target)
        out.rename(target)
    return {f"export/{name}/{key}": manifest[key] for key in ("size_bytes", "parity")} | {
        f"export/{name}/{key}": value for key, value in manifest["artefact"].items()
    }


def judge_artefact(name: str, artefact: Any, inputs: tuple[torch.Tensor, ...], trained: Trained) -> dict[str, Any]:
    """What manifest.json says: the same held-out lines judged twice, parity, files, input and output."""
    with torch.inference_mode():
        expected, exported = trained.model(*inputs), artefact.predict(*inputs)
    expected = getattr(expected, "logits", expected)
    parity = (expected.float() - exported.float()).abs().max().item()
    if not parity <= artefact.tolerance:  # NaN fails too
        raise UserError(
            f"export {name}: outputs differ from the model's by {parity:.3g}, more than {artefact.tolerance:.3g}; "
            "nothing was exported"
        )
    trained.data.setup("test")

    def held_out() -> Any:
        return itertools.islice(trained.data.test_dataloader(), JUDGED_BATCHES)

    files = sorted(path for path in artefact.path.rglob("*") if path.is_file())
    return {
        "target": name,
        "parity": parity,
        "tolerance": artefact.tolerance,
        "judged_batches": JUDGED_BATCHES,
        "model": trained.task.evaluate(trained.model, held_out()),
        "artefact": trained.task.evaluate(artefact.predict, held_out()),
        "inputs": [{"shape": list(value.shape), "type": str(value.dtype).removeprefix("torch.")} for value in inputs],
        "output": {"shape": list(exported.shape), "type": str(exported.dtype).removeprefix("torch.")},
        "size_bytes": sum(path.stat().st_size for path in files),
        "weights_bytes": sum(value.numel() * value.element_size() for value in trained.model.parameters()),
        "files": {
            str(path.relative_to(artefact.path)): {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        },
    }
