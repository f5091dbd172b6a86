"""Networks in MAESTRO's format: the published tables of XRBench, and every construct in a few lines."""

import os
from pathlib import Path

import pytest

from edgetrain.errors import UserError
from edgetrain.hardware.layer_tables import read_layer_table
from edgetrain.hardware.maestro_networks import read_maestro
from edgetrain.hardware.workload import Loops

ROOT = Path(__file__).resolve().parents[2]
XRBENCH = Path(os.environ.get("EDGETRAIN_DATA", ROOT.parent / "shared" / "data")) / "xrbench" / "usage_scenarios"

# Layers, GMAC, millions of weights, layers whose kernel is larger than the input: XRBench's eleven models, counted from
# the published files with K C R S max(1, Y-R+1) max(1, X-S+1).
MODELS = {
    "HT_hand_graph_cnn_half": (224, 3.726, 19.299, 12),
    "ES_RITNet": (42, 1.040, 0.231, 0),
    "GE_FBNet_C": (63, 2.250, 159.393, 3),
    "KD_res8_narrow": (8, 0.0053, 0.020, 0),
    "ASR_EM_24L": (120, 9.664, 75.497, 0),
    "SS_HRViT_b1": (423, 20.095, 111.571, 0),
    "OD_D2go_FasterRCNN": (138, 9.707, 92.326, 1),
    "AS_ED_TCN": (4, 0.3545, 0.742, 0),
    "DE_midas_v21_small": (92, 18.494, 367.463, 0),
    "DR_RGBd_200": (34, 16.837, 13.673, 0),
    "PD_Plane_RCNN_Quarter": (153, 7.524, 59.539, 1),
}


@pytest.mark.skipif(not XRBENCH.is_dir(), reason="XRBench's scenario files are not here")
def test_xrbenchs_models_have_their_published_sizes():
    scenarios = [read_maestro(path) for path in sorted(XRBENCH.glob("*.m"))]
    assert sum(len(scenario) for scenario in scenarios) == 26
    models = {name: network for scenario in scenarios for name, network in scenario.items()}
    assert models.pop("D2go_FastRCNN").layers == models["OD_D2go_FasterRCNN"].layers  # its name in one scenario
    assert set(models) == set(MODELS)
    for name, (layers, gmac, weights, degenerate) in MODELS.items():
        network = models[name]
        assert len(network) == layers
        assert sum(layer.degenerate for layer in network) == degenerate
        assert sum(layer.loops.macs for layer in network) / 1e9 == pytest.approx(gmac, rel=1e-2 if gmac < 0.1 else 2e-4)
        assert network.weights / 1e6 == pytest.approx(weights, abs=6e-4)
        idle = [layer for layer in network if layer.degenerate]
        assert all(layer.macs == layer.operations == 0 for layer in idle)
        assert network.macs == sum(layer.loops.macs for layer in network) - sum(layer.loops.macs for layer in idle)
    first = models["HT_hand_graph_cnn_half"].layers[0]
    assert first.loops == Loops(1, 1, 64, 3, 122, 122, 7, 7)


NETWORKS = """
// constants may stand for sizes
Constant Tokens 128;
Network torchvision.models.small {
  FPS: 60
  Dependency: { ES_RITNet }
  Layer Conv2d-1 { Type: CONV Stride { X: 1, Y: 2 } Dimensions { K 64, C 3, R 7, S 7, Y 224, X 30 } } // vgg's spelling
  Layer Conv2d-1 {
    Type: DSCONV
    Dimensions: { N: 2, K: 1, C: 32, R: 3, S: 3, Y: 16, X: 16 }
    Dataflow { SpatialMap(1,1) K; Cluster(3, P); }
  }
  Layer grouped { Type: NGCONV Dimensions { G: 32, K: 4, C: 128, R: 3, S: 3, Y: 56, X: 56 } }
  Layer up { Type: TRCONV Dimensions { K: 512, C: 1024, R: 2, S: 2, Y: 28, X: 28 } }
  Layer tiny { Type: CONV Dimensions { K: 8, C: 4, R: 3, S: 3, Y: 2, X: 9 } }
}Network second { /* no space before it
  */ Probability: 0.2
  Layer a { Type: GEMM Dimensions { M: Tokens, N: 10, K: 512 } }
}
"""


