import shutil
import subprocess

import numpy as np
import pytest
import torch
from c_bundle import CSRC, SANITIZED, STRICT, needs_cc
from integer_programs import input_shape, random_inputs, random_network, random_program

from edgetrain.errors import UserError
from edgetrain.export.c import host
from edgetrain.export.c.host import HostProgram, compiler_version
from edgetrain.export.c.source import model_files, renamed
from edgetrain.models.integer import IntegerNetwork
from edgetrain.ops import int8


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "OPTIMISATION", ("-O1",))
        yield


def write(program, folder, name="model", labels=()):
    """An exported folder without the exporter."""
    folder.mkdir(exist_ok=True)
    files = model_files(program, name, labels)
    for path in CSRC.glob("*.[ch]"):
        files[path.name] = renamed(path.read_text(), name)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def sanitized(program, folder, *flags):
    """main, with its sanitizers on."""
    write(program, folder)
    sources = [folder / each for each in host.SOURCES]
    subprocess.run(["cc", *STRICT, *SANITIZED, *flags, *sources, "-lm", "-o", folder / "main"], check=True)
    return folder / "main"


def said(command, given=b""):
    return subprocess.run([str(word) for word in command], input=given, capture_output=True)


@needs_cc
@pytest.mark.parametrize("scheme", ["int8", "q7"])
def test_floats_in_give_the_logits_of_python_to_the_bit(scheme, tmp_path):
    for seed in range(2):
        network = random_network(seed, scheme)
        program = HostProgram(write(network.program, tmp_path / f"{seed}"))
        scale = network.program.values["input"].scale
        x = torch.randn(50, *network.input_shape, generator=torch.Generator().manual_seed(seed)) * 80 * scale
        assert torch.equal(program(x), network(x))
        assert torch.equal(program(x.transpose(0, 1).contiguous().transpose(0, 1)), network(x))


@needs_cc
def test_the_program_is_gone_with_its_object_and_the_folder_stays_as_it_was(tmp_path):
    folder = write(random_program(0), tmp_path / "c")
    before = sorted(folder.iterdir())
    program = HostProgram(folder)
    path = program.path
    assert path.exists() and sorted(folder.iterdir()) == before
    del program
    assert not path.exists()


@needs_cc
def test_a_front_end_stands_before_the_network(tmp_path):
    network = random_network(3)
    doubled = torch.nn.Module()
    doubled.forward = lambda x: 2 * x
    x = torch.randn(5, *network.input_shape)
    assert torch.equal(HostProgram(write(network.program, tmp_path / "c"), doubled)(x), network(2 * x))


@needs_cc
def test_what_does_not_compile_is_one_sentence_with_the_compilers_first_error(tmp_path):
    folder = write(random_program(0), tmp_path / "c")
    (folder / "model.c").write_text("int unfinished(\n")
    with pytest.raises(UserError, match=r"does not compile: .*model.c:1.*error.*; export again") as caught:
        HostProgram(folder)
    assert "\n" not in str(caught.value)


@needs_cc
def test_a_program_that_fails_is_one_sentence_with_what_it_said(tmp_path):
    folder = write(random_program(0), tmp_path / "c")
    text = (folder / "model.c").read_text()
    (folder / "model.c").write_text(text.replace("_init(void)\n{\n", "_init(void)\n{\n    return 2;\n", 1))
    with pytest.raises(UserError, match="the exported network failed: layer 1 needs more scratch memory"):
        HostProgram(folder)(torch.zeros(1, *input_shape(random_program(0))))


def test_without_a_compiler_the_sentence_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs a C compiler, cc, which is not installed; apt-get install gcc"):
        HostProgram(tmp_path)


@needs_cc
def test_a_folder_without_its_header_says_so(tmp_path):
    with pytest.raises(UserError, match=r"model.h is missing or was damaged; copy the whole folder again"):
        HostProgram(tmp_path)


@needs_cc
def test_the_compiler_says_its_version():
    assert any(character.isdigit() for character in compiler_version())


@needs_cc
def test_main_prints_label_and_probability_of_each_input(tmp_path):
    program = random_program(6)
    classes = program.values[program.output].bytes
    labels = [f"word{index}" for index in range(classes)]
    folder = write(program, tmp_path / "c", "kws", labels)
    sources = [folder / each for each in host.SOURCES]
    subprocess.run(["cc", *STRICT, *sources, "-lm", "-o", folder / "main"], check=True)
    x = random_inputs(program, 5, 0)
    (folder / "inputs").write_bytes(x.numpy().tobytes())
    network = IntegerNetwork(program, input_shape(program))
    logits = network.run(x)[program.output].flatten(1)
    output = program.values[program.output]
    probabilities = int8.softmax(logits, *int8.softmax_multiplier(output.scale)).int()
    wanted = [
        f"{labels[row.argmax()]} {(share[row.argmax()].item() + 128) / 256:.3f}"
        for row, share in zip(logits, probabilities, strict=True)
    ]
    from_file = said([folder / "main", "--int8", folder / "inputs"])
    assert from_file.stdout.decode().splitlines() == wanted
    assert said([folder / "main", "--int8"], x.numpy().tobytes()).stdout == from_file.stdout
    raw = said([folder / "main", "--int8", "--raw", folder / "inputs"]).stdout
    assert raw == logits.numpy().tobytes()


@needs_cc
def test_main_refuses_what_it_cannot_read(tmp_path):
    program = random_program(6)
    main = sanitized(program, tmp_path / "c")
    size = program.values["input"].bytes
    cut = said([main, "--raw"], bytes(4 * size + 3))
    assert cut.returncode == 1 and len(cut.stdout) == program.values[program.output].bytes
    assert cut.stderr.decode() == f"the last input has 3 bytes, not {4 * size}\n"
    assert said([main, tmp_path / "none"]).stderr.decode() == f"cannot read {tmp_path / 'none'}\n"
    assert said([main, tmp_path]).returncode == 1  # a folder
    assert said([main, "--fast"]).stderr.startswith(b"usage: main [--int8] [--raw] [FILE]")
    assert said([main, "a", "b"]).returncode == 1
    nothing = said([main])
    assert (nothing.returncode, nothing.stdout) == (0, b"")


def check_random_inputs(networks, items, folder):
    """Under sanitizers, floats of every size and kind among them, against Python."""
    draw = torch.Generator().manual_seed(5)
    for seed in range(networks):
        network = random_network(seed, ("int8", "q7")[seed % 2])
        main = sanitized(network.program, folder / f"{seed}")
        done = 0
        while done < items:
            count = min(10_000, items - done)
            x = torch.randn(count, *network.input_shape, generator=draw)
            x *= network.program.values["input"].scale * 10 ** torch.empty_like(x).uniform_(-2, 4, generator=draw)
            flat = x.view(count, -1)
            flat[:3, 0] = torch.tensor([float("nan"), float("inf"), -float("inf")])
            ran = said([main, "--raw"], x.numpy().tobytes())
            assert ran.returncode == 0, ran.stderr.decode()[:2000]
            found = torch.from_numpy(np.frombuffer(ran.stdout, np.int8).copy()).reshape(count, -1)
            assert torch.equal(found, network.run(network.quantize(x))[network.program.output].flatten(1))
            done += count
        shutil.rmtree(folder / f"{seed}")


@needs_cc
def test_thousands_of_random_inputs_run_clean_under_sanitizers(tmp_path):
    check_random_inputs(2, 2000, tmp_path)


@needs_cc
@pytest.mark.slow
def test_a_million_random_inputs_run_clean_under_sanitizers(tmp_path):
    check_random_inputs(50, 20_000, tmp_path)
