import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from c_bundle import Bundle, expected, first_difference, needs_cc
from exported_networks import CLASSES, SHAPE, Samples, batch, convolutional, quantized
from integer_programs import random_inputs
from quantize_networks import Samples as Quantizing
from quantize_networks import inputs as samples
from quantize_networks import separable
from torch import nn

from edgetrain.errors import UserError
from edgetrain.export.c import exporter, host
from edgetrain.export.c.arena import OWN, arenas
from edgetrain.export.c.board import check_board
from edgetrain.export.c.exporter import C
from edgetrain.export.shipping import appearing
from edgetrain.methods.lowering import lower
from edgetrain.methods.q7 import power_of_two
from edgetrain.methods.quantize import post_training
from edgetrain.models.llama import Llama

pytest.importorskip("executorch")
pytestmark = needs_cc

PLACES = [os.environ.get("EDGETRAIN_DATA"), Path(__file__).resolve().parents[4] / "shared" / "data"]
REAL = next((Path(place) for place in PLACES if place and (Path(place) / "kws_pretrained").is_dir()), None)
INPUTS = (torch.zeros(1, *SHAPE),)
LABELS = [f"word{index}" for index in range(CLASSES)]


class Data(Samples):
    labels = LABELS


def exported(folder, model=None, data=None, **options):
    folder.mkdir(exist_ok=True)
    (artefact,) = C(**({"emulate": []} | options)).export(model or quantized(), INPUTS, data or Data(SHAPE), folder)
    return artefact


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "OPTIMISATION", ("-O1",))
        yield


@pytest.fixture(scope="module")
def ours(quickly_compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    return folder, exported(folder)


def test_the_artefact_equals_the_integer_network_to_the_bit(ours):
    folder, artefact = ours
    x = batch(100)
    assert (artefact.name, artefact.tolerance, artefact.timed) == ("int8", 0.0, False)
    assert torch.equal(artefact.predict(x), artefact.reference(x))
    assert torch.equal(artefact.reference(x), lower(quantized(), INPUTS)(x))
    assert (artefact.predict(x) - quantized()(x)).abs().max() <= 2.001 * artefact.lsb
    assert sorted(artefact.files) == sorted(path.name for path in folder.iterdir())


def test_the_facts_are_those_of_the_network(ours):
    """Weights by hand: 16 x 40, 16 x 9, 48 x 16 and 6 x 48; a bias, a multiplier and a shift of 4 bytes a channel."""
    folder, artefact = ours
    facts = json.loads(json.dumps(artefact.facts))
    assert facts["weight_bytes"] == 16 * 40 + 16 * 9 + 48 * 16 + 6 * 48
    assert facts["size_bytes"] == facts["weight_bytes"] + 12 * (16 + 16 + 48 + 6)
    assert facts["size_bytes"] == sum(each["constant_bytes"] for each in facts["operations"])
    assert facts["operators"] == {"convolution": 2, "depthwise": 1, "average_pool": 1, "fully_connected": 1}
    assert f"#define MODEL_ARENA_BYTES {facts['arena']['bytes']}\n" in (folder / "model.h").read_text()
    assert facts["arena"]["bytes"] == arenas(artefact.reference.program)[OWN].bytes
    assert facts["rounding"].startswith("double")
    assert facts["operations"][-1]["scale"] == artefact.lsb == quantized().scheme.output_scale
    assert len(facts["kernels_plain_sha256"]) == 64 and facts["compiler"]


def test_the_same_model_gives_the_same_files(ours, tmp_path):
    folder, artefact = ours
    again = exported(tmp_path / "again")
    assert again.files == artefact.files
    for name in artefact.files:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_a_copied_folder_builds_with_make_and_answers(tmp_path):
    artefact = exported(tmp_path / "c", name="keywords")
    shutil.copytree(tmp_path / "c", tmp_path / "copy")
    (tmp_path / "copy" / "inputs").write_bytes(batch(3).numpy().tobytes())
    wanted = [LABELS[index] for index in artefact.reference(batch(3)).argmax(1)]
    for kernels in ("portable", "plain"):
        subprocess.run(["make", "-s", f"KERNELS={kernels}", "CFLAGS=-O1"], cwd=tmp_path / "copy", check=True)
        said = subprocess.run(["./main", "inputs"], cwd=tmp_path / "copy", capture_output=True, text=True).stdout
        assert [line.split()[0] for line in said.splitlines()] == wanted
    subprocess.run(["make", "-s", "lib", "clean"], cwd=tmp_path / "copy", check=True)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted([*artefact.files, "inputs"])
    for wrong, sentence in (("fast", "KERNELS is portable, plain or cmsis_nn"), ("cmsis_nn", "needs CMSIS_NN=DIR")):
        refused = subprocess.run(["make", f"KERNELS={wrong}"], cwd=tmp_path / "copy", capture_output=True, text=True)
        assert refused.returncode and sentence in refused.stderr


def test_a_loaded_folder_gives_the_same_numbers(ours, tmp_path):
    folder, artefact = ours
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps({"forms": {"int8": dict(artefact.facts)}}))
    assert C.opening_runs_code
    loaded = C().load(tmp_path / "copy", "int8", artefact.files)
    assert torch.equal(loaded(batch(20)), artefact.predict(batch(20)))


