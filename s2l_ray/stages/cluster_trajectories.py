"""`trajectories` -> `clusters`: `assignments-*.parquet`, `centroids.parquet`, `iterations.parquet`.

Exact Lloyd iterations on all rows: a Ray task per block computes partial sums, the driver merges them. Sums of losses
on their grid are exact, so neither the number of blocks nor the order of merging can be seen in the result.
Legend: N examples, T checkpoints, K clusters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from s2l_ray import kmeans, schemas
from s2l_ray.artifacts import Artifact, StagedOutput, StageResult
from s2l_ray.config import ClusterConfig, PoolResources, ResourcesConfig
from s2l_ray.log import Task, display
from s2l_ray.sampling import draw_hash, occurrences

BLOCK_ROWS = 250_000
"""Rows per task at most; smaller where that keeps all workers busy."""
ALL = "all"
"""The one stratum where there is no `stratify_by`."""


@dataclass(frozen=True)
class Inputs:
    """Trajectories, and the examples for the hashes that draws depend on."""

    trajectories: Artifact
    examples: Artifact


@dataclass(frozen=True)
class Rows:
    """What clustering knows of the examples, in order of id.

    Attributes:
        example_id_N: int64 [N].
        draw_N: uint64 [N], the hash that orders the rows for the start.
        stratum_N: object [N].
        loss_NT: float32 [N, T].
    """

    example_id_N: NDArray[np.int64]
    draw_N: NDArray[np.uint64]
    stratum_N: NDArray[np.object_]
    loss_NT: NDArray[np.float32]

    def where(self, mask_N: NDArray[np.bool_]) -> "Rows":
        """Return some of the rows."""
        return Rows(self.example_id_N[mask_N], self.draw_N[mask_N], self.stratum_N[mask_N], self.loss_NT[mask_N])


@dataclass(frozen=True)
class Clustered:
    """The clusters of one stratum."""

    stratum: str
    rows: Rows
    assignment: kmeans.Assignment
    centroid_KT: NDArray[np.float64]
    iterations: Sequence[kmeans.IterationStats]
    converged: bool


def cluster_trajectories(
    inputs: Inputs, config: ClusterConfig, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Cluster the trajectories of every stratum.

    Raises:
        DataError: a loss is NaN or infinite.
    """
    rows = _read(inputs, config, seed)
    strata = sorted(set(rows.stratum_N.tolist()))
    clustered = []
    with display.progress("cluster", len(strata) * config.max_iter, "iterations") as progress:
        for index, stratum in enumerate(strata):
            part = rows.where(rows.stratum_N == stratum)
            progress.update(index * config.max_iter)
            clustered.append(_cluster(stratum, part, config, resources.cluster_trajectories, seed, progress))
    assignments = pa.concat_tables([_assignments(c) for c in clustered]).sort_by("example_id")
    n_checkpoints = rows.loss_NT.shape[1]
    centroids = schemas.centroids(n_checkpoints)
    records = [
        output.write_parquet("assignments-00000.parquet", [assignments], schemas.ASSIGNMENTS),
        output.write_parquet("centroids.parquet", [_centroids(c, centroids) for c in clustered], centroids),
        output.write_parquet("iterations.parquet", [_iterations(c) for c in clustered], schemas.ITERATIONS),
    ]
    summary = {
        "rows": len(rows.example_id_N),
        "n_clusters": sum(len(c.centroid_KT) for c in clustered),
        "strata": len(strata),
        "inertia": float(sum(c.assignment.sq_distance.sum() for c in clustered)),
        "converged": all(c.converged for c in clustered),
    }
    return StageResult(records, summary)


def _read(inputs: Inputs, config: ClusterConfig, seed: int) -> Rows:
    table = inputs.trajectories.read_table("trajectories-", ["example_id", "source", "loss"]).sort_by("example_id")
    loss = table.column("loss").combine_chunks()
    loss_NT = loss.flatten().to_numpy().reshape(len(table), -1)
    hashes = inputs.examples.read_table("examples-", ["example_id", "content_hash"]).sort_by("example_id")
    example_id_N = table.column("example_id").to_numpy()
    all_ids = hashes.column("example_id").to_numpy()
    # Occurrences are counted over all examples, so that rows set aside later do not move the draws of others.
    draw = draw_hash(
        hashes.column("content_hash").to_numpy(),
        occurrences(hashes.column("content_hash").to_numpy(), all_ids),
        seed,
    )
    if config.stratify_by == "source":
        stratum_N = table.column("source").to_numpy(zero_copy_only=False).astype(object)
    else:
        stratum_N = np.full(len(table), ALL, dtype=object)
    return Rows(example_id_N, draw[np.searchsorted(all_ids, example_id_N)], stratum_N, loss_NT)


