"""Fixtures that every test may use: an empty place to work in, and runs small enough for a test."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetrain.folder import RunFolder

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: small products are fastest on one thread

ROOT = Path(__file__).resolve().parent.parent

# A language run of a second or two on the documents of `small_texts`.
SMALL = [
    "data=text",
    "data.path=texts",
    "data.context=32",
    "data.batch_size=4",
    "data.vocab_size=300",
    "model.dim=32",
    "model.layers=4",
    "model.heads=2",
    "model.kv_heads=1",
    "model.hidden_dim=64",
    "method.layerskip.rotation=3",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=1",
    "trainer.enable_progress_bar=false",
    "task.warmup_steps=2",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    # Starts autograd's threads before torch.export registers more devices: no fork could run backward after that.
    torch.ones(1, requires_grad=True).backward()
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenizers and packed tokens of the whole test session, away from the user's own."""
    os.environ["EDGETRAIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def write_texts(folder: Path, documents: int = 40) -> Path:
    """A folder of small, compressible, distinct documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(documents):
        lines = [f"def function_{index}_{line}(value):\n    return value + {index * line}\n" for line in range(40)]
        (folder / f"part_{index:02}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with `texts/` in it."""
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts")
    return tmp_path


@pytest.fixture
def edgetrain(workplace: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, standard output, standard error."""
    from edgetrain.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(list(arguments))
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A small finished LayerSkip run, shared by the tests that only read it."""
    from edgetrain.cli import main

    place = tmp_path_factory.mktemp("finished")
    write_texts(place / "texts")
    here = Path.cwd()
    os.chdir(place)
    try:
        overrides = [*SMALL, "data.path=" + str(place / "texts"), "measure=[exits]", "out=" + str(place / "run")]
        assert main(["run", "recipe=layerskip_llama", *overrides]) == 0
    finally:
        os.chdir(here)
    return RunFolder.open(place / "run")
