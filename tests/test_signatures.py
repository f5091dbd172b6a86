"""What a target accepts is read from its source; importing is the last resort."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgetrain.annotations import fits
from edgetrain.errors import UserError
from edgetrain.signatures import Parameter, home, signature

MODULE = """
raise RuntimeError("this module was imported")
import torch
from dataclasses import dataclass, field
from typing import ClassVar
from .parts import Base as Parent, make
from .parts import *

class Child(Parent):
    def forward(self, x): ...

class Own(Parent):
    def __init__(self, width: int, *, name: "str" = "a", depth: int = None): ...

class Open(Parent):
    def __init__(self, width: int, **others): ...

class HandingOn(Own):
    def __init__(self, depth: str, extra: int = 0, **others):
        super().__init__(3, name="x", **others)

class Keeping(Own):
    def __init__(self, **others):
        self.others = others
        super().__init__(3, **others)

class Further(HandingOn):
    def __init__(self, **others):
        super().__init__(**others)

class Orphan:
    def __init__(self, width: int, **others):
        super().__init__(**others)

@dataclass
class Settings:
    rate: float
    kind: ClassVar[str] = "x"
    names: list[str] = field(default_factory=list)
    hidden: int = field(init=False, default=0)

@dataclass
class More(Settings):
    extra: bool = False

class Loaded(Parent):
    @classmethod
    def from_file(cls, path: str): ...
    @staticmethod
    def plain(x: int): ...

Renamed = Own
if True:
    class Guarded:
        pass
"""

PARTS = """
class Base:
    def __init__(self, size: int, rate: float = 0.1): ...
    @classmethod
    def inherited(cls, flag: bool): ...
def make(kind: str, count: int = 1): ...
class Starred: ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "signed"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "things.py").write_text(MODULE)
    (folder / "parts.py").write_text(PARTS)
    (folder / "lazy.py").write_text("def __getattr__(name):\n    return lambda size: size\n")
    (folder / "broken.py").write_text("import not_there\nglobals()\n")
    (folder / "syntax.py").write_text("class A:\n  def\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("signed")]:
        del sys.modules[name]


def names(target: str) -> list[str]:
    return list(signature(target).parameters)


def test_parameters_are_read_without_running_the_module(package: None) -> None:
    own = signature("signed.things.Own")
    assert own.parameters == {
        "width": Parameter("int", True),
        "name": Parameter("str", False),
        "depth": Parameter("int | None", False),
    }
    assert not own.open_ended
    assert "signed" not in sys.modules


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("signed.things.Child", ["size", "rate"]),
        ("signed.things.Parent", ["size", "rate"]),
        ("signed.things.make", ["kind", "count"]),
        ("signed.things.Renamed", ["width", "name", "depth"]),
        ("signed.things.Guarded", []),
        ("signed.things.Starred", []),
        ("signed.things.Settings", ["rate", "names"]),
        ("signed.things.More", ["rate", "names", "extra"]),
        ("signed.things.Loaded.from_file", ["path"]),
        ("signed.things.Loaded.plain", ["x"]),
        ("signed.things.Loaded.inherited", ["flag"]),
    ],
)
def test_inheritance_reexports_dataclasses_and_methods_are_followed(
    package: None, target: str, expected: list[str]
) -> None:
    assert names(target) == expected


def test_a_target_with_keyword_arguments_is_open_ended(package: None) -> None:
    assert signature("signed.things.Open").open_ended


def test_keywords_that_are_handed_on_are_the_next_classs_parameters(package: None) -> None:
    handed = signature("signed.things.HandingOn")
    assert handed.parameters == {"depth": Parameter("str", True), "extra": Parameter("int", False)}
    assert not handed.open_ended
    assert signature("signed.things.Further") == handed
    assert signature("signed.things.Keeping").open_ended  # what else happens to them nobody knows
    assert list(signature("signed.things.Orphan").parameters) == ["width"]


def test_what_cannot_be_read_is_imported(package: None) -> None:
    assert names("signed.lazy.Anything") == ["size"]
    assert "signed.lazy" in sys.modules


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("signed.things.Chidl", "did you mean 'Child'"),
        ("signed.thing.Child", "did you mean 'things'"),
        ("signed.things.Loaded.from_fil", "did you mean 'from_file'"),
        ("signed.things.make.part", "is a function"),
        ("not_installed_package.Thing", "no package 'not_installed_package' is installed"),
        ("signed.broken.Thing", "cannot import signed.broken: No module named 'not_there'"),
        ("signed.syntax.Thing", "syntax.py:2"),
        ("Thing", "not a dotted path"),
        ("signed..Thing", "not a dotted path"),
    ],
)
def test_an_unknown_target_is_a_sentence_with_the_nearest_name(package: None, target: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        signature(target)
    assert message in str(error.value)


def test_home_sees_through_reexports_and_never_imports(package: None) -> None:
    assert home("signed.things.Parent") == "signed.parts"
    assert home("signed.broken.Thing") is None
    assert home("edgetrain.folder.os.remove") is None
    assert home("edgetrain.folder.UserError") == "edgetrain.errors"


def test_a_changed_file_is_read_again(package: None, tmp_path: Path) -> None:
    path = tmp_path / "signed" / "parts.py"
    assert names("signed.parts.make") == ["kind", "count"]
    path.write_text("def make(other: str): ...")
    assert names("signed.parts.make") == ["other"]


def test_library_targets_are_read_without_importing_torch() -> None:
    script = """
import sys
from edgetrain.signatures import signature
assert {"lr", "betas"} < signature("torch.optim.AdamW").parameters.keys()
assert "max_steps" in signature("lightning.pytorch.Trainer").parameters
assert "save_dir" in signature("lightning.pytorch.loggers.CSVLogger").parameters
assert signature("timm.create_model").open_ended
for target in ("torch.nn.Linaer", "torch.optm.AdamW"):
    try:
        signature(target)
    except Exception as error:
        assert "did you mean" in str(error), error
assert not {"torch", "lightning", "timm"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, "int", True),
        (True, "int", False),
        (1.0, "int", False),
        (1, "float", True),
        (True, "float", False),
        ("1e-3", "float", False),
        (True, "bool", True),
        (0, "bool", False),
        ("a", "str", True),
        (1, "str", False),
        (None, "str", False),
        (None, "str | None", True),
        (None, "Optional[int]", True),
        ("a", "Union[int, str]", True),
        ("a", "typing.Union[int, float]", False),
        ([1, 2], "list[int]", True),
        ([1, "a"], "list[int]", False),
        ("ab", "list[str]", False),
        ({"a": 1}, "dict[str, int]", True),
        ({"a": "b"}, "dict[str, int]", False),
        ([0.9, 0.95], "tuple[float, float]", True),
        ([0.9], "tuple[float, float]", False),
        ([1, 2, 3], "tuple[int, ...]", True),
        ("a", "Literal['a', 'b']", True),
        ("c", "Literal['a', 'b']", False),
        ("data/x", "Path", True),
        (3, "pathlib.Path", False),
        ("abc", "float | Tensor", False),
        ("abc", "float | 'str'", True),
        (object(), "SomethingElse", True),
        ([1], "SomethingElse[int]", True),
        ({"_target_": "a.B"}, "int", True),
        ([{"_target_": "a.B"}], "list[int]", True),
        (1, None, True),
        (1, "not python (", True),
    ],
)
def test_values_are_compared_with_annotations(value: object, annotation: str | None, expected: bool) -> None:
    assert fits(value, annotation) is expected