def _cluster(
    stratum: str, rows: Rows, config: ClusterConfig, pool: PoolResources, seed: int, progress: Task
) -> Clustered:
    kmeans.validate_trajectories(rows.loss_NT, rows.example_id_N)
    order = np.lexsort((rows.example_id_N, rows.draw_N))[: config.init_rows]
    sample_MT = rows.loss_NT[order]
    wanted = min(config.n_clusters, len(rows.example_id_N))
    n_clusters = kmeans.effective_n_clusters(wanted, sample_MT)
    if n_clusters < config.n_clusters:
        display.warn(
            f"stratum {stratum!r}: {len(rows.example_id_N)} examples with too few distinct trajectories for "
            f"{config.n_clusters} clusters; it gets {n_clusters}"
        )
    start_KT = kmeans.initial_centroids(sample_MT, n_clusters, seed)
    blocks = _Blocks(rows, pool)
    before = progress.done

    def on_iteration(stats: kmeans.IterationStats) -> None:
        progress.update(before + stats.iteration, note=f"inertia {stats.inertia:.6g}")

    result = kmeans.lloyd(blocks.step, start_KT, config.max_iter, relocate=blocks.farthest, on_iteration=on_iteration)
    assignment = blocks.assign(result.centroid_KT)
    return Clustered(stratum, rows, assignment, result.centroid_KT, result.iterations, result.converged)


class _Blocks:
    """The rows of a stratum, cut into blocks in Ray's object store."""

    def __init__(self, rows: Rows, pool: PoolResources) -> None:
        n_rows = len(rows.example_id_N)
        workers = max(1, min(pool.actors[1], int(ray.cluster_resources().get("CPU", 1) / pool.cpus)))
        n_blocks = max(workers, -(-n_rows // BLOCK_ROWS)) if n_rows > BLOCK_ROWS // 10 else 1
        bounds = np.linspace(0, n_rows, n_blocks + 1).astype(int)
        self._blocks = [
            (ray.put(rows.loss_NT[start:stop]), ray.put(rows.example_id_N[start:stop]))
            for start, stop in pairwise(bounds.tolist())
        ]
        self._options = {"num_cpus": pool.cpus, "num_gpus": 0}

    def _map(self, function: Any, *arguments: Any) -> Iterator[Any]:
        shared = [ray.put(argument) for argument in arguments]
        task = ray.remote(function).options(name=f"kmeans.{function.__name__}", **self._options)
        pending = [task.remote(loss, ids, *shared) for loss, ids in self._blocks]
        yield from (ray.get(reference) for reference in pending)

    def step(self, centroid_KT: NDArray[np.float64]) -> kmeans.Partial:
        """Return the sums of one Lloyd step over all blocks."""
        return kmeans.merge(self._map(_partial, centroid_KT))

    def farthest(self, centroid_KT: NDArray[np.float64], n: int) -> kmeans.Candidates:
        """Return the rows farthest from their centroids, for empty clusters."""
        return kmeans.merge_farthest(self._map(_farthest, centroid_KT, n), n)

    def assign(self, centroid_KT: NDArray[np.float64]) -> kmeans.Assignment:
        """Return labels and distances of all rows."""
        parts = list(self._map(_assign, centroid_KT))
        return kmeans.Assignment(
            np.concatenate([part.labels for part in parts]), np.concatenate([part.sq_distance for part in parts])
        )


def _partial(loss_NT: Any, example_id_N: Any, centroid_KT: Any) -> kmeans.Partial:
    return kmeans.partial_sums(loss_NT, kmeans.assign(loss_NT, centroid_KT), len(centroid_KT))


def _farthest(loss_NT: Any, example_id_N: Any, centroid_KT: Any, n: int) -> kmeans.Candidates:
    return kmeans.farthest(loss_NT, kmeans.assign(loss_NT, centroid_KT), example_id_N, n)


def _assign(loss_NT: Any, example_id_N: Any, centroid_KT: Any) -> kmeans.Assignment:
    return kmeans.assign(loss_NT, centroid_KT)


def _assignments(clustered: Clustered) -> pa.Table:
    return pa.table(
        {
            "example_id": clustered.rows.example_id_N,
            "stratum": [clustered.stratum] * len(clustered.rows.example_id_N),
            "cluster_id": clustered.assignment.labels,
            "distance": clustered.assignment.sq_distance,
        },
        schema=schemas.ASSIGNMENTS,
    )


def _centroids(clustered: Clustered, schema: pa.Schema) -> pa.Table:
    n_clusters, n_checkpoints = clustered.centroid_KT.shape
    return pa.table(
        {
            "stratum": [clustered.stratum] * n_clusters,
            "cluster_id": np.arange(n_clusters, dtype=np.int32),
            "size": np.bincount(clustered.assignment.labels, minlength=n_clusters),
            "centroid": pa.FixedSizeListArray.from_arrays(pa.array(clustered.centroid_KT.ravel()), n_checkpoints),
        },
        schema=schema,
    )


def _iterations(clustered: Clustered) -> pa.Table:
    return pa.table(
        {
            "stratum": [clustered.stratum] * len(clustered.iterations),
            "iteration": [stats.iteration for stats in clustered.iterations],
            "inertia": [stats.inertia for stats in clustered.iterations],
            "shift": [stats.shift for stats in clustered.iterations],
            "empty": [stats.n_empty for stats in clustered.iterations],
        },
        schema=schemas.ITERATIONS,
    )
