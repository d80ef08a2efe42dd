"""Contents of examples, found for any rows without holding those of all: what draws and copies are known by.

Which rows repeat an earlier one is only known from all of them. Tasks cut the hashes of all rows into parts of which
each has all rows of its contents, and find the copies in each part: a shuffle of 16 bytes a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray.artifacts import Artifact, FileRecord
from s2l_ray.config import PoolResources
from s2l_ray.draws import Copies, draw_hash
from s2l_ray.errors import ArtifactError
from s2l_ray.schemas import is_ascending
from s2l_ray.stages.blocks import each

PART_ROWS = 1_000_000
"""Rows whose hashes a task has in memory, about [rows]; a part of a block is then too large for Ray to keep it with
the driver, which it does with small objects."""
COLUMNS = ["example_id", "content_hash"]


@dataclass(frozen=True)
class Contents:
    """Where the examples' hashes stand, and which rows are copies. Small, and cheap to pickle.

    Attributes:
        examples: the artifact.
        first_F: int64 [F], the lowest id of each of its files.
        last_F: the highest.
        copies: of all rows.
        seed: of the draws.
    """

    examples: Artifact
    first_F: NDArray[np.int64]
    last_F: NDArray[np.int64]
    copies: Copies
    seed: int

    def draws_of(self, example_id_M: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the draw of each of some rows, and its number among the rows of its content.

        Args:
            example_id_M: ascending. Of the files, only those that hold ids between the first and the last are read.

        Raises:
            ArtifactError: an id is not there.
        """
        if not len(example_id_M):
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        overlap_F = (self.first_F <= example_id_M[-1]) & (self.last_F >= example_id_M[0])
        files = [record for record, take in zip(_files(self.examples), overlap_F, strict=True) if take]
        table = _hashes(self.examples, files)
        id_N, hash_N = table.column("example_id").to_numpy(), table.column("content_hash").to_numpy()
        place_M = np.minimum(np.searchsorted(id_N, example_id_M), max(0, len(id_N) - 1))
        if not len(id_N) or (id_N[place_M] != example_id_M).any():
            raise ArtifactError(
                f"{self.examples.uri} lacks examples that have a trajectory; the two are not of one pool. Run `s2l gc`."
            )
        occurrence_M = self.copies.occurrence_of(example_id_M)
        return draw_hash(hash_N[place_M], occurrence_M, self.seed), occurrence_M


def find_contents(examples: Artifact, pool: PoolResources, *, seed: int) -> Contents:
    """Look through all examples, in tasks."""
    n_parts = max(1, -(-examples.rows("examples-") // PART_ROWS))
    spans: list[NDArray[np.int64]] = []
    parts: list[list[Any]] = [[] for _ in range(n_parts)]
    blocks = ((examples, files, n_parts) for files in _groups(examples))
    for span_F2, *cut in each(_cut_by_content, blocks, pool, returns=1 + n_parts):
        spans.append(span_F2)
        for part, reference in zip(parts, cut, strict=True):
            part.append(reference)
    copies = Copies.joined(list(each(_copies, (tuple(part) for part in parts), pool)))
    first_F, last_F = np.concatenate(spans).T
    return Contents(examples, first_F, last_F, copies, seed)


def _files(examples: Artifact) -> list[FileRecord]:
    """Return the files that hold rows."""
    return [record for record in examples.files("examples-") if record.rows]


def _groups(examples: Artifact) -> Iterator[list[FileRecord]]:
    group: list[FileRecord] = []
    for record in _files(examples):
        if group and sum(each_file.rows or 0 for each_file in group) + (record.rows or 0) > PART_ROWS:
            yield group
            group = []
        group.append(record)
    yield group


def _hashes(examples: Artifact, files: list[FileRecord]) -> pa.Table:
    if not files:
        return pa.table({name: pa.array([], pa.int64()) for name in COLUMNS})
    table = pa.concat_tables([examples.read_rows(record, columns=COLUMNS) for record in files])
    return table if is_ascending(table.column("example_id").to_numpy()) else table.sort_by("example_id")


def _cut_by_content(examples: Artifact, files: list[FileRecord], n_parts: int) -> tuple[Any, ...]:
    """Return the lowest and highest id of each file, int64 [F, 2], and the rows (hash, id) of each part."""
    tables = [examples.read_rows(record, columns=COLUMNS) for record in files]
    ids = [table.column("example_id").to_numpy() for table in tables]
    span_F2 = np.array([(id_N.min(), id_N.max()) for id_N in ids], np.int64).reshape(-1, 2)
    row_N2 = np.stack([np.concatenate(ids), pa.concat_tables(tables).column("content_hash").to_numpy()], axis=1)
    if n_parts == 1:
        return span_F2, row_N2
    part_N = row_N2[:, 1] % n_parts
    return span_F2, *(row_N2[part_N == part] for part in range(n_parts))


def _copies(*cut: NDArray[np.int64]) -> Copies:
    row_N2 = np.concatenate(cut)
    return Copies.among(row_N2[:, 1], row_N2[:, 0])
