"""`trajectories` of new rows + frozen `clusters` -> `assignments`: `assignments-*` and `set_aside-*` (Parquet).

Nothing is trained and no centroid moves. Rows that the first pool held already, copies among the new ones, rows that
the guard does not pass, and rows of a stratum without clusters are set aside with their reason.
Legend: M new rows of a block, T checkpoints, K clusters of all strata.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, FileRecord, StageResult
from s2l_ray.clustering import drift, nearest, seeding
from s2l_ray.clustering.guard import has_reason, learning_ratio, set_aside
from s2l_ray.clustering.partition import window_columns
from s2l_ray.config import ClusterConfig, PoolResources, ResourcesConfig
from s2l_ray.errors import DataError
from s2l_ray.id_index import IdIndex
from s2l_ray.labels import coded, labelled
from s2l_ray.log import display
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import trajectory_blocks
from s2l_ray.stages.blocks import each, rows_at_once
from s2l_ray.stages.contents import Contents, find_copies, find_known
from s2l_ray.stages.shared_storage import leave_sign
from s2l_ray.stages.trajectory_blocks import Reader, aside_table, strata_of

KNOWN = "in the first pool"
NO_CLUSTER = "no cluster of its source"


@dataclass(frozen=True)
class Inputs:
    """The new rows, and the pool whose clusters they join."""

    trajectories: Artifact
    examples: Artifact
    clusters: Artifact
    known: Artifact


@dataclass(frozen=True)
class Centroids:
    """The clusters as they are.

    Attributes:
        strata: names, in order of their clusters.
        stratum_K: int32 [K], number of each cluster's stratum; the clusters of a stratum stand together.
        size_K: int64 [K], rows of the first pool.
        centroid_KT: float64 [K, T].
        far: squared distance beyond which a row is far out [nats^2].
    """

    strata: list[str]
    stratum_K: NDArray[np.int32]
    size_K: NDArray[np.int64]
    centroid_KT: NDArray[np.float64]
    far: float

    @cached_property
    def first_S(self) -> NDArray[np.int64]:
        """The first cluster of each stratum."""
        first_S: NDArray[np.int64] = np.searchsorted(self.stratum_K, np.arange(len(self.strata)))
        return first_S


@dataclass(frozen=True)
class Assigned:
    """What the driver is told of a block.

    Attributes:
        new_K: int64 [K], rows that joined each cluster.
        n_far: those of them that are far out.
        reasons: why others did not join one.
    """

    records: list[FileRecord]
    new_K: NDArray[np.int64]
    n_far: int
    reasons: Counter[str]


def assign_trajectories(
    inputs: Inputs, config: ClusterConfig, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Give every new row its nearest centroid, and say how far the new rows are from the first.

    Raises:
        ConfigError: the guard has a single checkpoint to go by.
        DataError: there is no new row.
    """
    pool = resources.cluster_trajectories
    leave_sign(output)
    copies = find_copies(inputs.examples, pool, output)
    rows = trajectory_blocks.Inputs(inputs.trajectories, inputs.examples)
    if not rows.rows:
        raise DataError("none of the new rows has a trajectory: none is left after tokenizing. Bring other new rows.")
    reader = Reader(rows, config, Contents(IdIndex.of(inputs.examples, "examples-"), copies, seed), output)
    known = find_known(inputs.examples, inputs.known, pool, output)
    centroids = _centroids(inputs.clusters, pool)
    # The guard judges new rows as it judged those of the pool; clusters of older versions do not say by what.
    mean_initial = inputs.clusters.summary.get("mean_initial") or reader.look_over(pool).mean_initial
    shared = [ray.put(value) for value in (mean_initial, centroids, known)]
    numbered = enumerate(reader.spans(rows_at_once(rows.rows)))
    found: list[Assigned] = list(each(_assign, ((number, *span, *shared) for number, span in numbered), pool))
    new_K = np.sum([block.new_K for block in found], axis=0)
    notable = _drift(centroids, new_K, sum(block.n_far for block in found))
    reasons = sum((block.reasons for block in found), Counter[str]())
    summary = {
        "rows": int(new_K.sum()),
        "rows_set_aside": dict(sorted(reasons.items())),
        "drift": None if notable is None else asdict(notable),
    }
    return StageResult([record for block in found for record in block.records], summary)


