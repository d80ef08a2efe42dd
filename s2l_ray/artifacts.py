"""Artifacts: what a stage leaves behind, and how it comes to exist.

`{storage}/{artifact}/{fingerprint}/` holds one `manifest.json` and the attempt folder that it names. The manifest
is written last, so an artifact exists whole or not at all; readers take the list of files from it and never look
at the folder. An attempt that was cut short is adopted by the next run of the same thing, which finds the pieces
that it already finished (`StagedOutput.finished`).
"""

import hashlib
import io
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from s2l_ray.errors import ArtifactError, ConfigError

MANIFEST = "manifest.json"
HEARTBEAT = "heartbeat.json"
DISCARDED = "discarded"
SCRATCH = "scratch"
_CHUNK = 1 << 22
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
_ATTEMPT = re.compile(r"attempt-[0-9a-f]{12}")


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


@dataclass(frozen=True)
class Storage:
    """A root folder on any `pyarrow.fs` file system. Cheap to pickle."""

    uri: str

    @classmethod
    def at(cls, uri: str) -> "Storage":
        """Return the storage at a path or URI; a local path becomes absolute.

        Raises:
            ConfigError: a relative path in a submitted job, a URI that pyarrow cannot open, or no path at all.
        """
        if "://" in uri:
            try:
                filesystem, inner = pafs.FileSystem.from_uri(uri)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise ConfigError(
                    f"storage {uri!r}: {error}. Expected a local path or a URI such as s3://bucket/dir."
                ) from error
            if not inner:
                raise ConfigError(f"storage {uri!r}: found no bucket or path. Expected a URI such as s3://bucket/dir.")
            if not isinstance(filesystem, pafs.LocalFileSystem):
                return cls(uri.rstrip("/"))
            uri = inner
        try:
            return cls._at_path(uri)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"storage {uri!r}: {error}. Expected the path of a folder.") from error

    @classmethod
    def _at_path(cls, uri: str) -> "Storage":
        path = Path(uri).expanduser()
        if not uri.strip():
            raise ConfigError(f"storage {uri!r}: found an empty path. Expected a folder, e.g. ./.s2l.")
        if not path.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            raise ConfigError(
                f"storage {uri!r} is relative, and the working directory of a submitted job vanishes with the job. "
                "Set `storage` (or --storage) to an absolute path or a URI that every node can reach."
            )
        path = path.absolute()
        for ancestor in (path, *path.parents):
            if ancestor.exists() and not ancestor.is_dir():
                raise ConfigError(
                    f"storage {path}: {ancestor} is a file. Expected a folder, or a path that can become one."
                )
        return cls(str(path))

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return "://" not in self.uri

    @cached_property
    def _resolved(self) -> tuple[pafs.FileSystem, str]:
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        filesystem, root = pafs.FileSystem.from_uri(self.uri)
        return filesystem, root

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        """Pickle the URI alone: the file system handle belongs to its process."""
        return type(self), (self.uri,)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The file system of this storage."""
        return self._resolved[0]

    def path(self, *parts: str) -> str:
        """Join parts below the root, as the file system wants them."""
        return "/".join((self._resolved[1], *parts))

    def uri_of(self, *parts: str) -> str:
        """Join parts below the root, as other programs want them; a URI keeps its query at the end."""
        if self.is_local:
            return "/".join((self.uri, *parts))
        root, mark, query = self.uri.partition("?")
        return "/".join((root.rstrip("/"), *parts)) + mark + query

    def read_bytes(self, *parts: str) -> bytes | None:
        """Return a whole file, or None where there is none."""
        try:
            with self.filesystem.open_input_file(self.path(*parts)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a whole file, atomically where the file system is local."""
        path = self.path(*parts)
        if self.is_local:
            partial = f"{path}.{uuid.uuid4().hex}.partial"
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(partial).write_bytes(data)
            Path(partial).replace(path)
            return
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def create_exclusively(self, data: bytes, *parts: str) -> bool:
        """Write a whole file unless it exists; return whether it was this call that wrote it.

        A hard link decides on a local file system. An object store is checked, written and read back: of two
        writers in the same instant one may lose after having believed, so what is read back is what counts.
        """
        path = self.path(*parts)
        if self.is_local:
            partial = Path(f"{path}.{uuid.uuid4().hex}.partial")
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
            return True
        if self.read_bytes(*parts) is not None:
            return False
        self.write_bytes(data, *parts)
        return self.read_bytes(*parts) == data

    def list_folders(self, *parts: str) -> list[str]:
        """Return the names of the folders right below a place, sorted."""
        selector = pafs.FileSelector(self.path(*parts), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)

    def delete_folder(self, *parts: str) -> None:
        """Remove a folder and everything in it, if it is there."""
        if self.filesystem.get_file_info(self.path(*parts)).type == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(*parts))

    def check_writable(self) -> None:
        """Refuse a storage that cannot be written, before anything is computed for it.

        Raises:
            ConfigError: it cannot.
        """
        # A name of its own, since two runs may begin at once; exclusively, since a commit will need that.
        name = f"write-test-{uuid.uuid4().hex}"
        try:
            self.create_exclusively(b"", name)
            self.filesystem.delete_file(self.path(name))
        except OSError as error:
            raise ConfigError(
                f"storage {self.uri} cannot be written: {error}. Give a folder or bucket that this user may write to."
            ) from error

    def orphans(self) -> list[tuple[str, ...]]:
        """Return what nobody works on and no manifest names, as parts of a path below the root.

        That is (artifact, fingerprint, attempt), or with `scratch` at the end what a committed attempt left over.
        Folders that are no attempts of ours are none of our business, wherever this storage may point.
        """
        found: list[tuple[str, ...]] = []
        for artifact in self.list_folders():
            for fingerprint in self.list_folders(artifact):
                for staged in self._attempts(artifact, fingerprint):
                    beat = staged.heartbeat()
                    if (beat and _is_alive(beat)) or self._is_claimed(_claim_of(staged, beat)):
                        continue
                    # Only now the manifest: an attempt is alive until it is committed.
                    committed = self.find(artifact, fingerprint)
                    if committed is None or committed.manifest.run["attempt"] != staged.attempt:
                        found.append((artifact, fingerprint, staged.attempt))
                    elif SCRATCH in self.list_folders(artifact, fingerprint, staged.attempt):
                        found.append((artifact, fingerprint, staged.attempt, SCRATCH))
        return found

    def _is_claimed(self, claim: tuple[str, ...]) -> bool:
        data = self.read_bytes(*claim)
        return data is not None and time.time() - float(json.loads(data)["time"]) < STALE_SECONDS

    def _attempts(self, artifact: str, fingerprint: str) -> "list[StagedOutput]":
        names = self.list_folders(artifact, fingerprint)
        return [StagedOutput(self, artifact, fingerprint, name) for name in names if _ATTEMPT.fullmatch(name)]

    def find(self, artifact: str, fingerprint: str) -> "Artifact | None":
        """Return an artifact, or None where no manifest says that it exists."""
        data = self.read_bytes(artifact, fingerprint, MANIFEST)
        if data is None:
            return None
        return Artifact(self, Manifest.from_json(data, self.uri_of(artifact, fingerprint, MANIFEST)))

    def begin(self, artifact: str, fingerprint: str) -> "StagedOutput | None":
        """Return an attempt to write an artifact: an abandoned one, else a new one, None while another run is at it.

        Of several that would adopt the same attempt the first to write a claim has it; the claim counts until the
        adopter has had the time for a heartbeat of its own.
        """
        for staged in self._attempts(artifact, fingerprint):
            if staged.read_bytes(DISCARDED) is not None:
                continue
            beat = staged.heartbeat()
            if beat is not None and _is_alive(beat):
                return None
            claim = _claim_of(staged, beat)
            if self.create_exclusively(json.dumps({"time": time.time(), "by": uuid.uuid4().hex}).encode(), *claim):
                return staged
            if self._is_claimed(claim):
                return None
        return StagedOutput(self, artifact, fingerprint, f"attempt-{uuid.uuid4().hex[:12]}")


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
        records = self.files(prefix)
        if not records:
            raise ArtifactError(
                f"{self.uri} holds no {prefix}*.parquet; it was written by another version. Run `s2l gc`."
            )
        return pa.concat_tables([self.read_rows(record, columns=columns) for record in records])

    def read_rows(
        self, record: FileRecord, start: int = 0, stop: int | None = None, columns: list[str] | None = None
    ) -> pa.Table:
        """Read rows `start:stop` of one Parquet file, touching only the row groups that hold them."""
        try:
            with self.storage.filesystem.open_input_file(self.path(record.path)) as stream:
                parquet = pq.ParquetFile(stream)
                if start == 0 and stop is None:
                    return parquet.read(columns=columns)
                groups, first, position = [], None, 0
                for group in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    if position < (stop if stop is not None else position + 1) and position + rows > start:
                        first = position if first is None else first
                        groups.append(group)
                    position += rows
                table = parquet.read_row_groups(groups, columns=columns)
                offset = start - (first or 0)
                return table.slice(offset, None if stop is None else stop - start)
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(
                f"{self.uri}/{record.path} cannot be read ({error}). Remove its {MANIFEST}; the stage will run again."
            ) from error

    def read_json_lines(self, path: str) -> list[dict[str, Any]]:
        """Read a `.jsonl` file."""
        with self.storage.filesystem.open_input_file(self.path(path)) as stream:
            return [json.loads(line) for line in bytes(stream.read()).splitlines()]

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
                pafs.copy_files(
                    self.path(record.path),
                    str(local),
                    source_filesystem=self.storage.filesystem,
                    destination_filesystem=pafs.LocalFileSystem(),
                )
            yield Path(folder) / prefix

    def damaged_files(self) -> list[str]:
        """Return the files that are missing or differ from their checksum.

        Raises:
            OSError: one cannot be read just now, which says nothing about its bytes.
        """
        damaged = []
        for record in self.manifest.files:
            try:
                with self.storage.filesystem.open_input_stream(self.path(record.path)) as stream:
                    size, digest = _drain(stream)
            except FileNotFoundError:
                damaged.append(record.path)
                continue
            if (size, digest) != (record.bytes, record.sha256):
                damaged.append(record.path)
        return damaged

    def discard(self) -> None:
        """Take the manifest away, so that the artifact does not exist any more and its stage runs again.

        The attempt is marked, so that nobody adopts it: another run may still be reading its good files.
        """
        place = (self.manifest.artifact, self.manifest.fingerprint)
        self.storage.write_bytes(b"", *place, str(self.manifest.run["attempt"]), DISCARDED)
        with suppress(FileNotFoundError):  # another run has seen the same
            self.storage.filesystem.delete_file(
                self.storage.path(self.manifest.artifact, self.manifest.fingerprint, MANIFEST)
            )


