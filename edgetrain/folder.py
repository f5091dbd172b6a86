"""The run folder: everything needed to repeat, resume, judge and ship one run, and nothing elsewhere.

    outputs/<recipe>/<time>-<id>/
        config.yaml  environment.json  metrics.json  report.json  report.html  report.md
        tables/*.csv  figures/*.png  checkpoints/  logs/  export/<target>/
        study.json  runs/<variant>_seed<n>/  of a study: how to go on with it, and its runs, each a run folder
        sweep.json  trials.journal  results.csv  best.yaml  runs/trial<n>_seed<n>/  of a sweep, likewise
        search.json  runs/<network>_seed<n>/  of an architecture search, likewise

`report.json` is the ordered list of what the report shows. Whoever measures adds items to it (`add_table`,
`add_figure`, `add_tokens`); the report draws them without knowing the subject.
"""

import csv
import errno
import fcntl
import io
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from edgetrain.errors import UserError
from edgetrain.processes import is_first

Row = dict[str, Any]

LOCK = ".lock"
PART = ".part"  # ending of a file that is being written
UNKNOWN = Path(os.devnull)  # no folder, so that whatever is written into it by mistake fails


@contextmanager
def atomic(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is whole and on the disk, and not at all when anything goes wrong.

    keep: the name that the older file of that name, if there is one, is given at that moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PART, delete=False) as file:
        part = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.chmod(0o644)
            if keep is not None and path.exists():
                path.replace(keep)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises UserError when the disk or the folder refuses; the temporary file is removed.
    """
    try:
        with atomic(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder with out=DIR"
        ) from error


class RunFolder:
    """One run's folder. `create` makes a new one, `open` finds an old one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, recipe: str, out: str | None = None) -> "RunFolder":
        """A new, empty folder: `out`, or outputs/<recipe>/<time>-<id>. Never overwrites.

        Only the first process of a run makes one; the others are told its path when they have met (`jobs.processes`).
        Raises UserError when `out` holds files already or cannot be written.
        """
        if not is_first():
            return cls(UNKNOWN)
        path = Path(out) if out else _fresh(recipe)
        try:
            if path.exists() and (not path.is_dir() or any(entry.name != LOCK for entry in path.iterdir())):
                raise UserError(f"out={path} exists and is not an empty folder; choose a new one or use resume={path}")
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".probe"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {path}: {error.strerror}; choose another with out=DIR"
            ) from error
        return cls(path.resolve())

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run folder. Raises UserError when there is no config.yaml in it."""
        folder = Path(path)
        if not os.path.isfile(folder / "config.yaml"):  # False, where Path.is_file raises, for a name that is too long
            raise UserError(f"{folder} is not a run folder: there is no config.yaml in it")
        return cls(folder.resolve())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else trains into this folder meanwhile. Raises UserError that names who does.

        A POSIX record lock: it ends with its process, however that ends, and data workers do not inherit it. The first
        process of a run holds it for all of them.
        """
        if not is_first():
            yield
            return
        try:
            file = (self.path / LOCK).open("ab+", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write into the run folder {self.path}: {error.strerror}") from error
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.seek(0)
                    raise UserError(
                        f"{self.path} is in use by {file.read().decode().strip()}; wait until it ends, or stop it first"
                    ) from error
                # Any other error: this file system has no locks.
            file.truncate(0)
            with suppress(OSError):  # a full disk; the lock holds without its owner's name
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield

    def remove_parts(self) -> None:
        """Delete what killed writes left behind. Only for who holds the lock."""
        for path in self.path.rglob(f".*{PART}"):
            path.unlink(missing_ok=True)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: trained, measured and exported."""
        return bool(self.read_json("environment.json", {}).get("finished"))

    @property
    def is_study(self) -> bool:
        """Whether it holds many runs; a sweep is a study too."""
        return (self.path / "study.json").is_file() or self.is_sweep

    @property
    def is_sweep(self) -> bool:
        return (self.path / "sweep.json").is_file()

    @property
    def is_search(self) -> bool:
        """Whether it holds the networks that an architecture search trained."""
        return (self.path / "search.json").is_file()

    def child(self, variant: str | None, seed: int) -> "RunFolder":
        """Where a study's run of that variant and seed is, or will be; without a variant the name is the seed's."""
        return RunFolder(self.path / "runs" / "_".join(filter(None, [variant, f"seed{seed}"])))

    def write_json(self, name: str, value: Any) -> None:
        write_atomic(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str, default: Any = None) -> Any:
        """The parsed file, or `default` where there is none. Raises UserError when it does not parse."""
        path = self.path / name
        if not path.exists():
            return default
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"{path} is not valid JSON ({error}); the file was damaged, run the command that made it again"
            ) from error

    def update_metrics(self, metrics: Row) -> None:
        """Merge into metrics.json; a name measured again replaces the old value."""
        self.write_json("metrics.json", self.read_json("metrics.json", {}) | metrics)

    def read_table(self, name: str) -> list[dict[str, str]]:
        """Rows of tables/<name>.csv, every value as text."""
        with (self.path / "tables" / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def new_log_part(self) -> Path:
        """logs/part_<n>, not there yet: a resumed run logs into a part of its own, so that no older line is lost."""
        return self.path / "logs" / f"part_{len(list((self.path / 'logs').glob('part_*')))}"

    def training_curves(self) -> list[tuple[int, dict[str, float]]]:
        """Logged scalars of all parts as (step, values); from the step where a later part begins, it holds."""
        rows: list[tuple[int, dict[str, float]]] = []
        for path in sorted((self.path / "logs").glob("part_*/metrics.csv"), key=lambda path: int(path.parent.name[5:])):
            with path.open(newline="") as file:
                part = [scalars(row) for row in csv.DictReader(file)]
            part = [(int(row.pop("step")), row) for row in part if "step" in row]
            if part:
                rows = [row for row in rows if row[0] < part[0][0]] + part
        return rows

    # What the report shows, in order. An item of the same name replaces the older one in place.

    def write_table(self, name: str, rows: list[Row]) -> None:
        """Write tables/<name>.csv without showing it in the report."""
        text = io.StringIO()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path / "tables" / f"{name}.csv", text.getvalue())

    def add_table(self, name: str, rows: list[Row], title: str, caption: str = "", grey: str | None = None) -> None:
        """Write tables/<name>.csv. Rows whose column `grey` is true are greyed in the report, without that column."""
        self.write_table(name, rows)
        self._add_item({"kind": "table", "name": name, "title": title, "caption": caption, "grey": grey})

    def add_figure(self, name: str, png: bytes, title: str, caption: str = "") -> None:
        """Write figures/<name>.png."""
        write_atomic(self.path / "figures" / f"{name}.png", png)
        self._add_item({"kind": "figure", "name": name, "title": title, "caption": caption})

    def add_spans(
        self, name: str, spans: list[tuple[str, str]], legend: dict[str, str], title: str, caption: str = ""
    ) -> None:
        """Coloured running text: spans are (text, style), styles plain, good, bad and note; `legend` explains them."""
        item = {"kind": "spans", "name": name, "title": title, "caption": caption}
        self._add_item(item | {"spans": [list(span) for span in spans], "legend": legend})

    def remove_items(self, prefix: str) -> None:
        """Take the tables and figures whose names begin so out of the report, with their files."""
        items = self.report_items()
        kept = [item for item in items if not item["name"].startswith(prefix)]
        if kept != items:
            self.write_json("report.json", kept)
        for path in (*self.path.glob(f"tables/{prefix}*.csv"), *self.path.glob(f"figures/{prefix}*.png")):
            path.unlink()

    def report_items(self) -> list[Row]:
        return self.read_json("report.json", [])

    def _add_item(self, item: Row) -> None:
        items = self.report_items()
        same = [i for i, old in enumerate(items) if (old["kind"], old["name"]) == (item["kind"], item["name"])]
        if same:
            items[same[0]] = item
        else:
            items.append(item)
        self.write_json("report.json", items)


def _fresh(recipe: str) -> Path:
    """outputs/<recipe>/<time>-<id>, which was not there before: two runs may start in the same second."""
    while True:
        path = Path("outputs") / recipe / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        if not path.exists():
            return path


def scalars(row: dict[str, str | None]) -> dict[str, float]:
    """The numbers of one logged line; what does not parse is left out, as a killed run may cut its last line short."""
    numbers = {}
    for name, text in row.items():
        with suppress(TypeError, ValueError):
            numbers[name] = float(text)
    return numbers