def test_powers_of_two_are_written_as_q7_and_equal_their_network_exactly(tmp_path):
    """Biases of 4 bytes for 8, 8, 12, 16 and 5 channels, and no multipliers."""
    network, x = separable(), samples(60)
    model = power_of_two(network, (x[:1],), Quantizing(x))
    (artefact,) = C(emulate=[]).export(model, (x[:1],), None, tmp_path)
    assert artefact.name == "q7"
    assert torch.equal(artefact.predict(x), model(x))
    assert artefact.facts["size_bytes"] == artefact.facts["weight_bytes"] + 4 * (8 + 8 + 12 + 16 + 5)
    q7 = C(emulate=[])
    q7.check_scheme("q7")
    q7.check(network, (x[:1],))


def test_a_scheme_of_the_targets_own_goes_before_that_of_the_run(tmp_path):
    """The int8 model's float network is quantised anew, as a run of that scheme would be."""
    artefact = exported(tmp_path / "c", scheme="q7")
    own = power_of_two(quantized().float_model, INPUTS, Data(SHAPE))
    assert (artefact.name, artefact.facts["scheme"], artefact.facts["rounding"]) == ("q7", "q7", "half up")
    assert torch.equal(artefact.predict(batch(20)), own(batch(20)))
    target = C(scheme="q7")
    target.check_scheme("int8")
    assert target.scheme == "q7"
    target = C()
    target.check_scheme("q7")
    assert target.scheme == "q7"


def test_a_front_end_in_the_model_is_computed_before_the_c_code(tmp_path):
    from edgetrain.models.keyword import keyword

    torch.manual_seed(0)
    model = keyword("dnn", "s", None, 6, 49, front_end=True).eval()
    inputs = (torch.zeros(1, 16000),)

    class Clips(Samples):
        labels = LABELS

        def preprocessing(self):
            return {"features": "samples", "sample_rate": 16000, "clip_seconds": 1.0}

    data = Clips((16000,), 8)
    (tmp_path / "c").mkdir()
    (artefact,) = C(emulate=[]).export(post_training(model, inputs, data), inputs, data, tmp_path / "c")
    x = torch.stack([value for value, _ in data.items])
    assert torch.equal(artefact.predict(x), artefact.reference(x))
    assert {"frontend.c", "frontend_tables.c", "stream.c"} <= set(artefact.files)
    (tmp_path / "c" / "manifest.json").write_text(json.dumps({"forms": {"int8": dict(artefact.facts)}}))
    loaded = C().load(tmp_path / "c", "int8", artefact.files)
    assert torch.equal(loaded(x), artefact.predict(x))


