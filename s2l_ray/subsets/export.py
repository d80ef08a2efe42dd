"""A subset as a folder to take along: rows, `selection.parquet`, a data set card, and LLaMA-Factory's entry.

The rows are copied byte for byte from the subset, whose checksums are tried first. Two exports of one subset are
equal, wherever they are written.
"""

import io
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from s2l_ray import hub
from s2l_ray.artifacts import Artifact, FileRecord
from s2l_ray.config import InputPath
from s2l_ray.errors import ArtifactError, ConfigError
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import PAIRS, find_inputs
from s2l_ray.layouts import Layout
from s2l_ray.log import without_user_info
from s2l_ray.storage import CHUNK, Storage, digest_of
from s2l_ray.subsets.data_files import DataFile, Group, describe, export_paths, grouped
from s2l_ray.subsets.dataset_card import CARD, SELECTION, Card
from s2l_ray.subsets.lineage import check_undamaged, lineage, required
from s2l_ray.subsets.llama_factory import DATASET_INFO, dataset_info
from s2l_ray.subsets.provenance import Lineage, config_again

_ROWS = "rows/"
"""Where a subset keeps its rows."""
_COLUMNS = (
    "example_id",
    "user_id",
    "input_file",
    "input_row",
    "source",
    "stratum",
    "cluster_id",
    "rank",
    "reason",
)
"""Of `selection.parquet`."""


@dataclass(frozen=True)
class Export:
    """What is exported, before anything is written.

    Attributes:
        subset: what is exported.
        lineage: what it was made from.
        selection: a row for each selected one, in the input's order.
        files: the files of rows, in the input's order.
    """

    subset: Artifact
    lineage: Lineage
    selection: pa.Table
    files: tuple[DataFile, ...]

    @classmethod
    def of(cls, subset: Artifact) -> "Export":
        """Gather what belongs to a subset.

        Raises:
            ArtifactError: a file is damaged, or the storage does not hold the examples.
            ConfigError, DataError: a file of rows cannot be read.
        """
        found = lineage(subset)
        examples = required(found, "examples", subset)
        check_undamaged(subset, examples)
        selection = selection_table(subset, examples)
        sources: dict[str, set[str | None]] = {}
        for row in selection.select(["input_file", "source"]).to_pylist():
            sources.setdefault(row["input_file"], set()).add(row["source"])
        records = subset.files(_ROWS)
        inputs = [_input_file(subset, record) for record in records]
        files = tuple(
            describe(file, path, record.rows or 0, sources[file.name])
            for file, path, record in zip(inputs, export_paths(inputs), records, strict=True)
        )
        return cls(subset, found, selection, files)

    def write(self, folder: Storage, repository: str | None = None) -> list[FileRecord]:
        """Write everything; the card is the last, so that a folder without one is no export.

        Args:
            folder: empty.
            repository: the data set of the hub that the folder will be; see `dataset_info`.

        Returns:
            The files, but for the card.
        """
        groups = grouped(self.files)
        records = [_copy(self.subset, record, folder, file.path) for record, file in self._row_files()]
        records.append(_put(folder, SELECTION, _parquet(self.selection), self.selection.num_rows))
        layouts = self.lineage["examples"].summary.get("layouts", [])  # versions before this one did not tell
        info = dataset_info(groups, [Layout(**layout) for layout in layouts], repository)
        if info:
            records.append(_put(folder, DATASET_INFO, (json.dumps(info, indent=2) + "\n").encode()))
        _put(folder, CARD, self._card(groups, records, list(info), repository).encode())
        return records

    def _row_files(self) -> Iterator[tuple[FileRecord, DataFile]]:
        return zip(self.subset.files(_ROWS), self.files, strict=True)

    def _card(
        self, groups: tuple[Group, ...], records: list[FileRecord], entries: list[str], repository: str | None
    ) -> str:
        inputs = {file.file.name: next(iter(file.sources)) if len(file.sources) == 1 else None for file in self.files}
        again = config_again(self.subset, self.lineage, inputs)
        return Card(self.subset, self.lineage, groups, records, again, list(inputs), entries, repository).text()


