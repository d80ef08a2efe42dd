"""Chosen rows as a folder to take along: rows, `selection.parquet`, a data set card, and LLaMA-Factory's entry.

The rows are copied byte for byte from a subset, an extension, or a subset and the extensions that top it up, whose
checksums are tried first. Two exports of the same are equal, wherever they are written.
"""

import io
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
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
from s2l_ray.errors import ConfigError
from s2l_ray.filesystems import CHUNK, digest_of
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import PAIRS, find_inputs
from s2l_ray.layouts import Layout
from s2l_ray.log import without_user_info
from s2l_ray.storage import Storage
from s2l_ray.subsets.data_files import FOLDER, DataFile, describe, export_paths, grouped, of_one_kind
from s2l_ray.subsets.dataset_card import CARD, SELECTION, Card
from s2l_ray.subsets.lineage import check_undamaged
from s2l_ray.subsets.llama_factory import DATASET_INFO, dataset_info
from s2l_ray.subsets.part import Part, parts_of, selection_of
from s2l_ray.subsets.provenance import config_again

_ROWS = "rows/"
"""Where an artifact keeps the rows."""


@dataclass(frozen=True)
class Export:
    """What is exported, before anything is written.

    Attributes:
        parts: a subset, or an extension, or a subset and extensions of it.
        files: the files of rows, part after part, each in its input's order.
    """

    parts: tuple[Part, ...]
    files: tuple[DataFile, ...]

    @classmethod
    def of(cls, *artifacts: Artifact) -> "Export":
        """Gather what belongs to a subset, or to an extension, or to a subset and extensions of it.

        Raises:
            ArtifactError: a file is damaged, or the storage does not hold the examples.
            ConfigError, DataError: a file of rows cannot be read, or several do not go together.
        """
        parts = parts_of(artifacts)
        check_undamaged(*(artifact for part in parts for artifact in (part.artifact, part.examples)))
        files = [file for part in parts for file in _files(part, f"{FOLDER}/{part.label}" if artifacts[1:] else FOLDER)]
        return cls(parts, tuple(files))

    def write(self, folder: Storage, repository: str | None = None) -> list[FileRecord]:
        """Write everything; the card is the last, so that a folder without one is no export.

        Args:
            folder: empty.
            repository: the data set of the hub that the folder will be; see `dataset_info`.

        Returns:
            The files, but for the card.
        """
        groups, selection = grouped(self.files), selection_of(self.parts)
        originals = [(part.artifact, record) for part in self.parts for record in part.artifact.files(_ROWS)]
        records = [
            _copy(artifact, record, folder, file.path)
            for (artifact, record), file in zip(originals, self.files, strict=True)
        ]
        records.append(_put(folder, SELECTION, _parquet(selection), selection.num_rows))
        # On the hub one data set has files of one kind, and the others are loaded by their paths.
        named = groups if repository is None else of_one_kind(groups)
        info = dataset_info(named, self._layouts(), repository)
        if info:
            records.append(_put(folder, DATASET_INFO, (json.dumps(info, indent=2) + "\n").encode()))
        card = Card(self.parts, groups, records, _config_again(self.parts[0].base()), list(info), repository)
        _put(folder, CARD, card.text().encode())
        return records

    def _layouts(self) -> list[Layout]:
        # Versions before this one did not tell.
        told = [layout for part in self.parts for layout in part.examples.summary.get("layouts", [])]
        return [Layout(**layout) for layout in told]


def _files(part: Part, folder: str) -> Iterator[DataFile]:
    records = part.artifact.files(_ROWS)
    inputs = [_input_file(part.artifact, record) for record in records]
    for file, path, record in zip(inputs, export_paths(inputs, folder), records, strict=True):
        yield describe(file, path, record.rows or 0, part.inputs[file.name])


def _config_again(base: Part) -> dict[str, Any]:
    """Return a config that makes a subset again."""
    return config_again(base.artifact, base.lineage, base.files_read())


def _input_file(artifact: Artifact, record: FileRecord) -> InputFile:
    """Return a file of rows as a file to be read, with the name that it had as an input."""
    path = record.path if artifact.storage.is_local else quote(record.path)
    # What is neither JSON nor a table has been read as pairs of lines before.
    (file,) = find_inputs((InputPath(path=artifact.uri_of(path), format=PAIRS),), key="rows")
    return replace(file, name=record.path.removeprefix(_ROWS))


def export_folder(artifacts: Sequence[Artifact], to: str) -> dict[str, Any]:
    """Write a subset, an extension, or a subset and its extensions to a new folder.

    Args:
        artifacts: see `Export.of`.
        to: a local path or a `pyarrow.fs` URI.

    Raises:
        ConfigError: the folder is not empty, or cannot be written.
        ArtifactError, DataError: see `Export.of`.
    """
    destination = Storage.at(to)
    found = destination.filesystem.get_file_info(pafs.FileSelector(destination.path(), allow_not_found=True))
    if found:
        raise ConfigError(
            f"{without_user_info(to)} is not empty: it holds {found[0].base_name}. Expected a new folder; name "
            "another one with --to, or remove that one."
        )
    content = Export.of(*artifacts)
    with _built(destination) as folder:
        records = content.write(folder)
    return _told(content, records) | {"folder": destination.uri}


def push(artifacts: Sequence[Artifact], uri: str, *, is_public: bool, replaces: bool) -> dict[str, Any]:
    """Write the same to a data set of the Hugging Face hub, which is made where there is none.

    Args:
        artifacts: see `Export.of`.
        uri: `hf://datasets/owner/name`.
        is_public: whether everybody may see it.
        replaces: whether files that it holds may be replaced and removed.

    Raises:
        ConfigError: the URI names no data set, the data set holds files or is seen by more people than asked for, or
            the hub refuses or does not answer.
        ArtifactError, DataError: see `Export.of`.
    """
    repository = hub.repository_of(uri)
    hub.check_may_push(repository, is_public=is_public, replaces=replaces)
    content = Export.of(*artifacts)
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
        records = content.write(Storage.at(folder), repository)
        address = hub.push(folder, repository, is_public=is_public)
    return _told(content, records) | {"folder": uri, "address": address, "private": not is_public}


def _told(content: Export, records: list[FileRecord]) -> dict[str, Any]:
    return {
        **{part.label: part.artifact.uri for part in content.parts},
        "rows": sum(part.selection.num_rows for part in content.parts),
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


def _copy(artifact: Artifact, record: FileRecord, folder: Storage, path: str) -> FileRecord:
    with (
        artifact.storage.open_input(artifact.path(record.path)) as source,
        folder.open_output(folder.path(path)) as sink,
    ):
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
