"""Hashes of the images of a large set, kept: to read all of ImageNet takes longer than anything else before training.

They are computed again when a file of the set has another name, size or time, or the hub another commit.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edgetrain.data.packed import digest
from edgetrain.data.packing import cache_folder
from edgetrain.data.source import fingerprint
from edgetrain.errors import UserError
from edgetrain.folder import atomic

MANY = 50_000  # images of a split, from which on their hashes are kept
BYTES = 32  # of a hash


def kept_keys(keys: Iterable[bytes], count: int, path: str, local: Path | None, *settings: str) -> Iterable[bytes]:
    """The `count` keys, from the cache where it has them; else as given, and kept.

    path, local: of the set; settings: what else tells which images these are. Of a set that is one file nothing is
    kept: it may name others, whose times are not looked at. Raises UserError when the cache cannot be written.
    """
    if count < MANY or (local is not None and local.is_file()):
        return keys
    name = digest("keys", path, *settings, fingerprint(path, local, times=True))
    file = cache_folder() / "image_keys" / f"{name}.npy"
    if not file.exists():
        found = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, BYTES)
        try:
            with atomic(file) as target:
                np.save(target, found)
        except OSError as error:
            raise UserError(
                f"cannot write {file}: {error.strerror}; free some space or set EDGETRAIN_CACHE to another folder"
            ) from error
    return map(bytes, np.load(file))
