import sysconfig
from pathlib import Path

import pytest

from edgetrain.data.python_source import PythonSource, is_table, source_files, split_of


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return source_files(Path(sysconfig.get_paths()["stdlib"]))


def test_the_corpus_is_several_megabytes_of_code(files):
    assert {"argparse.py", "asyncio/tasks.py", "json/decoder.py"} <= files.keys()
    assert 5e6 < sum(map(len, files.values())) < 2e7


def test_packages_tests_and_tables_are_left_out(files):
    for path in files:
        *folders, name = path.split("/")
        assert not {"site-packages", "test", "tests", "idle_test"} & set(folders), path
        assert not name.startswith(("test_", "_sysconfigdata")), path
    assert not {"encodings/cp437.py", "encodings/koi8_r.py", "pydoc_data/topics.py", "html/entities.py"} & files.keys()


def test_paths_are_sorted_and_relative(files):
    assert list(files) == sorted(files)
    assert not any(path.startswith("/") or "\\" in path for path in files)


def test_a_table_is_a_file_of_literals():
    assert is_table("codes = [\n" + "'abc',  # one entry\n" * 20 + "]\n")
    assert not is_table('"""A long docstring of a module."""\n\n\ndef double(x):\n    return 2 * x\n')


def test_line_ends_and_place_do_not_change_the_corpus(tmp_path: Path):
    for folder, newline in (("a", "\n"), ("b", "\r\n")):
        path = tmp_path / folder / "package" / "module.py"
        path.parent.mkdir(parents=True)
        path.write_text("import os\nprint(os)\n", newline=newline)
    assert (
        source_files(tmp_path / "a") == source_files(tmp_path / "b") == {"package/module.py": "import os\nprint(os)\n"}
    )


def test_each_file_has_one_split_of_about_the_stated_share(files):
    count = {split: sum(split_of(path) == split for path in files) for split in ("train", "validation", "test")}
    assert sum(count.values()) == len(files)
    assert count["train"] > 0.85 * len(files)
    assert min(count.values()) > 0.02 * len(files)


def test_no_held_out_document_is_in_train():
    data = PythonSource(context=64, vocab_size=300, limit=40)
    data.setup()
    train, validation, test = (set(data.splits[name].keys.tolist()) for name in ("train", "validation", "test"))
    assert train.isdisjoint(validation | test) and validation.isdisjoint(test)
    facts = data.facts()
    assert facts["train"]["documents"] == 40
    assert 1 < facts["bytes_per_token"] < 4
