"""Artifacts: what a stage leaves behind.

`{storage}/{artifact}/{fingerprint}/` holds one `manifest.json` and the attempt folder that it names. The manifest
is written last, so an artifact exists whole or not at all; readers take the list of files from it and never look
at the folder. `attempts` says how one comes to exist.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from s2l_ray.errors import ArtifactError
from s2l_ray.filesystems import CHUNK, digest_of, opened, reads_in_threads
from s2l_ray.schemas import in_order, is_ascending, matrix
from s2l_ray.storage import Storage

MANIFEST = "manifest.json"
DISCARDED = "discarded"
"""Marks an attempt whose manifest was taken away."""


def canonical(value: Any) -> Any:
    """Return `value` as plain JSON types with sorted keys, for hashing.

    Raises:
        TypeError: a type whose encoding is not defined here; silence would make two different things equal.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("cannot fingerprint a mapping whose keys are not text")
        return {key: canonical(value[key]) for key in sorted(value)}
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


def hash_of(value: Any) -> str:
    """Return the SHA-256 hex digest of `canonical(value)`."""
    text = json.dumps(canonical(value), separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact; `path` is relative to the attempt folder."""

    path: str
    bytes: int
    rows: int | None
    sha256: str


@dataclass(frozen=True)
class StageResult:
    """What a stage hands over to be committed: its files, and what it has to say about them."""

    files: list[FileRecord]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The record that makes an artifact exist. Two runs of the same thing differ in `run` only."""

    artifact: str
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: tuple[FileRecord, ...]
    summary: Mapping[str, Any]
    run: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Hash of the content: names, row counts and checksums of the files."""
        return hash_of([[f.path, f.rows, f.sha256] for f in self.files])

    def to_json(self) -> bytes:
        """Return the manifest as it is stored."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Manifest":
        """Parse a stored manifest.

        Raises:
            ArtifactError: it is not one.
        """
        try:
            raw = json.loads(data)
            raw["run"]["attempt"]
            return cls(**{**raw, "files": tuple(FileRecord(**f) for f in raw["files"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{where} is not a manifest ({error}). Remove that file; the stage will run again."
            ) from error


@dataclass(frozen=True, eq=False)
class Artifact:
    """A committed artifact. Cheap to pickle; every read goes through the manifest. Equal where the address is."""

    storage: Storage
    manifest: Manifest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    @property
    def digest(self) -> str:
        """See `Manifest.digest`."""
        return self.manifest.digest

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the stage said about its result."""
        return self.manifest.summary

    @property
    def uri(self) -> str:
        """Folder of the files."""
        return self.storage.uri_of(self.manifest.artifact, self.manifest.fingerprint, str(self.manifest.run["attempt"]))

    def files(self, prefix: str = "") -> tuple[FileRecord, ...]:
        """Return the files whose path starts with `prefix`, in order of path."""
        return tuple(f for f in self.manifest.files if f.path.startswith(prefix))

    def path(self, path: str) -> str:
        """Return the path of a file as the storage's file system wants it."""
        return self.storage.path(
            self.manifest.artifact, self.manifest.fingerprint, str(self.manifest.run["attempt"]), path
        )

    def uri_of(self, path: str) -> str:
        """Return where other programs find a file or folder of the artifact."""
        place = (self.manifest.artifact, self.manifest.fingerprint, str(self.manifest.run["attempt"]))
        return self.storage.uri_of(*place, path)

    def read_table(self, prefix: str, columns: list[str] | None = None) -> pa.Table:
        """Read all Parquet files whose path starts with `prefix`, in order of path.

        Raises:
            ArtifactError: there are none, or one cannot be read.
        """
        return pa.concat_tables([self.read_rows(record, columns=columns) for record in self._there(prefix)])

    def read_in_order(self, prefix: str, columns: list[str] | None = None) -> pa.Table:
        """Read the same in order of id; rows that are in order already, as they mostly are, are not copied.

        Args:
            prefix: as `read_table`.
            columns: with `example_id` among them; all unless given.
        """
        return in_order(self.read_table(prefix, columns))

    def rows(self, prefix: str) -> int:
        """Return how many rows the files have whose path starts with `prefix`."""
        return sum(record.rows or 0 for record in self.files(prefix))

    def read_span(self, prefix: str, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        """Read rows `start:stop` of what `read_table` would give, touching only the files that hold them."""
        parts, first = [], 0
        for record in self._there(prefix):
            rows = record.rows or 0
            begin, end = max(0, start - first), min(rows, stop - first)
            if begin < end:
                is_whole = (begin, end) == (0, rows)
                parts.append(self.read_rows(record, begin, None if is_whole else end, columns))
            first += rows
        return pa.concat_tables(parts)

    def read_matrix(self, prefix: str, column: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Read a column of lists of one length, float32, in order of id, a file at a time.

        Where the ids are not in order already, the result is copied once.

        Returns:
            The ids, int64 [N], and the column, float32 [N, T].

        Raises:
            ArtifactError: as `read_table`.
        """
        records = self._there(prefix)
        first = self.read_rows(records[0], 0, 1, [column])
        n_rows, width = sum(record.rows or 0 for record in records), first.schema.field(column).type.list_size
        id_N, value_NT = np.empty(n_rows, np.int64), np.empty((n_rows, width), np.float32)
        start = 0
        for record in records:
            table = self.read_rows(record, columns=["example_id", column])
            stop = start + len(table)
            id_N[start:stop] = table.column("example_id").to_numpy()
            value_NT[start:stop] = matrix(table, column)
            start = stop
        if is_ascending(id_N):
            return id_N, value_NT
        order = np.argsort(id_N, kind="stable")
        return id_N[order], value_NT[order]

    def _there(self, prefix: str) -> tuple[FileRecord, ...]:
        records = self.files(prefix)
        if not records:
            raise ArtifactError(
                f"{self.uri} holds no {prefix}*.parquet; it was written by another version. Run `s2l gc`."
            )
        return records

    def read_examples(self, prefix: str, example_ids: Any, columns: list[str] | None = None) -> pa.Table:
        """Read the rows of some examples, in order of id, a file in memory at a time.

        Args:
            prefix: as `read_table`.
            example_ids: int64, the ids; those that are not there are left out.
            columns: with `example_id` among them; all unless given.
        """
        wanted, parts = pa.array(example_ids, pa.int64()), []
        for record in self.files(prefix):
            table = self.read_rows(record, columns=columns)
            parts.append(table.filter(pc.is_in(table.column("example_id"), value_set=wanted)))
        return pa.concat_tables(parts).sort_by("example_id")

    def read_rows(
        self, record: FileRecord, start: int = 0, stop: int | None = None, columns: list[str] | None = None
    ) -> pa.Table:
        """Read rows `start:stop` of one Parquet file, touching only the row groups that hold them."""
        with self._opened(record) as (parquet, use_threads):
            if start == 0 and stop is None:
                return parquet.read(columns=columns, use_threads=use_threads)
            groups, first, position = [], None, 0
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if position < (stop if stop is not None else position + 1) and position + rows > start:
                    first = position if first is None else first
                    groups.append(group)
                position += rows
            table = parquet.read_row_groups(groups, columns=columns, use_threads=use_threads)
            offset = start - (first or 0)
            return table.slice(offset, None if stop is None else stop - start)

    def read_groups(self, record: FileRecord, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Read one Parquet file a row group at a time."""
        with self._opened(record) as (parquet, use_threads):
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns=columns, use_threads=use_threads)

    def read_footer(self, record: FileRecord) -> pq.FileMetaData:
        """Read what one Parquet file says of its row groups."""
        with self._opened(record) as (parquet, _):
            return parquet.metadata

    @contextmanager
    def _opened(self, record: FileRecord) -> Iterator[tuple[pq.ParquetFile, bool]]:
        """Open one Parquet file; give it, and whether it may be read in threads."""
        try:
            with opened(self.storage.filesystem, self.path(record.path)) as stream:
                use_threads = reads_in_threads(stream)
                yield pq.ParquetFile(stream, pre_buffer=use_threads), use_threads
        except (pa.ArrowException, OSError) as error:
            # Corrupt bytes are an OSError too, and the checksum tells them from a storage that fails.
            with self.storage.asked():
                if isinstance(error, OSError) and not self._is_damaged(record):
                    raise
            raise ArtifactError(
                f"{self.uri_of(record.path)} cannot be read ({error}). Remove its {MANIFEST}; the stage will run again."
            ) from error

    @contextmanager
    def local_folder(self, prefix: str) -> Iterator[Path]:
        """Give a folder of the artifact as a folder of this machine, copied only where it is remote."""
        if self.storage.is_local:
            yield Path(self.path(prefix))
            return
        import tempfile

        with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
            for record in self.files(f"{prefix}/" if prefix else ""):
                local = Path(folder) / record.path
                local.parent.mkdir(parents=True, exist_ok=True)
                with self.storage.open_input(self.path(record.path)) as source, local.open("wb") as copy:
                    shutil.copyfileobj(source, copy, CHUNK)
            yield Path(folder) / prefix

    def damaged_files(self) -> list[str]:
        """Return the files that are missing or differ from their checksum.

        Raises:
            StorageError: one cannot be read just now, which says nothing about its bytes.
        """
        return [record.path for record in self.manifest.files if self._is_damaged(record)]

    def _is_damaged(self, record: FileRecord) -> bool:
        try:
            with self.storage.open_input(self.path(record.path)) as stream:
                return digest_of(stream) != (record.bytes, record.sha256)
        except FileNotFoundError:
            return True

    def discard(self) -> None:
        """Take the manifest away, so that the artifact does not exist any more and its stage runs again.

        The attempt is marked, so that nobody adopts it: another run may still be reading its good files.
        """
        place, attempt = (self.manifest.artifact, self.manifest.fingerprint), self.manifest.run["attempt"]
        self.storage.write_bytes(b"", *place, str(attempt), DISCARDED)
        # Another run may have found the damage first, and made the artifact anew.
        current = find_artifact(self.storage, *place)
        if current is not None and current.manifest.run["attempt"] == attempt:
            self.storage.delete_file(*place, MANIFEST)


def find_artifact(storage: Storage, artifact: str, fingerprint: str) -> Artifact | None:
    """Return an artifact, or None where no manifest says that it exists."""
    data = storage.read_bytes(artifact, fingerprint, MANIFEST)
    if data is None:
        return None
    return Artifact(storage, Manifest.from_json(data, storage.uri_of(artifact, fingerprint, MANIFEST)))
