"""The folder that an artifact is written into before it exists, and the files that stages write there."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.artifacts import MANIFEST, Artifact, FileRecord, Manifest, find_artifact
from s2l_ray.background import repeated
from s2l_ray.errors import ArtifactError
from s2l_ray.filesystems import CHUNK, reads_in_threads
from s2l_ray.heartbeats import HEARTBEAT_SECONDS, STALE_SECONDS, Heartbeat
from s2l_ray.storage import Storage

HEARTBEAT = "heartbeat.json"
SCRATCH = "scratch"


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
        with self.storage.open_output(self.storage.path(*self._parts(path))) as stream:
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
            with file.open("rb") as source:
                records.append(self._copy(source, _below(prefix, file.relative_to(folder).as_posix()), None))
        return records

    def add_artifact(self, artifact: Artifact, prefix: str) -> list[FileRecord]:
        """Copy the files that an artifact's manifest names below `prefix`."""
        records = []
        for record in artifact.files():
            with artifact.storage.open_input(artifact.path(record.path)) as source:
                records.append(self._copy(source, _below(prefix, record.path), record.rows))
        return records

    def _copy(self, source: Any, path: str, rows: int | None) -> FileRecord:
        with self.open(path) as sink:
            while chunk := source.read(CHUNK):
                sink.write(chunk)
        return sink.record(rows)

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
        paths = [self.storage.path(*self._parts(r.path)) for r in records]
        with self.storage.asked():
            infos = self.storage.filesystem.get_file_info(paths)
        if any(info.size != record.bytes for info, record in zip(infos, records, strict=True)):
            return None
        return records, raw["note"]

    def read_bytes(self, path: str) -> bytes | None:
        """Return a file of the attempt, or None."""
        return self.storage.read_bytes(*self._parts(path))

    def read_parquet(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read back a Parquet file of the attempt."""
        with self.storage.open_input(self.storage.path(*self._parts(path))) as stream:
            use_threads = reads_in_threads(stream)
            return pq.ParquetFile(stream, pre_buffer=use_threads).read(columns=columns, use_threads=use_threads)

    def remove(self, path: str) -> None:
        """Remove a file of the attempt, if it is there."""
        self.storage.delete_file(*self._parts(path))

    def heartbeat(self) -> Heartbeat | None:
        """Return who last said to be at work here, or None."""
        return Heartbeat.parse(self.read_bytes(HEARTBEAT))

    def _is_taken_over(self) -> bool:
        beat = self.heartbeat()
        return beat is not None and not beat.is_ours

    @contextmanager
    def alive(self, doing: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Say every few seconds that this process is at work here. Advisory: it saves work and guards nothing.

        Once another process has taken the attempt over, its word stands and this one is silent.

        Args:
            doing: tells how far the work is, for `s2l status`.
        """
        first, has_spoken = Heartbeat.of_this_process(), False

        def say(beat: Heartbeat) -> None:
            nonlocal has_spoken
            # A storage that fails for good fails the stage itself, with a better message than ours.
            with suppress(OSError):
                # Written over an adopter's heartbeat, ours would hide it from `commit`, or free its attempt for a third
                # run. Before our first word, what stands there is of the run that we adopted from.
                if not (has_spoken and self._is_taken_over()):
                    self.storage.write_bytes(beat.to_json(), *self._parts(HEARTBEAT))
                    has_spoken = True

        say(first)
        try:
            with repeated(lambda: say(first.again(doing())), HEARTBEAT_SECONDS, f"heartbeat-{self.artifact}"):
                yield
        finally:
            say(first.signed_off())

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

        Raises:
            ArtifactError: another process took this attempt over, having heard nothing from this one for long.
        """
        if self._is_taken_over():
            committed = find_artifact(self.storage, self.artifact, self.fingerprint)
            if committed is not None:
                return committed
            raise ArtifactError(
                f"{self.uri}: another run took this work over, since this one was not heard of for "
                f"{STALE_SECONDS:.0f} s. The same command waits for that run and goes on with its result."
            )
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
        committed = find_artifact(self.storage, self.artifact, self.fingerprint)
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


def _below(prefix: str, path: str) -> str:
    return f"{prefix}/{path}" if prefix else path
