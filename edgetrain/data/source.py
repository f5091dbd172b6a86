"""Finds a text set by name and reads its splits through `datasets.load_dataset`.

A relative name is looked for as $EDGETRAIN_DATA/<name>, then as a local path, then on the Hugging Face hub
(`owner/name`, or `owner/name:configuration` for a set that has several).
"""

import os
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from edgetrain.errors import UserError, listing, nearest

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}  # others: text
TEXT_SUFFIXES = {".txt", ".json", ".jsonl", ".csv", ".tsv"}
PROBE_SECONDS = 5.0


def read_splits(path: str, column: str) -> dict[str, Dataset]:
    """Each split of the set as a dataset with the one column "text".

    Raises UserError, naming `path`, when nothing readable is there, when the text is not UTF-8, and when the set lacks
    a train split or the column.
    """
    local = find_local(path)
    try:
        loaded = _load_local(local) if local else _load_hub(path)
        splits = {name: _only_text(split, path, column) for name, split in loaded.items()}
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"data.path={path}{_reason(error, local)}") from error
    if "train" not in splits:
        raise UserError(
            f"data.path={path} has no train split, only {listing(splits)}; name a file train.*, or give one file"
        )
    return splits


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


def _load_local(path: Path) -> DatasetDict:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    plain = not any(file.suffix in BUILDERS for file in files)
    options = {"sample_by": "document"} if plain else {}  # a text file is one document, not one a line
    if path.is_dir():
        return load_dataset(str(path), **options)
    if path.suffix == ".tsv":
        options["sep"] = "\t"
    return load_dataset(BUILDERS.get(path.suffix, "text"), data_files=str(path), **options)


def _load_hub(path: str) -> DatasetDict:
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
    return load_dataset(name, configuration or None)


def _only_text(split: Dataset, path: str, column: str) -> Dataset:
    columns = split.column_names
    if column not in columns:
        raise UserError(
            f"data.column={column} is not in data.path={path}{nearest(column, columns)};"
            f" its columns are {listing(columns)}"
        )
    kind = getattr(split.features[column], "dtype", "nested")
    if kind not in ("string", "large_string"):
        raise UserError(
            f"data.column={column} of data.path={path} holds {kind}, not text; its columns are {listing(columns)}"
        )
    split = split.select_columns([column])
    split.data.column(column).validate(full=True)  # JSON is not checked for UTF-8 on reading
    return split if column == "text" else split.rename_column(column, "text")


def _reason(error: BaseException, local: Path | None) -> str:
    """What is wrong with a set that cannot be read, to follow its name: a file that is not UTF-8, else the cause."""
    files = [] if local is None else [local] if local.is_file() else sorted(local.rglob("*"))
    for file in files:
        if file.suffix in TEXT_SUFFIXES and file.is_file() and not _is_utf8(file):
            return f": {file} is not UTF-8 text; convert it, for example with iconv"
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    return f" cannot be read ({reason}); give text, jsonl, csv or parquet files, or a hub name"


def _is_utf8(file: Path) -> bool:
    try:
        file.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True