def _input_file(subset: Artifact, record: FileRecord) -> InputFile:
    """Return a file of rows as a file to be read, with the name that it had as an input."""
    path = record.path if subset.storage.is_local else quote(record.path)
    # What is neither JSON nor a table has been read as pairs of lines before.
    (file,) = find_inputs((InputPath(path=subset.uri_of(path), format=PAIRS),), key="rows")
    return replace(file, name=record.path.removeprefix(_ROWS))


def selection_table(subset: Artifact, examples: Artifact) -> pa.Table:
    """Return a row for each selected one, in order of id, which is the input's.

    Raises:
        ArtifactError: the examples lack one of them.
    """
    chosen = subset.read_in_order("subset.parquet").replace_schema_metadata(None)
    ids = chosen.column("example_id")
    columns = [name for name in _COLUMNS if name not in chosen.column_names]
    places = examples.read_examples("examples-", ids.combine_chunks(), ["example_id", *columns])
    if not places.column("example_id").equals(ids):
        raise ArtifactError(
            f"{examples.uri} holds {places.num_rows} of the {chosen.num_rows} rows of {subset.uri}. "
            "Expected all of them; run the experiment again."
        )
    for name in columns:
        chosen = chosen.append_column(places.schema.field(name), places.column(name))
    return chosen.select(_COLUMNS)


def export_folder(subset: Artifact, to: str) -> dict[str, Any]:
    """Write a subset to a new folder.

    Args:
        to: a local path or a `pyarrow.fs` URI.

    Raises:
        ConfigError: the folder is not empty, or cannot be written.
        ArtifactError: see `Export.of`.
    """
    destination = Storage.at(to)
    found = destination.filesystem.get_file_info(pafs.FileSelector(destination.path(), allow_not_found=True))
    if found:
        raise ConfigError(
            f"{without_user_info(to)} is not empty: it holds {found[0].base_name}. Expected a new folder; name "
            "another one with --to, or remove that one."
        )
    content = Export.of(subset)
    with _built(destination) as folder:
        records = content.write(folder)
    return _told(content, records) | {"folder": destination.uri}


def push(subset: Artifact, uri: str, *, is_public: bool, replaces: bool) -> dict[str, Any]:
    """Write a subset to a data set of the Hugging Face hub, which is made where there is none.

    Args:
        uri: `hf://datasets/owner/name`.
        is_public: whether everybody may see it.
        replaces: whether files that it holds may be replaced and removed.

    Raises:
        ConfigError: the URI names no data set, the data set holds files or is seen by more people than asked for, or
            the hub refuses or does not answer.
        ArtifactError: see `Export.of`.
    """
    repository = hub.repository_of(uri)
    hub.check_may_push(repository, is_public=is_public, replaces=replaces)
    content = Export.of(subset)
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
        records = content.write(Storage.at(folder), repository)
        address = hub.push(folder, repository, is_public=is_public)
    return _told(content, records) | {"folder": uri, "address": address, "private": not is_public}


def _told(content: Export, records: list[FileRecord]) -> dict[str, Any]:
    return {
        "subset": content.subset.uri,
        "rows": content.selection.num_rows,
        "files": {record.path: record.sha256 for record in records},
    }


@contextmanager
def _built(destination: Storage) -> Iterator[Storage]:
    """Give a folder to fill, which on a local file system takes its name only once it is whole."""
    if not destination.is_local:
        yield destination
        return
    partial = Path(f"{destination.uri}.{uuid.uuid4().hex}.partial")
    try:
        yield Storage(str(partial))
        with destination.asked():
            partial.replace(destination.uri)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(subset: Artifact, record: FileRecord, folder: Storage, path: str) -> FileRecord:
    with subset.storage.open_input(subset.path(record.path)) as source, folder.open_output(folder.path(path)) as sink:
        shutil.copyfileobj(source, sink, CHUNK)
    return replace(record, path=path)


def _put(folder: Storage, path: str, data: bytes, rows: int | None = None) -> FileRecord:
    with folder.open_output(folder.path(path)) as sink:
        sink.write(data)
    size, digest = digest_of(io.BytesIO(data))
    return FileRecord(path, size, rows, digest)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
