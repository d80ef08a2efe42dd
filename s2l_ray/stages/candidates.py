"""The rows of the pool that a selection can take: few where draws decide, all where scores do.

A selector shares its budget over classes of groups: clusters, sources, or all rows at once. How many rows the first of
its ranking can take of each follows from sizes alone, and which these are from draws; so the driver holds what grows
with the subset and not with the pool.
Legend: G groups, C classes, N candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray.artifacts import Artifact
from s2l_ray.labels import NONE, coded
from s2l_ray.sampling import Beside
from s2l_ray.stages.pool_blocks import PoolBlocks, Rows


@dataclass(frozen=True)
class Groups:
    """What the groups of the pool are, in numbers.

    Attributes:
        sources: names, in order; likewise `strata`.
        source_G: int32 [G], place of each group's source, `NONE` where it has none; likewise `stratum_G`.
        cluster_id_G: int32 [G], -1 for no cluster.
        size_G: int64 [G], rows.
    """

    sources: list[str]
    strata: list[str]
    source_G: NDArray[np.int32]
    stratum_G: NDArray[np.int32]
    cluster_id_G: NDArray[np.int32]
    size_G: NDArray[np.int64]

    @classmethod
    def of(cls, pool: PoolBlocks) -> "Groups":
        """Number the groups of a pool."""
        sources, source_G = coded(_texts([group.source for group in pool.groups]))
        strata, stratum_G = coded(_texts([group.stratum for group in pool.groups]))
        cluster_id_G = np.array([group.cluster_id for group in pool.groups], np.int32)
        return cls(sources, strata, source_G, stratum_G, cluster_id_G, pool.size_G)

    def sizes(self, class_G: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of each class of groups; int64 [C]."""
        return np.bincount(class_G, weights=self.size_G).astype(np.int64)


def _texts(values: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


class Sharing(Protocol):
    """How a selector shares its budget."""

    def classes(self, groups: Groups) -> NDArray[np.int64]:
        """Return what the budget is shared over: int64 [G], the number of each group's class."""

    def most_taken(
        self, groups: Groups, class_G: NDArray[np.int64], before_C: Beside, n_wanted: int
    ) -> NDArray[np.int64]:
        """Bound what the first `n_wanted` rows of the ranking can take of each class; int64 [C]."""


@dataclass(frozen=True)
class Candidates:
    """The rows that are ranked, in order of id.

    Attributes:
        rows: their columns.
        groups: of the pool.
        beside_N: what the class of each row has beside these rows.
        source_beside_N: int64 [N], rows that its source has beside these.
    """

    rows: Rows
    groups: Groups
    beside_N: Beside
    source_beside_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows.example_id)

    @property
    def source_N(self) -> NDArray[np.int32]:
        """Number of each row's source, `NONE` where it has none."""
        source_N: NDArray[np.int32] = self.groups.source_G[self.rows.group]
        return source_N

    @property
    def stratum_N(self) -> NDArray[np.int32]:
        """Number of each row's stratum, `NONE` where it is in no cluster."""
        stratum_N: NDArray[np.int32] = self.groups.stratum_G[self.rows.group]
        return stratum_N

    @property
    def cluster_id_N(self) -> NDArray[np.int32]:
        """Each row's cluster within its stratum, -1 where it is in none."""
        cluster_id_N: NDArray[np.int32] = self.groups.cluster_id_G[self.rows.group]
        return cluster_id_N


@dataclass(frozen=True)
class Before:
    """What clusters held and gave before the rows of the pool came, by (stratum, cluster id)."""

    size: Mapping[tuple[str, int], int]
    taken: Mapping[tuple[str, int], int]

    @classmethod
    def of(cls, clusters: Artifact, subset: Artifact) -> "Before":
        """Read it."""
        centroids = clusters.read_table("centroids.parquet", ["stratum", "cluster_id", "size"])
        chosen = subset.read_table("subset.parquet", ["stratum", "cluster_id"])
        counted = chosen.group_by(["stratum", "cluster_id"]).aggregate([([], "count_all")])
        return cls(_by_cluster(centroids, "size"), _by_cluster(counted, "count_all"))


def _by_cluster(table: pa.Table, count: str) -> dict[tuple[str, int], int]:
    return {(row["stratum"], row["cluster_id"]): row[count] for row in table.to_pylist()}


def fetch_candidates(pool: PoolBlocks, sharing: Sharing, before: Before | None, n_wanted: int) -> Candidates:
    """Fetch the rows that the first of a ranking can be.

    Args:
        pool: where they are.
        sharing: of the selector.
        before: where the rows of the pool join clusters that were there.
        n_wanted: how many of the ranking are taken at most.
    """
    groups = Groups.of(pool)
    class_G = sharing.classes(groups)
    size_C = groups.sizes(class_G)
    before_C = _before(before, groups, class_G, len(size_C))
    rows = pool.lowest(class_G, sharing.most_taken(groups, class_G, before_C, n_wanted))
    left_G = groups.size_G - np.bincount(rows.group, minlength=len(groups.size_G))
    left_C = np.bincount(class_G, weights=left_G, minlength=len(size_C)).astype(np.int64)
    left_S = np.bincount(groups.source_G - NONE, weights=left_G).astype(np.int64)
    beside_N = Beside(before_C.size_N + left_C, before_C.taken_N).take(class_G[rows.group])
    return Candidates(rows, groups, beside_N, left_S[groups.source_G[rows.group] - NONE])


def _before(before: Before | None, groups: Groups, class_G: NDArray[np.int64], n_classes: int) -> Beside:
    size_C, taken_C = np.zeros(n_classes, np.int64), np.zeros(n_classes, np.int64)
    if before is not None:
        for of_class, stratum, cluster_id in zip(class_G, groups.stratum_G, groups.cluster_id_G, strict=True):
            key = (groups.strata[stratum], int(cluster_id))
            size_C[of_class], taken_C[of_class] = before.size.get(key, 0), before.taken.get(key, 0)
    return Beside(size_C, taken_C)
