"""Whatever is typed, the checker answers with a configuration or with sentences: no other exception, and in time."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgetrain.compose import compose
from edgetrain.config import GROUPS, Config
from edgetrain.errors import UserError

SECONDS = 20  # for one configuration, of which a busy machine needs a tenth

KNOWN = [
    "recipe",
    "variant",
    "seed",
    "seeds",
    "variants",
    "smoke",
    "claims",
    "claims.0.metric",
    "trust",
    "out",
    "resume",
    "init_from",
    "description",
    "job.checkpoint_minutes",
    "data.path",
    "data.context",
    "data.seed",
    "model.dim",
    "model.rope_theta",
    "method.layerskip",
    "method.layerskip.p_max",
    "method.layerskip.curriculum",
    "method.layerskip._target_",
    "optimizer._target_",
    "optimizer.lr",
    "task.schedule",
    "trainer.max_steps",
    "trainer.callbacks",
    "measure.exits.batches",
    "export.huggingface",
    "logger.csv._target_",
    *GROUPS,
]
OPTIONS = ["llama", "text", "python_source", "layerskip", "lora", "exits", "csv", "adamw", "fit", "default", "timm"]
TARGETS = [
    "os.system",
    "builtins.eval",
    "torch.optim.AdamW",
    "edgetrain.models.llama.Llama",
    "no.such.Thing",
    "os",
    ".",
]
AWKWARD = [
    "",
    "null",
    "???",
    "~",
    "nan",
    "-inf",
    "1e999",
    "-0",
    "0x10",
    "1_000",
    "9" * 400,
    "true",
    "[]",
    "{}",
    "[[[[[]]]]]",
    "{a:{b:{c:{d:1}}}}",
    "{1:2,null:3,true:4}",
    "{_target_:os.system,command:ls}",
    "[{_target_:builtins.eval}]",
    "${seed}",
    "${data.num_classes}",
    "${nowhere}",
    "${oc.env:HOME}",
    "${oc.decode:x}",
    "${oc.env:}",
    "${",
    "${${seed}}",
    "${data}",
    "${.path}",
    "${..seed}",
    "a,b",
    "choice(1,2)",
    "range(1,9)",
    "glob(*)",
    "interval(0,1)",
    "sort(3,1)",
    "'",
    '"',
    "'a, b'",
    "\\",
    "a b",
    "a=b",
    "\t",
    "\n",
    "\x00",
    "\u202e",
    "ключ",
    "🙂",
    "{",
    "[1,",
    "(",
    "*",
    "&a",
    "!!python/object/apply:os.system [ls]",
]

words = st.text(st.characters(codec="utf-8"), max_size=8)
keys = st.one_of(
    st.sampled_from(KNOWN),
    st.sampled_from(KNOWN).flatmap(
        lambda key: st.sampled_from(["x", "0", "_target_", "a.b.c", "", "."]).map(f"{key}.{{}}".format)
    ),
    st.sampled_from(
        ["hydra", "hydra.run.dir", "defaults", "a/b", "model@x", "model:y", "", ".", "..", "_self_", "0", "-1"]
    ),
    words,
)
flat = st.one_of(
    st.sampled_from(AWKWARD),
    st.sampled_from(OPTIONS),
    st.sampled_from(TARGETS),
    st.integers().map(str),
    st.floats().map(str),
    words,
)
values = st.recursive(
    flat,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.lists(st.tuples(words, inner), max_size=3).map(
            lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items) + "}"
        ),
    ),
    max_leaves=5,
)
wild = st.one_of(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "", "", "+", "++", "~"]),
        keys,
        st.sampled_from(["=", "=", "=", ""]),
        values,
    ),
    words,
)
tame = st.builds(
    "{}{}={}".format,
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.sampled_from(KNOWN),
    st.one_of(
        st.sampled_from([value for value in AWKWARD if re.fullmatch(r"[\w${}\[\]:.,~?-]*", value)] + OPTIONS + TARGETS),
        st.integers().map(str),
        st.floats().map(str),
        st.lists(st.sampled_from(OPTIONS), max_size=2).map(lambda names: f"[{','.join(names)}]"),
    ),
)
command_lines = st.one_of(
    st.lists(tame, min_size=1, max_size=3), st.lists(st.one_of(tame, wild), min_size=1, max_size=4)
)

plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), words, st.sampled_from(AWKWARD + OPTIONS + TARGETS)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(words, st.sampled_from(["_target_", "_args_", "_partial_", "_convert_"])), inner, max_size=3
        ),
    ),
    max_leaves=6,
)
bodies = st.dictionaries(
    st.one_of(st.sampled_from([*GROUPS, "defaults", "smoke", "variants", "claims", "seed"]), words), plain, max_size=5
)


@contextmanager
def in_time() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answers(*arguments: object, **settings_: object) -> None:
    with in_time():
        try:
            assert isinstance(compose(*arguments, **settings_), Config)
        except UserError as error:
            assert str(error).strip()


def many(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@many(120)
@given(command_lines, st.booleans())
def test_any_command_line(texts: list[str], smoke: bool) -> None:
    answers(texts, smoke)


@pytest.mark.slow
@many(10_000)
@given(command_lines, st.booleans())
def test_any_of_ten_thousand_command_lines(texts: list[str], smoke: bool) -> None:
    answers(texts, smoke)


@many(60)
@given(bodies)
def test_any_recipe(tmp_path_factory: pytest.TempPathFactory, body: dict) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "any.yaml"
    path.write_text(yaml.safe_dump(body, allow_unicode=True))
    answers([f"recipe={path}"])


@many(60)
@given(bodies)
def test_any_saved_configuration(body: dict) -> None:
    answers([], base=body)


@pytest.mark.parametrize(
    ("texts", "base"),
    [
        (["seeds.a.b.c="], None),
        (["trust=1", "method.layerskip._target_=os.system"], {}),
        (["trust=os.system", "method.layerskip._target_=os.system"], {}),
        ([], {"seed": {"a": ["${"]}}),
        (["seed={_target_:os.system}"], None),
        (["recipe=" + "9" * 400], None),
        (["recipe=" + "9" * 400 + ".yaml"], None),
    ],
    ids=[
        "a key of a list",
        "trust that is no list",
        "trust that is text",
        "half an interpolation",
        "a node as a seed",
        "a long name",
        "a long path",
    ],
)
def test_what_was_found_to_be_trusted_or_a_traceback_is_a_sentence(texts: list[str], base: dict | None) -> None:
    with pytest.raises(UserError):
        compose(texts, base=base)
