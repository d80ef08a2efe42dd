"""Attempts: how an artifact comes to exist, whatever is killed meanwhile.

A stage writes into an attempt folder of its own; the commit writes the manifest, which makes the artifact exist. An
attempt that was cut short is adopted by the next run of the same thing, which finds the pieces that it already
finished (`StagedOutput.finished`). A heartbeat says who is at work; it saves work and guards nothing.
"""

import hashlib
import io
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.artifacts import DISCARDED, MANIFEST, Artifact, FileRecord, Manifest, find_artifact
from s2l_ray.background import repeated
from s2l_ray.errors import ArtifactError
from s2l_ray.filesystems import CHUNK, reads_in_threads
from s2l_ray.log import display
from s2l_ray.storage import Storage

HEARTBEAT = "heartbeat.json"
SCRATCH = "scratch"
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
LOOK_BEATS = 3
"""For how many heartbeats an attempt of another host is watched before it is taken for dead."""
CLOCK_SECONDS = 3600.0
"""How far the clocks of two hosts may be apart."""
BUSY_SECONDS = 2.0
"""How often an artifact is looked for that another run is making."""
_PROCESS = uuid.uuid4().hex
"""Tells this process from any other that ever wrote a heartbeat."""
_ATTEMPT = re.compile(r"attempt-[0-9a-f]{12}")


def begin(storage: Storage, artifact: str, fingerprint: str) -> "StagedOutput | None":
    """Return an attempt to write an artifact: an abandoned one, else a new one, None while another run is at it.

    Of several that would adopt the same attempt the first to write a claim has it; the claim counts until the
    adopter has had the time for a heartbeat of its own.
    """
    open_ones = [one for one in _attempts(storage, artifact, fingerprint) if one.read_bytes(DISCARDED) is None]
    beats = [(staged, staged.heartbeat()) for staged in open_ones]
    if any(beat is not None and _is_alive(beat) for _, beat in beats):
        return None
    for staged, beat in beats:
        if beat is not None and _beats_still(staged, beat):
            return None
        if _claim(staged, beat):
            return staged
        if _is_claimed(storage, _claim_of(staged, beat)):
            return None
    return StagedOutput(storage, artifact, fingerprint, f"attempt-{uuid.uuid4().hex[:12]}")


