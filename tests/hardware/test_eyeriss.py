"""The baseline of the Bit Fusion paper: its published counts, and files that are none."""

from pathlib import Path

import pytest
import yaml
from bitfusion_results import DATA, needs_data
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetrain.errors import UserError
from edgetrain.hardware.eyeriss import Eyeriss

HEADER = "Benchmark,Layer,ALU,DRAM,Buffer,Array,RF,time(ms)"


def eyeriss(**changes) -> Eyeriss:
    node = yaml.safe_load((ROOT / "conf" / "job" / "bitfusion_paper.yaml").read_text())["baseline"]
    assert node.pop("_target_") == "edgetrain.hardware.eyeriss.Eyeriss"
    return Eyeriss(**node | changes)


def write(place: Path, *rows: str, header: str = HEADER) -> Path:
    path = place / "counts.csv"
    path.write_text("\n".join([header, *rows]))
    return path


# hardware.md section 2: cycles and mJ of 16 images
PUBLISHED = {
    "SVHN": (11_296_768, 44.62),
    "CIFAR10": (44_153_856, 171.22),
    "LeNet-5": (1_117_696, 4.91),
    "RNN": (1_048_576, 6.46),
    "LSTM": (820_800, 5.17),
}


@needs_data
def test_networks_cost_what_was_published():
    networks = eyeriss().read(DATA / "eyeriss_results.csv")
    for name, (cycles, millijoules) in PUBLISHED.items():
        assert networks[name].cycles == cycles
        assert 1e3 * networks[name].joules(eyeriss().dram_pj) == pytest.approx(millijoules, abs=0.005)


def test_layers_add_up_and_cost_what_the_hand_calculation_says(tmp_path: Path):
    """Energy is 16 x 0.2 pJ x (ALU + 0.15 DRAM + Buffer + Array + RF)."""
    path = write(tmp_path, "net,a,10,200,3,4,5,70", "net,b,1,0,0,0,0,7")
    (network,) = eyeriss().read(path).values()
    assert network.cycles == 77
    assert network.joules(eyeriss().dram_pj) == pytest.approx(16 * 0.2e-12 * (10 + 0.15 * 200 + 3 + 4 + 5 + 1))


def test_the_comparison_lets_eyeriss_pay_6_pj_for_a_bit_of_dram(tmp_path: Path):
    """200 MACs of 3.2 pJ for a word of 16 bits, times 0.15."""
    assert eyeriss().dram_pj == pytest.approx(6.0)
    (network,) = eyeriss().read(write(tmp_path, "net,a,1,400,0,0,0,1")).values()
    assert network.dram_bits == 2 * 16
    assert network.joules(15.0) == pytest.approx(3.2e-12 + 2 * 16 * 15e-12)


def test_the_area_is_that_of_a_65_nm_die_at_45_nm():
    assert eyeriss().area_mm2 == pytest.approx(3.5 * 3.5 * (45 / 65) ** 2, abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "header", "sentence"),
    [
        (["net,a,1,2,3,4,5"], HEADER.replace(",time(ms)", ""), r"it lacks time\(ms\)"),
        ([], HEADER, "it lacks Benchmark, ALU"),
        (["net,a,1,-2,3,4,5,6"], HEADER, "row 1, DRAM: '-2' is not a count"),
        (["net,a,1,2,3,4,5,6", "net,b,1,2,many,4,5,6"], HEADER, "row 2, Buffer: 'many' is not a count"),
        (["net,a,1,2,3,4,nan,6"], HEADER, "row 1, RF: 'nan' is not a count"),
        (["net,a,1,2,3,4,5,0"], HEADER, "net takes no cycles"),
        (["net,a,1,2"], HEADER, "row 1, Buffer: 'None' is not a count"),
    ],
)
def test_a_file_that_is_no_table_of_counts_is_refused(rows: list[str], header: str, sentence: str, tmp_path: Path):
    with pytest.raises(UserError, match=sentence):
        eyeriss().read(write(tmp_path, *rows, header=header))


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_read_or_refused_in_a_sentence(content: bytes, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for head in (b"", f"{HEADER}\n".encode()):
        path.write_bytes(head + content)
        try:
            eyeriss().read(path)
        except UserError as error:
            assert str(path) in str(error)


def test_the_file_is_looked_for_in_the_data_folder_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGETRAIN_DATA", raising=False)
    assert eyeriss(path="counts.csv").find() is None
    here = write(tmp_path)
    assert eyeriss(path="counts.csv").find() == Path(here.name)
    (tmp_path / "sets").mkdir()
    there = write(tmp_path / "sets")
    monkeypatch.setenv("EDGETRAIN_DATA", str(tmp_path / "sets"))
    assert eyeriss(path="counts.csv").find() == there


def test_a_price_needs_a_source():
    with pytest.raises(UserError, match="the constant 'mac_pj' has no source"):
        eyeriss(sources={})
