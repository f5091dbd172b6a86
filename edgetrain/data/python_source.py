"""The running Python's own standard library as a corpus: real code that is on every machine, no download.

What is left out, so that the text is code that people wrote:
- installed packages and the test suites (folders `site-packages`, `dist-packages`, `test`, `tests`, `idle_test` and
  files `test_*.py`);
- what differs between two machines: `_sysconfigdata*`, `sitecustomize.py`, `usercustomize.py` and the folder
  `config-*`, which hold the build's paths and flags;
- tables: files of which more than half of the characters stand on lines that begin with a string or a number (the
  code pages of `encodings`, `pydoc_data/topics.py`, `html/entities.py` and their like).

A file belongs to test, validation or train (5, 5 and 90 %) by the sha256 of its path, so two Pythons of one patch
version give the same corpus, and a file keeps its split when Python is updated.
Licence of the text: Python Software Foundation License, version 2.
"""

import re
import sysconfig
from hashlib import sha256
from pathlib import Path

from datasets import Dataset

from edgetrain.data.text import TextData

FOLDERS_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
FILES_LEFT_OUT = re.compile(r"test_.*|_sysconfigdata.*|sitecustomize\.py|usercustomize\.py")
TABLE_LINE = re.compile(r"""\s*[bru]?('(?!'')|"(?!"")|[0-9])""")  # a string (not a docstring) or a number


def is_table(text: str) -> bool:
    """Whether more than half of the characters stand on lines that begin with a string or number literal."""
    return 2 * sum(len(line) for line in text.splitlines() if TABLE_LINE.match(line)) > len(text)


def source_files(root: Path) -> dict[str, str]:
    """Text of each file that is kept, by its path below `root` with forward slashes, in sorted order."""
    files = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if FOLDERS_LEFT_OUT & set(parts) or parts[0].startswith("config-") or FILES_LEFT_OUT.fullmatch(path.name):
            continue
        try:
            text = path.read_text(encoding="utf-8")  # newlines become "\n"
        except UnicodeDecodeError:
            continue  # a handful of files declare another encoding
        if text and not is_table(text):
            files["/".join(parts)] = text
    return dict(sorted(files.items()))


def split_of(path: str) -> str:
    """train, validation or test, by the sha256 of a file's path."""
    bucket = int(sha256(path.encode()).hexdigest()[:8], 16) % 100
    return "test" if bucket < 5 else "validation" if bucket < 10 else "train"


class PythonSource(TextData):
    """Source files of the standard library; the arguments are TextData's."""

    def __init__(
        self,
        *,
        context: int = 256,
        batch_size: int = 16,
        vocab_size: int = 2048,
        tokenizer: str | None = None,
        seed: int = 0,
        limit: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(
            path="python_source",
            context=context,
            batch_size=batch_size,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            seed=seed,
            limit=limit,
            workers=workers,
        )

    def load_splits(self) -> dict[str, Dataset]:
        texts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for path, text in source_files(Path(sysconfig.get_paths()["stdlib"])).items():
            texts[split_of(path)].append(text)
        return {split: Dataset.from_dict({"text": documents}) for split, documents in texts.items()}
