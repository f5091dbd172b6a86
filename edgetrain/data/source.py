"""Finds a set by name and reads its splits through `datasets.load_dataset`, at once or as a stream of tables.

A relative name is looked for as $EDGETRAIN_DATA/<name>, then as a local path, then on the Hugging Face hub
(`owner/name`, or `owner/name:configuration` for a set that has several).
"""

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from edgetrain.errors import UserError, listing, nearest

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}  # others: text
TEXT_SUFFIXES = {".txt", ".json", ".jsonl", ".csv", ".tsv"}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
TEXT = ("string", "large_string")  # arrow types
READING = (OSError, ValueError, DatasetsError, pa.ArrowException)  # what a set that cannot be read raises
PROBE_SECONDS = 5.0
LARGEST_TEXT = 2**28  # bytes; a plain text file is one document, which a stream holds in memory


def read_splits(path: str, column: str) -> dict[str, Dataset]:
    """As `text_splits`. Raises UserError, naming `path`, also when the set lacks a train split."""
    splits = text_splits(path, column)
    _check_train(splits, path)
    return splits


def text_splits(path: str, column: str) -> dict[str, Dataset]:
    """Each split of the set as a dataset with the one column "text".

    Raises UserError, naming `path`, when nothing readable is there, when the text is not UTF-8, and when the set lacks
    the column.
    """
    local = find_local(path)
    try:
        loaded = _load_local(local) if local else _load_hub(path)
        return {name: _only_text(split, path, column) for name, split in loaded.items()}
    except READING as error:
        raise UserError(f"data.path={path}{_reason(error, local)}") from error


def read_columns(path: str, columns: dict[str, str], kind: str = "audio") -> dict[str, Dataset]:
    """Each split of the set with the columns that keys of `data` name, by {key: column}; media are not decoded.

    kind: audio or image, for messages. Raises UserError as `read_splits` does.
    """
    local = find_local(path)
    try:
        loaded = _load_local(local) if local else _load_hub(path)
    except (*READING, ImportError) as error:  # datasets wants FFmpeg for a hub's folder of files
        raise UserError(
            f"data.path={path}{_reason(error, local, f'a folder of {kind} files, parquet files')}"
        ) from error
    return with_columns(loaded, path, columns)


def with_columns(splits: dict[str, Dataset], path: str, columns: dict[str, str]) -> dict[str, Dataset]:
    """The columns of `read_columns` alone. Raises UserError for one that a split lacks, and without a train split."""
    _check_train(splits, path)
    read = {}
    for name, split in splits.items():
        for key, column in columns.items():
            _check_present(split.features, path, key, column)
        read[name] = split.select_columns(list(dict.fromkeys(columns.values())))
        for column, feature in read[name].features.items():
            if isinstance(feature, datasets.Audio | datasets.Image):
                read[name] = read[name].cast_column(column, type(feature)(decode=False))
    return read


@dataclass(frozen=True)
class Stream:
    """One split, read table by table: never whole in memory, never copied to disk.

    files: what it is read from; a file is read from its beginning. fingerprint: of the names and sizes of the set's
    files, or its commit on the hub. version: the same and the times of the files, for what is cached.
    """

    rows: IterableDataset
    path: str
    local: Path | None
    fingerprint: str
    version: str

    @property
    def files(self) -> int:
        return self.rows.num_shards

    def tables(self, file: int, rows: int, first: int = 0) -> Iterator[pa.Table]:
        """The one column of a file in tables of `rows` rows, from table `first` on.

        Raises UserError that names the set when the file cannot be read.
        """
        try:
            for table in islice(self.rows.shard(self.files, file).iter(rows), first, None):
                table.validate(full=True)  # JSON is not checked for UTF-8 on reading
                yield table
        except READING as error:
            raise UserError(f"data.path={self.path}{_reason(error, self.local)}") from error


def read_streams(path: str, column: str, types: tuple[str, ...]) -> dict[str, Stream]:
    """Each split of the set as a stream of its one column, which is of one of the arrow `types`.

    Raises UserError as `read_splits` does, and for a plain text file too large to be one document.
    """
    local = find_local(path)
    try:
        loaded = _load_local(local, streaming=True) if local else _load_hub(path, streaming=True)
        rows = {name: _one_column(split, path, column, types) for name, split in loaded.items()}
        prints = [fingerprint(path, local, times) for times in (False, True)]
    except READING as error:
        raise UserError(f"data.path={path}{_reason(error, local)}") from error
    _check_train(rows, path)
    return {name: Stream(split, path, local, *prints) for name, split in rows.items()}


def _check_train(splits: dict[str, Any], path: str) -> None:
    if "train" not in splits:
        raise UserError(
            f"data.path={path} has no train split, only {listing(splits)}; name a file train.*, or give one file"
        )


