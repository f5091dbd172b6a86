"""Hello Edge's main table: parameters and MACs to the unit, operations within 1%, memory within 0.1 KB."""

import pytest
import torch

from edgetrain.hardware.folding import deployed
from edgetrain.models.keyword import FAMILIES, SIZES, keyword, stride_ms
from edgetrain.models.keyword_budget import MICROCONTROLLERS, budget
from edgetrain.models.keyword_network import KeywordNetwork
from edgetrain.models.recurrent_cells import GRU, LSTM

# parameters (batch norms folded), MACs; memory in KB and operations as the paper prints them
TABLE = {
    "dnn s": (79_644, 79_200, 80.0, 158.8e3),
    "dnn m": (198_924, 198_144, 199.4, 397.0e3),
    "dnn l": (495_744, 494_424, 496.6, 990.2e3),
    "cnn s": (69_238, 2_498_304, 79.0, 5.0e6),
    "cnn m": (178_444, 8_633_856, 199.4, 17.3e6),
    "cnn l": (476_206, 12_636_672, 497.8, 25.3e6),
    "basic_lstm s": (62_316, 2_961_800, 63.3, 5.9e6),
    "basic_lstm m": (195_180, 9_398_024, 196.5, 18.9e6),
    "basic_lstm l": (492_620, 23_872_224, 494.5, 47.9e6),
    "lstm s": (78_516, 1_919_976, 79.5, 3.9e6),
    "lstm m": (196_732, 9_509_520, 198.6, 19.2e6),
    "lstm l": (495_768, 24_085_756, 498.8, 48.4e6),
    "gru s": (78_090, 1_896_048, 78.8, 3.8e6),
    "gru m": (198_762, 9_558_000, 200.0, 19.2e6),
    "gru l": (498_012, 24_112_800, 499.7, 48.4e6),
    "crnn s": (75_432, 1_498_848, 79.7, 3.0e6),
    "crnn m": (189_032, 3_798_432, 199.8, 7.6e6),
    "crnn l": (485_004, 9_629_104, 499.5, 19.3e6),
    "ds_cnn s": (22_604, 2_656_768, 38.6, 5.4e6),
    "ds_cnn m": (135_032, 9_816_384, 189.2, 19.8e6),
    "ds_cnn l": (410_700, 28_327_812, 497.6, 56.9e6),
}
# from the same notes, to the unit: two a MAC and one a bias
OPERATIONS = {"dnn s": 158_844, "dnn m": 397_068, "dnn l": 990_168}


def paper_network(name: str) -> KeywordNetwork:
    family, size = name.split()
    return keyword(family, size, frames=25 if stride_ms(family, size) == 40 else 49).eval()


def untraced_macs(network: KeywordNetwork) -> int:
    """What a recurrent layer's rows lack: products with the zeros before the first frame, peepholes frame by frame.

    A CRNN's layers see 20 frames; peepholes are element-wise there.
    """
    frames = network.feature_shape[0]
    missing = 0
    for module in network.modules():
        if isinstance(module, LSTM):
            missing += module.recurrent.weight.numel()
            missing += 0 if module.peepholes is None else frames * module.peepholes.numel()
        if isinstance(module, GRU):
            missing += module.recurrent.weight.numel() + module.candidate.weight.numel()
    return missing


def test_the_table_has_every_network() -> None:
    assert set(TABLE) == {f"{family} {size}" for family in FAMILIES for size in SIZES[family]}


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_of_the_table_to_the_unit(name: str) -> None:
    counted = budget(paper_network(name))
    assert (counted.parameters, counted.macs) == TABLE[name][:2]


@pytest.mark.parametrize("name", TABLE)
def test_the_workload_counts_the_same(name: str) -> None:
    network = paper_network(name)
    workload = deployed(network, (torch.zeros(1, *network.input_shape),), name)
    parameters, macs = TABLE[name][:2]
    assert workload.weights == parameters
    assert workload.macs + untraced_macs(network) == macs


@pytest.mark.parametrize("name", TABLE)
def test_memory_within_a_tenth_of_a_kb_and_operations_within_one_percent(name: str) -> None:
    counted = budget(paper_network(name))
    kilobytes, operations = TABLE[name][2:]
    assert abs(counted.memory / 1000 - kilobytes) <= 0.1
    rounding = 0.05e6 if operations > 1e6 else 0.05e3  # of the printed digit
    assert abs(counted.operations - operations) <= 0.01 * operations + rounding


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_two_a_mac_and_one_a_bias(name: str) -> None:
    assert budget(paper_network(name)).operations == OPERATIONS[name]


def test_every_size_fits_its_microcontroller_and_no_smaller_one() -> None:
    for name in TABLE:
        fitting = [device.name for device in MICROCONTROLLERS if budget(paper_network(name)).fits(device)]
        assert fitting == ["small", "medium", "large"]["sml".index(name[-1]) :], name


def test_counting_leaves_the_network_as_it_was() -> None:
    network = keyword("ds_cnn").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    budget(network)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_the_front_end_costs_nothing_here() -> None:
    assert budget(keyword("gru", "m", front_end=True)) == budget(keyword("gru", "m"))