def networks(folder: Path, text: str) -> Path:
    path = folder / "nets.m"
    path.write_text(text)
    return path


def test_every_construct_of_the_format_is_read(tmp_path):
    first, second = read_maestro(networks(tmp_path, NETWORKS)).values()
    assert (first.name, second.name) == ("torchvision.models.small", "second")
    assert [(layer.name, layer.kind, layer.loops) for layer in first] == [
        ("Conv2d-1", "conv", Loops(1, 1, 64, 3, 109, 24, 7, 7, 2, 1)),
        ("Conv2d-1:2", "depthwise", Loops(2, 32, 32, 32, 14, 14, 3, 3)),
        ("grouped", "grouped", Loops(1, 32, 128, 128, 54, 54, 3, 3)),
        ("up", "conv", Loops(1, 1, 512 * 4, 1024, 28, 28)),
        ("tiny", "conv", Loops(1, 1, 8, 4, 1, 7, 3, 3)),
    ]
    assert [layer.weights for layer in first] == [64 * 3 * 49, 32 * 9, 128 * 4 * 9, 512 * 1024 * 4, 8 * 4 * 9]
    assert [layer.degenerate for layer in first] == [False] * 4 + [True]
    assert first.layers[-1].macs == 0
    assert (second.layers[0].kind, second.layers[0].macs) == ("linear", 128 * 10 * 512)


def test_several_networks_of_a_file_are_components(tmp_path):
    workload = read_layer_table(networks(tmp_path, NETWORKS))
    assert workload.components == ("torchvision.models.small", "second")
    assert (workload.name, workload.layers[-1].name) == ("nets", "second.a")
    alone = read_layer_table(networks(tmp_path, "Network one { Layer a { Type: CONV Dimensions { K: 2, C: 3 } } }"))
    assert (alone.name, alone.components, alone.layers[0].name) == ("one", ("",), "a")


LAYER = "Network n {\nLayer a { Type: CONV\nDimensions { K: 4, C: 3 } }\n}\n"
BAD = {
    "empty": ("", "describes no network"),
    "no layer": ("Network n { FPS: 3 }", "describes no layer of n"),
    "cut off": (LAYER[:-4], "line 3: the file ends in the middle of a network"),
    "no network": ("Layer a { }", "line 1: 'Layer' stands where 'Network' is expected"),
    "type": (LAYER.replace("CONV", "DWCONV"), "line 2: layer a: unknown Type DWCONV \\(did you mean 'DSCONV'\\?\\)"),
    "no type": (LAYER.replace("Type: CONV", ""), "line 3: layer a has no Type"),
    "dimension": (LAYER.replace("C:", "W:"), "line 3: unknown dimension W; they are N, G, K"),
    "zero": (LAYER.replace("4", "0"), "line 3: K must be a whole number of at least 1, not '0'"),
    "negative": (LAYER.replace("4", "-4"), "line 3: K must be a whole number of at least 1, not '-4'"),
    "no number": (LAYER.replace("4", "Tokens"), "line 3: K must be a whole number of at least 1, not 'Tokens'"),
    "groups": (LAYER.replace("CONV", "NGCONV").replace("C: 3", "C: 3, G: 2"), "C=3 is no multiple of G=2"),
    "twice": (LAYER + LAYER, "line 5: there is a network n above"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_a_bad_file_is_a_sentence_naming_the_line(text, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        read_maestro(networks(tmp_path, text))
    assert "nets.m" in str(caught.value)


def test_a_file_that_is_no_text_is_a_sentence(tmp_path):
    (tmp_path / "nets.m").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="it is not text in UTF-8"):
        read_maestro(tmp_path / "nets.m")
    with pytest.raises(UserError, match="cannot read the networks of .*: No such file"):
        read_maestro(tmp_path / "none.m")
