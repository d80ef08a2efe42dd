"""Digests of what comes from outside: input files and model folders.

Hashing a large input takes minutes, so a digest is remembered with the size and the time of change of every file it
covers. `known` never reads content and is what `s2l plan` uses; `compute` reads where it must.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from s2l_ray.artifacts import hash_of
from s2l_ray.filesystems import file_digest
from s2l_ray.input_files import answered, filesystem_of
from s2l_ray.storage import Storage

CACHE = "input-digests.json"
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
"""What a model folder holds that is of use here."""
MODEL_CODE = "*.py"
"""And what runs only where the config allows it."""


@dataclass(frozen=True)
class OutsideFile:
    """A file that is not ours. Size and time of change tell whether it is still the one that was hashed."""

    path: str
    """Absolute local path or URI."""
    name: str
    """What stands for the path in the digest: the same data elsewhere is the same input."""
    bytes: int
    modified_ns: int

    @property
    def key(self) -> str:
        """Name in the cache; another size or time of change is another key. A hash, as a URI may hold a password."""
        return hash_of([self.path, self.bytes, self.modified_ns])


class DigestCache:
    """Digests of outside files, remembered in the storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: dict[str, str] = {}
        self._load()

    def _load(self) -> None:
        # A cache that cannot be read costs a hash, no more.
        with suppress(ValueError, TypeError):
            self._known.update(json.loads(self._storage.read_bytes(CACHE) or b"{}"))

    def known(self, files: Iterable[OutsideFile], extra: Mapping[str, str | None]) -> str | None:
        """Return the digest of a set of files and facts about them, or None where a file was not hashed yet."""
        listed = list(files)
        if any(file.key not in self._known for file in listed):
            return None
        return hash_of([[[file.name, self._known[file.key]] for file in listed], dict(extra)])

    def compute(self, files: Iterable[OutsideFile], extra: Mapping[str, str | None]) -> str:
        """Return the digest, hashing the files that were not hashed yet.

        Raises:
            DataError, StorageError: a file cannot be read.
        """
        listed = list(files)
        missing = [file for file in listed if file.key not in self._known]
        if missing:
            with ThreadPoolExecutor(max_workers=4) as pool:
                for file, digest in zip(missing, pool.map(_digest, missing), strict=True):
                    self._known[file.key] = digest
            self._load()  # what another run has found out since
            self._storage.write_bytes(json.dumps(self._known, indent=0).encode(), CACHE)
        known = self.known(listed, extra)
        assert known is not None
        return known


def model_files(folder: Path) -> tuple[OutsideFile, ...]:
    """Return the files of a model folder that decide what it computes and how it reads text."""
    wanted = [file for pattern in (*MODEL_FILES, MODEL_CODE) for file in folder.glob(pattern)]
    return tuple(
        OutsideFile(str(file.absolute()), file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(set(wanted))
    )


def _digest(file: OutsideFile) -> str:
    with answered(file.path):
        return file_digest(*filesystem_of(file.path))