def find_or_make(
    storage: Storage,
    artifact: str,
    fingerprint: str,
    make: Callable[["StagedOutput"], Artifact],
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Artifact:
    """Return an artifact; make it if it is not there.

    Args:
        make: fills the attempt and commits it.
        on_wait: called once when another run is at it and has to be waited for.
    """
    waited = False
    while True:
        known = find_artifact(storage, artifact, fingerprint)
        if known is not None:
            return known
        output = begin(storage, artifact, fingerprint)
        if output is not None:
            # A run that has committed since we looked has signed off, and its attempt looks abandoned.
            known = find_artifact(storage, artifact, fingerprint)
            if known is not None:
                return known
            with output.alive(display.doing()):
                return make(output)
        if not waited:
            on_wait()
            waited = True
        time.sleep(BUSY_SECONDS)


@dataclass(frozen=True)
class AtWork:
    """What a run says of the artifact that it is making.

    Attributes:
        host: where it runs.
        seconds: since it began.
        doing: how far it is; empty where it has not said so yet.
    """

    host: str
    seconds: float
    doing: str


def at_work(storage: Storage, artifact: str, fingerprint: str) -> AtWork | None:
    """Return what the run says that is making an artifact now; None where none is."""
    for staged in _attempts(storage, artifact, fingerprint):
        beat = staged.heartbeat()
        if beat is not None and _is_alive(beat):
            seconds = max(0.0, time.time() - beat.get("since", beat["time"]))
            return AtWork(beat["host"].partition("/")[0], seconds, beat.get("doing", ""))
    return None


def orphans(storage: Storage) -> list[tuple[str, ...]]:
    """Return what nobody works on and no manifest names, as parts of a path below the root.

    That is (artifact, fingerprint, attempt), or with `scratch` at the end what a committed attempt left over.
    Folders that are no attempts of ours are none of our business, wherever this storage may point.
    """
    found: list[tuple[str, ...]] = []
    for artifact in storage.list_folders():
        for fingerprint in storage.list_folders(artifact):
            for staged in _attempts(storage, artifact, fingerprint):
                beat = staged.heartbeat()
                if (beat and _is_alive(beat)) or _is_claimed(storage, _claim_of(staged, beat)):
                    continue
                # Only now the manifest: an attempt is alive until it is committed.
                committed = find_artifact(storage, artifact, fingerprint)
                if committed is None or committed.manifest.run["attempt"] != staged.attempt:
                    found.append((artifact, fingerprint, staged.attempt))
                elif SCRATCH in storage.list_folders(artifact, fingerprint, staged.attempt):
                    found.append((artifact, fingerprint, staged.attempt, SCRATCH))
    return found


def remove_orphan(storage: Storage, orphan: tuple[str, ...]) -> bool:
    """Remove what `orphans` has found; return False where it is left, since a run has taken it up meanwhile."""
    artifact, fingerprint, attempt, *scratch = orphan
    if not scratch:
        staged = StagedOutput(storage, artifact, fingerprint, attempt)
        beat = staged.heartbeat()
        if beat is not None and (_is_alive(beat) or _beats_still(staged, beat)):
            return False
        # The claim holds back whoever would adopt it while it goes.
        if not _claim(staged, beat) and _is_claimed(storage, _claim_of(staged, beat)):
            return False
        committed = find_artifact(storage, artifact, fingerprint)
        if committed is not None and committed.manifest.run["attempt"] == attempt:
            return False
    storage.delete_folder(*orphan)
    return True


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

    def heartbeat(self) -> dict[str, Any] | None:
        """Return who last said to be at work here, or None."""
        data = self.storage.read_bytes(*self._parts(HEARTBEAT))
        try:
            return dict(json.loads(data)) if data else None
        except ValueError:
            return None

    def _is_taken_over(self) -> bool:
        beat = self.heartbeat()
        return beat is not None and beat.get("process", _PROCESS) != _PROCESS

    @contextmanager
    def alive(self, doing: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Say every few seconds that this process is at work here. Advisory: it saves work and guards nothing.

        Once another process has taken the attempt over, its word stands and this one is silent.

        Args:
            doing: tells how far the work is, for `s2l status`.
        """
        beat = {
            "host": _host(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "process": _PROCESS,
            "nonce": uuid.uuid4().hex,
            "since": time.time(),
        }

        has_spoken = False

        def say(**now: float | str) -> None:
            nonlocal has_spoken
            # A storage that fails for good fails the stage itself, with a better message than ours.
            with suppress(OSError):
                # Written over an adopter's heartbeat, ours would hide it from `commit`, or free its attempt for a third
                # run. Before our first word, what stands there is of the run that we adopted from.
                if not (has_spoken and self._is_taken_over()):
                    self.storage.write_bytes(json.dumps({**beat, **now}).encode(), *self._parts(HEARTBEAT))
                    has_spoken = True

        def beat_once() -> None:
            say(time=time.time(), doing=doing())

        say(time=time.time())
        try:
            with repeated(beat_once, HEARTBEAT_SECONDS, f"heartbeat-{self.artifact}"):
                yield
        finally:
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


def _claim(staged: StagedOutput, beat: Mapping[str, Any] | None) -> bool:
    """Claim an attempt that was left with this heartbeat; return whether nobody did before."""
    word = {"time": time.time(), "by": uuid.uuid4().hex}
    return staged.storage.create_exclusively(json.dumps(word).encode(), *_claim_of(staged, beat))


def _beats_still(staged: StagedOutput, beat: Mapping[str, Any]) -> bool:
    """Return whether an attempt of another host that looks dead has a heartbeat: its clock may differ from ours."""
    if beat["host"] == _host() or abs(time.time() - beat["time"]) > CLOCK_SECONDS:
        return False
    until = time.monotonic() + LOOK_BEATS * HEARTBEAT_SECONDS
    while time.monotonic() < until:
        time.sleep(HEARTBEAT_SECONDS / 2)
        if staged.heartbeat() != beat:
            return True
    return False


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
    """Return when a process started [clock ticks since boot], so that a number used again is not taken for it.

    Empty where that cannot be known, and for a process that has ended and that its parent has not asked about yet.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, ValueError, IndexError):
        return ""


def _attempts(storage: Storage, artifact: str, fingerprint: str) -> list[StagedOutput]:
    names = storage.list_folders(artifact, fingerprint)
    return [StagedOutput(storage, artifact, fingerprint, name) for name in names if _ATTEMPT.fullmatch(name)]


def _is_claimed(storage: Storage, claim: tuple[str, ...]) -> bool:
    data = storage.read_bytes(*claim)
    return data is not None and time.time() - float(json.loads(data)["time"]) < STALE_SECONDS