@dataclass(frozen=True)
class StagedOutput:
    """An attempt folder, before its manifest. Cheap to pickle: workers write through it and return `FileRecord`s."""

    storage: Storage
    artifact: str
    fingerprint: str
    attempt: str

    @property
    def uri(self) -> str:
        """The attempt folder."""
        return self.storage.uri_of(self.artifact, self.fingerprint, self.attempt)

    @property
    def scratch_uri(self) -> str:
        """A folder of the attempt for what is needed until the commit only."""
        return self.storage.uri_of(self.artifact, self.fingerprint, self.attempt, SCRATCH)

    def uri_of(self, path: str) -> str:
        """Return where other programs find a file of the attempt."""
        return self.storage.uri_of(self.artifact, self.fingerprint, self.attempt, path)

    def _parts(self, path: str) -> tuple[str, ...]:
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise ArtifactError(f"{path!r} is no path within an artifact; rename the input file or its source.")
        return (self.artifact, self.fingerprint, self.attempt, path)

    @contextmanager
    def open(self, path: str) -> Iterator["HashingSink"]:
        """Open a file for writing; its `FileRecord` is `sink.record(rows)` once the block has ended."""
        full = self.storage.path(*self._parts(path))
        if self.storage.is_local:
            Path(full).parent.mkdir(parents=True, exist_ok=True)
        with self.storage.filesystem.open_output_stream(full) as stream:
            yield HashingSink(stream, path)

    def write_bytes(self, path: str, data: bytes, rows: int | None = None) -> FileRecord:
        """Write one whole file."""
        with self.open(path) as sink:
            sink.write(data)
        return sink.record(rows)

    def write_parquet(self, path: str, tables: Iterable[pa.Table], schema: pa.Schema) -> FileRecord:
        """Write tables of one schema into one Parquet file, a row group each."""
        rows = 0
        with (
            self.open(path) as sink,
            pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer,
        ):
            for table in tables:
                writer.write_table(table.cast(schema) if table.schema != schema else table)
                rows += table.num_rows
        return sink.record(rows)

    def add_folder(self, folder: Path, prefix: str) -> list[FileRecord]:
        """Copy the files of a local folder below `prefix`."""
        records = []
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            path = (
                "/".join((prefix, file.relative_to(folder).as_posix()))
                if prefix
                else file.relative_to(folder).as_posix()
            )
            with self.open(path) as sink, file.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    sink.write(chunk)
            records.append(sink.record(None))
        return records

    def add_artifact(self, artifact: Artifact, prefix: str) -> list[FileRecord]:
        """Copy the files that an artifact's manifest names below `prefix`."""
        records = []
        for record in artifact.files():
            with (
                self.open(f"{prefix}/{record.path}") as sink,
                artifact.storage.filesystem.open_input_stream(artifact.path(record.path)) as source,
            ):
                while chunk := source.read(_CHUNK):
                    sink.write(chunk)
            records.append(sink.record(record.rows))
        return records

    def keep(self, piece: str, records: list[FileRecord], note: Mapping[str, Any]) -> None:
        """Remember that a piece of the work is done, for the run that may have to adopt this attempt."""
        data = json.dumps({"records": [asdict(r) for r in records], "note": dict(note)}).encode()
        self.storage.write_bytes(data, *self._parts(f"{SCRATCH}/receipts/{piece}.json"))

    def finished(self, piece: str) -> tuple[list[FileRecord], dict[str, Any]] | None:
        """Return what `keep` remembered for a piece; None where it cannot be read, or a file is not as it says."""
        data = self.storage.read_bytes(*self._parts(f"{SCRATCH}/receipts/{piece}.json"))
        try:
            raw = json.loads(data or b"")
        except ValueError:
            return None
        records = [FileRecord(**r) for r in raw["records"]]
        infos = self.storage.filesystem.get_file_info([self.storage.path(*self._parts(r.path)) for r in records])
        if any(info.size != record.bytes for info, record in zip(infos, records, strict=True)):
            return None
        return records, raw["note"]

    def read_bytes(self, path: str) -> bytes | None:
        """Return a file of the attempt, or None."""
        return self.storage.read_bytes(*self._parts(path))

    def read_parquet(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read back a Parquet file of the attempt."""
        with self.storage.filesystem.open_input_file(self.storage.path(*self._parts(path))) as stream:
            return pq.ParquetFile(stream).read(columns=columns)

    def remove(self, path: str) -> None:
        """Remove a file of the attempt, if it is there."""
        if self.read_bytes(path) is not None:
            self.storage.filesystem.delete_file(self.storage.path(*self._parts(path)))

    def heartbeat(self) -> dict[str, Any] | None:
        """Return who last said to be at work here, or None."""
        data = self.storage.read_bytes(*self._parts(HEARTBEAT))
        try:
            return dict(json.loads(data)) if data else None
        except ValueError:
            return None

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Say every few seconds that this process is at work here. Advisory: it saves work and guards nothing."""
        stop = threading.Event()
        beat = {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid()), "nonce": uuid.uuid4().hex}

        def say(**now: float) -> None:
            # A storage that fails for good fails the stage itself, with a better message than ours.
            with suppress(OSError):
                self.storage.write_bytes(json.dumps({**beat, **now}).encode(), *self._parts(HEARTBEAT))

        def beats() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                say(time=time.time())

        say(time=time.time())
        thread = threading.Thread(target=beats, name=f"heartbeat-{self.artifact}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            # An attempt given up in good order is free at once; `time: 0` is long ago for every reader.
            say(pid=-1, time=0)

    def commit(
        self,
        records: Iterable[FileRecord],
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        summary: Mapping[str, Any],
        run: Mapping[str, Any],
    ) -> Artifact:
        """Write the manifest and drop the scratch folder.

        Where another run was first, its artifact is the one that exists, and is returned.
        """
        files = tuple(sorted(records, key=lambda r: r.path))
        if len({f.path for f in files}) != len(files):
            raise ArtifactError(
                f"{self.uri}: two files claim the same path; this is a fault of the stage, please report it."
            )
        manifest = Manifest(
            artifact=self.artifact,
            fingerprint=self.fingerprint,
            config=dict(config),
            inputs=dict(inputs),
            files=files,
            summary=dict(summary),
            run={**run, "attempt": self.attempt},
        )
        self.storage.create_exclusively(manifest.to_json(), self.artifact, self.fingerprint, MANIFEST)
        committed = self.storage.find(self.artifact, self.fingerprint)
        if committed is None:
            raise ArtifactError(
                f"{self.uri}: the manifest was written and is gone. Is something cleaning this storage?"
            )
        with suppress(OSError):  # the artifact exists; `gc` takes what stays behind
            self.storage.delete_folder(*self._parts(SCRATCH))
        return committed


class HashingSink(io.RawIOBase):
    """A writable file that knows its length and SHA-256."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self._stream = stream
        self._path = path
        self._hash = hashlib.sha256()
        self._bytes = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes."""
        view = memoryview(data)
        self._stream.write(view)
        self._hash.update(view)
        self._bytes += view.nbytes
        return view.nbytes

    def record(self, rows: int | None) -> FileRecord:
        """Return what the manifest has to say about the file."""
        return FileRecord(self._path, self._bytes, rows, self._hash.hexdigest())


def file_digest(filesystem: pafs.FileSystem, path: str) -> str:
    """Return the SHA-256 of a file's bytes."""
    with filesystem.open_input_stream(path) as stream:
        return _drain(stream)[1]


def _drain(stream: Any) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _claim_of(staged: StagedOutput, beat: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the place of the claim on an attempt that was left with this heartbeat."""
    return staged.artifact, staged.fingerprint, staged.attempt, f"claim-{beat['nonce'] if beat else 'first'}"


def _is_alive(beat: Mapping[str, Any]) -> bool:
    if beat["host"] != _host():
        return bool(time.time() - beat["time"] <= STALE_SECONDS)
    # On the same host the process itself tells, and a laptop that slept for an hour has not died of it.
    try:
        os.kill(beat["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    started = _started(beat["pid"])
    return bool(beat["time"] > 0 and beat.get("started", started) == started)


def _started(pid: int) -> str:
    """Return when a process started [clock ticks since boot], so that a number used again is not taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
