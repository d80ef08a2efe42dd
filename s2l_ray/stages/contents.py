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
from s2l_ray.id_index import IdIndex
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.blocks import each
from s2l_ray.stages.shared_storage import check_sign

PART_ROWS = 1_000_000
"""Rows whose hashes a task has in memory, about [rows]; what a task cuts off is then too large for Ray to keep it with
the driver, which it does with small objects."""


@dataclass(frozen=True)
class Contents:
    """Where the examples' hashes stand, and which rows are copies. Small, and cheap to pickle."""

    index: IdIndex
    copies: Copies
    seed: int

    def draws_of(self, example_id_M: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the draw of each of some rows, and its number among the rows of its content.

        Args:
            example_id_M: ascending.

        Raises:
            ArtifactError: an id is not there.
        """
        hash_M, found = np.empty(len(example_id_M), np.int64), 0
        for place, table in self.index.parts(example_id_M, ["content_hash"]):
            hash_M[place] = table.column("content_hash").to_numpy()
            found += len(place)
        if found < len(example_id_M):
            raise ArtifactError(
                f"{self.index.artifact.uri} lacks examples that have a trajectory; the two are not of one pool. "
                "Run `s2l gc`, and the same command again."
            )
        occurrence_M = self.copies.occurrence_of(example_id_M)
        return draw_hash(hash_M, occurrence_M, self.seed), occurrence_M


def find_copies(examples: Artifact, pool: PoolResources, output: StagedOutput) -> Copies:
    """Look through all examples, in tasks; `output` is the attempt that they are to see."""
    parts = _cut(examples, _n_parts(examples), pool, output)
    return Copies.joined(list(each(_copies, (tuple(part) for part in parts), pool)))


def find_known(examples: Artifact, known: Artifact, pool: PoolResources, output: StagedOutput) -> NDArray[np.int64]:
    """Return the ids, ascending, of the examples whose content another pool has."""
    n_parts = _n_parts(examples, known)
    cut = (_cut(each_pool, n_parts, pool, output) for each_pool in (examples, known))
    arguments = ((len(ours), *ours, *theirs) for ours, theirs in zip(*cut, strict=True))
    return np.sort(np.concatenate(list(each(_known, arguments, pool))))


def _n_parts(*pools: Artifact) -> int:
    return max(1, -(-sum(examples.rows("examples-") for examples in pools) // PART_ROWS))


def _cut(examples: Artifact, n_parts: int, pool: PoolResources, output: StagedOutput) -> list[list[Any]]:
    """Return references to the (hash, id) of each part's rows."""
    parts: list[list[Any]] = [[] for _ in range(n_parts)]
    blocks = ((examples, files, n_parts, output) for files in _groups(examples))
    for _, *cut in each(_cut_by_content, blocks, pool, returns=1 + n_parts):
        for part, reference in zip(parts, cut, strict=True):
            part.append(reference)
    return parts


def _groups(examples: Artifact) -> Iterator[list[FileRecord]]:
    group: list[FileRecord] = []
    for record in examples.files("examples-"):
        if group and sum(file.rows or 0 for file in group) + (record.rows or 0) > PART_ROWS:
            yield group
            group = []
        group.append(record)
    yield group


def _cut_by_content(examples: Artifact, files: list[FileRecord], n_parts: int, output: StagedOutput) -> tuple[Any, ...]:
    """Return how many rows there are, and the (hash, id) of those of each part."""
    check_sign(output)
    table = pa.concat_tables([examples.read_rows(file, columns=["content_hash", "example_id"]) for file in files])
    row_N2 = np.stack([column.to_numpy() for column in table.columns], axis=1)
    if n_parts == 1:
        return len(table), row_N2
    part_N = row_N2[:, 0] % n_parts
    return len(table), *(row_N2[part_N == part] for part in range(n_parts))


def _copies(*cut: NDArray[np.int64]) -> Copies:
    row_N2 = np.concatenate(cut)
    return Copies.among(row_N2[:, 0], row_N2[:, 1])


def _known(n_ours: int, *cut: NDArray[np.int64]) -> NDArray[np.int64]:
    ours_N2, theirs_N2 = np.concatenate(cut[:n_ours]), np.concatenate(cut[n_ours:])
    known: NDArray[np.int64] = ours_N2[np.isin(ours_N2[:, 0], theirs_N2[:, 0]), 1]
    return known