# What a board holds.


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ({"flash_bytes": 2000}, r"flash_bytes=2000: .* take 2,872 bytes, 872 too many, 1,344 of them in '7'"),
        ({"ram_bytes": 5000}, r"ram_bytes=5000: the arena takes .* too many, most while '7' runs, and the stack"),
    ],
)
def test_a_board_that_is_too_small_is_refused_before_training_and_after(limit, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        C(**limit, emulate=[]).check(convolutional(), INPUTS)
    with pytest.raises(UserError, match=sentence):
        exported(tmp_path / "c", **limit)
    assert not any((tmp_path / "c").iterdir())


def test_a_board_of_just_the_size_is_enough():
    program = lower(quantized(), INPUTS).program
    plans = {OWN: arenas(program)[OWN]}
    check_board(program, plans, 2872, plans[OWN].bytes)
    check_board(program, plans, None, None)
    with pytest.raises(UserError, match=f"takes {plans[OWN].bytes:,} bytes, 1 too many"):
        check_board(program, plans, None, plans[OWN].bytes - 1)
    with pytest.raises(UserError, match="take 2,872 bytes, 1 too many"):
        check_board(program, plans, 2871, None)


def test_cmsis_nns_plan_counts_where_its_kernels_are_used(tmp_path):
    (tmp_path / "nn" / "Include").mkdir(parents=True)
    (tmp_path / "nn" / "Include" / "arm_nnfunctions.h").touch()
    (tmp_path / "core" / "CMSIS" / "Core" / "Include").mkdir(parents=True)
    (tmp_path / "core" / "CMSIS" / "Core" / "Include" / "cmsis_compiler.h").touch()
    plans = arenas(lower(quantized(), INPUTS).program)
    assert C(cmsis_nn=str(tmp_path / "nn"), cmsis_core=str(tmp_path / "core")).used(plans) == plans
    assert list(C().used(plans)) == [OWN]


# What is refused.


class Sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.last = nn.Linear(490, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last(self.gate(x.flatten(1)).sigmoid())


def test_an_operator_without_a_kernel_is_named_before_training():
    with pytest.raises(UserError, match="sigmoid") as caught:
        C(emulate=[]).check(Sigmoid().eval(), INPUTS)
    assert "\n" not in str(caught.value)


def test_what_is_not_quantised_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds networks in whole numbers, and this Sequential has no such form"):
        exported(tmp_path, convolutional())
    llama = Llama(64, 16, 1, 2, 1, 16, 8)
    with pytest.raises(UserError, match="holds feed-forward networks and this is a language model"):
        C(emulate=[]).check(llama, (torch.zeros(1, 8, dtype=torch.int64),))


def test_weights_that_are_not_a_number_leave_no_folder(tmp_path):
    network = convolutional()
    with torch.no_grad():
        network[7].weight[0] = float("nan")
    with pytest.raises(UserError) as caught, appearing(tmp_path / "c") as out:
        exported(out, post_training(network, INPUTS, Samples(SHAPE)))
    assert "\n" not in str(caught.value) and "finite" in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_labels_of_another_count_leave_no_folder(tmp_path):
    data = Data(SHAPE)
    data.labels = ["one"]
    with pytest.raises(UserError, match="6 numbers and the data has 1 labels"), appearing(tmp_path / "c") as out:
        exported(out, data=data)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "int"}, "export.c.name='int' is a keyword of C"),
        ({"flash_bytes": 0}, "export.c.flash_bytes=0 must be at least 1"),
        ({"ram_bytes": -5}, "export.c.ram_bytes=-5 must be at least 1"),
        ({"emulated_items": 0}, "export.c.emulated_items=0 must be at least 1"),
        ({"emulate": ["cortex_m5"]}, r"no core 'cortex_m5' \(did you mean 'cortex_m"),
        ({"cmsis_nn": "/nowhere", "cmsis_core": "/nowhere"}, "cmsis_nn=/nowhere has no Include/arm_nnfunctions.h"),
        ({"cmsis_core": "/nowhere"}, "CMSIS-NN needs both checkouts; give cmsis_nn too"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        C(**options)
    assert "\n" not in str(caught.value)


def test_without_a_compiler_it_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs a C compiler, cc, which is not installed"):
        C().check(convolutional(), INPUTS)


def test_cores_that_are_asked_for_need_their_tools_before_training_and_others_are_left_out(
    tmp_path, monkeypatch, capsys
):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cc", "as", "ld"):
        if path := shutil.which(name):
            (tools / name).symlink_to(path)
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(UserError, match=r"gcc-arm-none-eabi.*qemu-system-arm"):
        C(emulate=["cortex_m4"]).check(convolutional(), INPUTS)
    assert not exported(tmp_path / "c", emulate=None).emulations
    said = " ".join(capsys.readouterr().err.split())
    assert "not run on emulated cores: apt-get install" in said and "gcc-arm-none-eabi" in said


def test_cores_kernels_and_items_of_the_emulations(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(exporter, "missing_tools", list)
    monkeypatch.setattr(exporter, "emulations", lambda *given: calls.append(given) or [])
    exported(tmp_path / "all", emulate=None)
    exported(tmp_path / "one", emulate=["cortex_m3"], emulated_items=2)
    exported(tmp_path / "none", emulate=[])
    assert [(cores, items) for _, _, cores, items, _, _ in calls] == [
        (["cortex_m4", "cortex_m7", "cortex_m55"], 8),
        (["cortex_m3"], 2),
    ]


@pytest.mark.skipif(REAL is None, reason="kws_pretrained is not in $EDGETRAIN_DATA")
@pytest.mark.parametrize("scheme", ["int8", "q7"])
def test_every_layer_of_a_trained_keyword_network_is_bit_exact(scheme, tmp_path, monkeypatch):
    """DS-CNN-S as its authors released it, on random inputs and saturated ones, under sanitizers."""
    from edgetrain.models.keyword_pretrained import keyword_pretrained

    monkeypatch.setenv("EDGETRAIN_DATA", str(REAL))
    network = keyword_pretrained("ds_cnn_s").eval()
    make = post_training if scheme == "int8" else power_of_two
    program = lower(make(network, INPUTS, Samples(SHAPE, 8)), INPUTS).program
    x = random_inputs(program, 4, 0)
    (ran,) = Bundle([program], 4, tmp_path).run("kernels.c", [x], [arenas(program)[OWN].bytes])
    assert not first_difference(program, ran.trace, expected(program, x))
