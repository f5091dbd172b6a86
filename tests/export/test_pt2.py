"""torch.export's archives, opened by torch alone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from exported_networks import SHAPE, batch, convolutional, quantized

from edgetrain.export.pt2 import Pt2

INPUTS = (torch.zeros(1, *SHAPE),)


@torch.inference_mode()
def test_torch_opens_it_without_us(tmp_path: Path) -> None:
    Pt2().export(convolutional(), INPUTS, None, tmp_path)
    (logits,) = torch.export.load(tmp_path / "model_fp32.pt2").module()(batch(1))
    torch.testing.assert_close(logits, convolutional()(batch(1)), rtol=0, atol=1e-6)


def test_int8_opens_in_a_process_without_torchao(tmp_path: Path) -> None:
    _, int8 = Pt2().export(quantized(), INPUTS, None, tmp_path)
    torch.save(batch(2), tmp_path / "inputs.pt")
    program = f"""
import sys
for name in ("torchao", "executorch", "onnx", "onnxruntime"):
    sys.modules[name] = None
import torch
from pathlib import Path
from edgetrain.export.pt2 import Pt2
place = Path({str(tmp_path)!r})
torch.save(Pt2().load(place, "int8", ("model_int8.pt2",))(torch.load(place / "inputs.pt")), place / "outputs.pt")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert torch.equal(torch.load(tmp_path / "outputs.pt"), int8.predict(batch(2)))


def test_int8_archives_hold_no_float_weights(tmp_path: Path) -> None:
    """16*40 + 16*9 + 48*16 + 6*48 weights of a byte; 2 * 86 numbers of 4 and one of 8 for bias, scale, zero point."""
    Pt2(["int8"]).export(quantized(), INPUTS, None, tmp_path)
    with zipfile.ZipFile(tmp_path / "model_int8.pt2") as archive:
        stored = [entry.file_size for entry in archive.infolist() if "/weights/weight_" in entry.filename]
    assert sum(stored) == (640 + 144 + 768 + 288) + (16 + 16 + 48 + 6) * (4 + 4 + 8)


def test_it_computes_on_one_thread_and_gives_the_threads_back(tmp_path: Path) -> None:
    seen = []
    (artefact,) = Pt2().export(convolutional(), INPUTS, None, tmp_path)
    torch.set_num_threads(2)
    try:
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        artefact.predict(batch(1))
        handle.remove()
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