def fingerprint(path: str, local: Path | None, times: bool) -> str:
    """Of the names and sizes of the set's files, and with `times` of their times; on the hub its commit."""
    if local is None:
        return str(HfApi().dataset_info(path.partition(":")[0], timeout=PROBE_SECONDS).sha)
    files = [(str(file.relative_to(local)), file.stat()) for file in _files(local)]
    rows = [(name, stat.st_size, stat.st_mtime_ns if times else 0) for name, stat in files]
    return sha256(repr(rows).encode()).hexdigest()


def find_local(path: str) -> Path | None:
    """The file or folder that `path` names, or None where it can only be a hub name.

    Raises UserError for an absolute or dotted path that does not exist and for an empty folder.
    """
    shared = os.environ.get("EDGETRAIN_DATA")
    places = [Path(shared).expanduser() / path] if shared else []
    places.append(Path(path).expanduser())
    found = next((place for place in places if place.exists()), None)
    looked = " and ".join(str(place) for place in places)
    if found is None and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"data.path={path} does not exist (looked for {looked}); give a file, a folder or a hub name")
    if found and found.is_dir() and not any(entry.is_file() for entry in found.rglob("*")):
        raise UserError(f"data.path={path}: the folder {found} is empty; put text, jsonl, csv or parquet files there")
    return found


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _suffix(file: Path) -> str:
    """What kind of file it is, compressed or not: .jsonl of a.jsonl.gz."""
    return Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix


def _load_local(path: Path, **options: Any) -> dict[str, Any]:
    files = _files(path)
    if not any(_suffix(file) in BUILDERS for file in files):
        options["sample_by"] = "document"  # a text file is one document, not one a line
        large = [file for file in files if options.get("streaming") and file.stat().st_size > LARGEST_TEXT]
        if large:
            raise UserError(
                f"data.path={path}: {large[0]} is plain text, which is one document, and larger than a stream holds in"
                f" memory ({LARGEST_TEXT // 2**20} MiB); split it into files, or write a document a line of jsonl"
            )
    if path.is_dir():
        return load_dataset(str(path), **options)
    if _suffix(path) == ".tsv":
        options["sep"] = "\t"
    return load_dataset(BUILDERS.get(_suffix(path), "text"), data_files=str(path), **options)


def _load_hub(path: str, **options: Any) -> dict[str, Any]:
    name, _, configuration = path.partition(":")
    try:
        HfApi().dataset_info(name, timeout=PROBE_SECONDS)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"data.path={path} is neither a local file or folder nor a Hugging Face data set that you may read;"
            " check the spelling, or run `hf auth login` for a private one"
        ) from error
    except Exception as error:
        # No network. The hub's errors for that differ between versions of its HTTP library, hence the wide net.
        # Asked first because load_dataset itself retries for half a minute before it looks into its cache.
        cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
        if not cached.is_dir():
            raise UserError(
                f"data.path={path} is not a local file or folder, and the Hugging Face hub cannot be reached;"
                " check the spelling or the network, or set EDGETRAIN_DATA to the folder that holds it"
            ) from error
    return load_dataset(name, configuration or None, **options)


def _only_text(split: Dataset, path: str, column: str) -> Dataset:
    _check_column(split.features, path, column, TEXT)
    split = split.select_columns([column])
    split.data.column(column).validate(full=True)  # JSON is not checked for UTF-8 on reading
    return split if column == "text" else split.rename_column(column, "text")


def _one_column(split: IterableDataset, path: str, column: str, types: tuple[str, ...]) -> IterableDataset:
    features = split.features or datasets.Features.from_arrow_schema(
        next(split.with_format("arrow").iter(1)).schema  # a format that says its columns only when it is read
    )
    _check_column(features, path, column, types)
    return split.select_columns([column]).with_format("arrow")


def _check_present(features: datasets.Features, path: str, key: str, column: str) -> None:
    if column not in features:
        raise UserError(
            f"data.{key}={column} is not in data.path={path}{nearest(column, features)};"
            f" its columns are {listing(features)}"
        )


def _check_column(features: datasets.Features, path: str, column: str, types: tuple[str, ...]) -> None:
    _check_present(features, path, "column", column)
    kind = str(features.arrow_schema.field(column).type)
    if kind not in types:
        wanted = "text" if types == TEXT else "lists of token ids"
        raise UserError(
            f"data.column={column} of data.path={path} holds {kind}, not {wanted}; its columns are {listing(features)}"
        )


def _reason(error: BaseException, local: Path | None, wanted: str = "text, jsonl, csv or parquet files") -> str:
    """What is wrong with a set that cannot be read, to follow its name: a file that is not UTF-8, else the cause."""
    for file in _files(local) if local else ():
        if file.suffix in TEXT_SUFFIXES and not _is_utf8(file):
            return f": {file} is not UTF-8 text; convert it, for example with iconv"
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    return f" cannot be read ({reason}); give {wanted}, or a hub name"


def _is_utf8(file: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with file.open("rb") as content:
            while block := content.read(2**20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