def _centroids(clusters: Artifact, pool: PoolResources) -> Centroids:
    table = clusters.read_table("centroids.parquet")
    strata, stratum_K = coded(table.column("stratum"))
    size_K = table.column("size").to_numpy()
    n_rows = int(size_K.sum())
    n_kept, largest = drift.n_beyond(n_rows), np.empty(0)
    files = ((clusters, record, n_kept) for record in clusters.files("assignments-"))
    for part in each(_largest, files, pool):
        largest = _top(np.concatenate([largest, part]), n_kept)
    return Centroids(strata, stratum_K, size_K, schemas.matrix(table, "centroid"), drift.far_distance(largest, n_rows))


def _largest(clusters: Artifact, record: FileRecord, n_kept: int) -> NDArray[np.float64]:
    return _top(clusters.read_rows(record, columns=["distance"]).column(0).to_numpy(), n_kept)


def _top(value_N: NDArray[np.float64], n_kept: int) -> NDArray[np.float64]:
    return value_N if len(value_N) <= n_kept else np.partition(value_N, -n_kept)[-n_kept:]


def _assign(
    number: int,
    reader: Reader,
    start: int,
    stop: int,
    mean_initial: float,
    centroids: Centroids,
    known: NDArray[np.int64],
) -> Assigned:
    table = reader.read(start, stop, ["example_id", "source", "loss"])
    example_id_M, loss_MT = table.column("example_id").to_numpy(), schemas.matrix(table, "loss")
    seeding.validate_trajectories(loss_MT, example_id_M)
    ratio_M, reason_M = learning_ratio(loss_MT, mean_initial), np.full(len(table), None, dtype=object)
    if reader.config.guard is not None:
        occurrence_M = reader.contents.copies.occurrence_of(example_id_M)
        reason_M = set_aside(loss_MT, occurrence_M, mean_initial, reader.config.guard).reason_N
    reason_M[np.isin(example_id_M, known)] = KNOWN
    stratum_M = strata_of(table, reader.config, centroids.strata)
    reason_M[stratum_M < 0] = NO_CLUSTER
    kept = np.flatnonzero(~has_reason(reason_M))
    feature_MT = loss_MT[kept][:, window_columns(reader.config.window, loss_MT.shape[1])]
    nearest_M, distance_M = _nearest(feature_MT, stratum_M[kept], centroids)
    assignments = pa.table(
        {
            "example_id": example_id_M[kept],
            "stratum": labelled(stratum_M[kept], centroids.strata),
            "cluster_id": (nearest_M - centroids.first_S[stratum_M[kept]]).astype(np.int32),
            "distance": distance_M,
        },
        schema=schemas.ASSIGNMENTS,
    )
    aside = aside_table(example_id_M, loss_MT, ratio_M, reason_M)
    records = [
        reader.output.write_parquet(f"{name}-{number:05d}.parquet", [each_table], each_table.schema)
        for name, each_table in (("assignments", assignments), ("set_aside", aside))
        if len(each_table) or number == 0
    ]
    new_K = np.bincount(nearest_M, minlength=len(centroids.size_K))
    reasons = Counter(aside.column("reason").to_pylist())
    return Assigned(records, new_K, int((distance_M > centroids.far).sum()), reasons)


def _nearest(
    feature_MT: NDArray[np.float32], stratum_M: NDArray[np.int32], centroids: Centroids
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest cluster of each row's stratum, as its number among all, and the squared distance."""
    nearest_M, distance_M = np.zeros(len(feature_MT), np.int64), np.zeros(len(feature_MT))
    for stratum in np.unique(stratum_M):
        here_M, first = stratum_M == stratum, centroids.first_S[stratum]
        assignment = nearest.assign(feature_MT[here_M], centroids.centroid_KT[centroids.stratum_K == stratum])
        nearest_M[here_M], distance_M[here_M] = first + assignment.labels, assignment.sq_distance
    return nearest_M, distance_M


def _drift(centroids: Centroids, new_K: NDArray[np.int64], n_far: int) -> drift.Drift | None:
    found = drift.drift_of(centroids.size_K, new_K, n_far)
    if found is not None and found.is_notable:
        display.warn(
            f"the new rows are not like the first pool: {found.in_words}. The proxy may not know such rows; run the "
            "whole again on all rows"
        )
    return found
