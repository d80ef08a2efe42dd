"""`trajectories` -> `clusters`: `assignments-*`, `centroids`, `iterations` and, with a guard, `set_aside` (Parquet).

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

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.attempts import StagedOutput
from s2l_ray.clustering import bounds, kmeans, nearest, seeding
from s2l_ray.clustering.guard import SUSPICIOUS_SHARE, SetAside, set_aside
from s2l_ray.clustering.partition import share_clusters, window_columns
from s2l_ray.config import ClusterConfig, PoolResources, ResourcesConfig
from s2l_ray.draws import Draws, occurrences
from s2l_ray.errors import DataError
from s2l_ray.labels import coded
from s2l_ray.log import Task, display
from s2l_ray.stages import metrics
from s2l_ray.stages.capacity import remote_options

BLOCK_ROWS = 250_000
"""Rows per task at most; smaller where that keeps all workers busy."""
ALL = "all"
"""The one stratum where there is no `stratify_by`."""


@dataclass(frozen=True)
class Inputs:
    """Trajectories, the examples for the hashes that draws depend on, and hidden states where they are clustered."""

    trajectories: Artifact
    examples: Artifact
    hidden_states: Artifact | None = None


@dataclass(frozen=True)
class Rows:
    """What clustering knows of the examples, in order of id.

    Attributes:
        example_id_N: int64 [N].
        draw_N: uint64 [N], the hash that orders the rows for the start.
        stratum_N: int32 [N], number of its stratum.
        feature_NT: float32 [N, T], what is clustered: losses at the checkpoints of the window, or hidden states.
    """

    example_id_N: NDArray[np.int64]
    draw_N: NDArray[np.uint64]
    stratum_N: NDArray[np.int32]
    feature_NT: NDArray[np.float32]

    def where(self, mask_N: NDArray[np.bool_]) -> "Rows":
        """Return some of the rows."""
        return Rows(self.example_id_N[mask_N], self.draw_N[mask_N], self.stratum_N[mask_N], self.feature_NT[mask_N])


@dataclass(frozen=True)
class Guarded:
    """What the guard was given and what it found, in order of id."""

    example_id_N: NDArray[np.int64]
    loss_NT: NDArray[np.float32]
    found: SetAside

    def table(self) -> pa.Table:
        """Return the rows that are set aside."""
        aside = np.flatnonzero(~self.found.kept_N)
        return pa.table(
            {
                "example_id": self.example_id_N[aside],
                "reason": self.found.reason_N[aside],
                "ratio": self.found.ratio_N[aside],
                "loss_first": self.loss_NT[aside, 0],
                "loss_last": self.loss_NT[aside, -1],
            },
            schema=schemas.SET_ASIDE,
        )


@dataclass(frozen=True)
class Clustered:
    """The clusters of one stratum."""

    stratum: str
    rows: Rows
    assignment: nearest.Assignment
    centroid_KT: NDArray[np.float64]
    iterations: Sequence[kmeans.IterationStats]
    converged: bool


def cluster_trajectories(
    inputs: Inputs, config: ClusterConfig, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Set aside what the guard finds, and cluster every stratum of the rest.

    Raises:
        ConfigError: the guard has a single checkpoint to go by.
        DataError: a loss is NaN or infinite, or the guard leaves no row.
    """
    strata, rows, guarded = _read(inputs, config, seed)
    size_S = np.bincount(rows.stratum_N, minlength=len(strata))
    # The guard may have left nothing of a stratum.
    there = np.flatnonzero(size_S)
    n_clusters_S = (
        share_clusters(size_S[there], config.n_clusters)
        if config.n_clusters_per == "pool"
        else np.full(len(there), config.n_clusters)
    )
    clustered = []
    with display.progress("cluster", len(there) * config.max_iter, "iterations") as progress:
        for index, (stratum, n_clusters) in enumerate(zip(there.tolist(), n_clusters_S.tolist(), strict=True)):
            part = rows if len(there) == 1 else rows.where(rows.stratum_N == stratum)
            progress.update(index * config.max_iter)
            work = _Work(config, resources.cluster_trajectories, seed, progress)
            clustered.append(_cluster(strata[stratum], part, n_clusters, work))
    assignments = pa.concat_tables([_assignments(c) for c in clustered])
    if len(clustered) > 1:
        assignments = assignments.sort_by("example_id")
    centroids = schemas.centroids(rows.feature_NT.shape[1])
    records = [
        output.write_parquet("assignments-00000.parquet", [assignments], schemas.ASSIGNMENTS),
        output.write_parquet("centroids.parquet", [_centroids(c, centroids) for c in clustered], centroids),
        output.write_parquet("iterations.parquet", [_iterations(c) for c in clustered], schemas.ITERATIONS),
    ]
    if guarded is not None:
        records.append(output.write_parquet("set_aside.parquet", [guarded.table()], schemas.SET_ASIDE))
    summary = {
        "rows": len(rows.example_id_N),
        **(_guard_summary(guarded) if guarded is not None else {}),
        "n_clusters": sum(len(c.centroid_KT) for c in clustered),
        "strata": len(there),
        "inertia": float(sum(c.assignment.sq_distance.sum() for c in clustered)),
        "converged": all(c.converged for c in clustered),
    }
    return StageResult(records, summary)


def _read(inputs: Inputs, config: ClusterConfig, seed: int) -> tuple[list[str], Rows, Guarded | None]:
    """Return the names of the strata, the rows to cluster, and what the guard found."""
    all_draws = Draws.of(inputs.examples.read_table("examples-", list(Draws.COLUMNS)), seed)
    example_id_N, loss_NT = inputs.trajectories.read_matrix("trajectories-", "loss")
    seeding.validate_trajectories(loss_NT, example_id_N)
    draws = all_draws.take(example_id_N)
    if config.stratify_by == "source":
        table = inputs.trajectories.read_in_order("trajectories-", ["example_id", "source"])
        strata, stratum_N = coded(table.column("source").fill_null(""))
    else:
        strata, stratum_N = [ALL], np.zeros(len(example_id_N), np.int32)
    if inputs.hidden_states is not None:
        _, feature_NT = inputs.hidden_states.read_matrix("hidden_states-", "hidden_state")
    else:
        columns = window_columns(config.window, loss_NT.shape[1])
        feature_NT = loss_NT if len(columns) == loss_NT.shape[1] else loss_NT[:, columns]
    rows = Rows(example_id_N, draws.draw_N, stratum_N, feature_NT)
    if config.guard is None:
        return strata, rows, None
    occurrence_N = occurrences(draws.content_hash_N, example_id_N)
    initial = inputs.trajectories.read_in_order("trajectories-", ["example_id", "loss_initial"])
    found = set_aside(initial.column("loss_initial").to_numpy(), loss_NT, occurrence_N, config.guard)
    _judge_guard(found)
    return strata, rows.where(found.kept_N), Guarded(example_id_N, loss_NT, found)


def _judge_guard(found: SetAside) -> None:
    if not found.kept_N.any():
        raise DataError(
            f"cluster.guard set all {len(found.ratio_N)} rows aside: the proxy learned none of them. Train it longer "
            "(proxy.epochs, proxy.learning_rate), or set cluster.guard to null."
        )
    if found.not_learned_share > SUSPICIOUS_SHARE:
        display.warn(
            f"the guard set {found.not_learned_share:.0%} of the rows aside as not learned; above "
            f"{SUSPICIOUS_SHARE:.0%} the proxy was trained too little, or much of the data is hard rather than wrong. "
            "Look at set_aside.parquet; train the proxy longer, or set cluster.guard to null"
        )


def _guard_summary(guarded: Guarded) -> dict[str, int | float]:
    found = guarded.found
    return {
        "rows_duplicate": int(found.duplicate_N.sum()),
        "rows_not_learned": int(found.not_learned_N.sum()),
        "not_learned_share": found.not_learned_share,
    }


@dataclass(frozen=True)
class _Work:
    """What all strata have in common."""

    config: ClusterConfig
    pool: PoolResources
    seed: int
    progress: Task


def _cluster(stratum: str, rows: Rows, n_clusters: int, work: _Work) -> Clustered:
    order = np.lexsort((rows.example_id_N, rows.draw_N))[: work.config.init_rows]
    sample_MT = rows.feature_NT[order]
    found = seeding.effective_n_clusters(min(n_clusters, len(rows.example_id_N)), sample_MT)
    if found < n_clusters:
        display.warn(
            f"stratum {stratum!r}: {len(rows.example_id_N)} examples with too few distinct trajectories for "
            f"{n_clusters} clusters; it gets {found}"
        )
    start_KT = seeding.initial_centroids(sample_MT, found, work.seed)
    blocks = _Blocks(rows, work.pool)
    before = work.progress.done

    def on_iteration(stats: kmeans.IterationStats) -> None:
        work.progress.update(before + stats.iteration, note=f"inertia {stats.inertia:.6g}")
        metrics.set_inertia(stratum, stats.inertia)

    result = kmeans.lloyd(
        blocks.step(), start_KT, work.config.max_iter, relocate=blocks.farthest, on_iteration=on_iteration
    )
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
            (ray.put(rows.feature_NT[start:stop]), ray.put(rows.example_id_N[start:stop]))
            for start, stop in pairwise(bounds.tolist())
        ]
        self._options = remote_options(pool)
        self._near: list[tuple[Any, ...]] = []

    def _map(self, function: Any, *arguments: Any) -> Iterator[Any]:
        """Run a task on every block and yield what the tasks return, in order of the blocks."""
        shared = [ray.put(argument) for argument in arguments]
        task = ray.remote(function).options(name=f"kmeans.{function.__name__}", **self._options)
        pending = [task.remote(loss, ids, *shared) for loss, ids in self._blocks]
        yield from (ray.get(reference) for reference in pending)

    def step(self) -> bounds.BoundedStep:
        """Return the pass over all rows."""
        return bounds.BoundedStep(self._first, self._again)

    def _first(self, centroid_KT: NDArray[np.float64], origin_T: NDArray[np.float64]) -> kmeans.Partial:
        return self._look(bounds.first_pass, [()] * len(self._blocks), centroid_KT, origin_T)

    def _again(self, centroid_KT: NDArray[np.float64], moves: bounds.Moves) -> kmeans.Partial | None:
        try:
            return self._look(bounds.next_pass, self._near, centroid_KT, moves)
        except ray.exceptions.ObjectLostError:
            return None  # with the node that kept it

    def _look(self, function: Any, known: Sequence[tuple[Any, ...]], *arguments: Any) -> kmeans.Partial:
        """Run a pass on every block, keep what it now knows of the rows where it is, and merge the sums."""
        shared = [ray.put(argument) for argument in arguments]
        task = ray.remote(function).options(name=f"kmeans.{function.__name__}", num_returns=2, **self._options)
        pending = [task.remote(loss, *near, *shared) for (loss, _), near in zip(self._blocks, known, strict=True)]
        self._near = [(near,) for near, _ in pending]
        return kmeans.merge(ray.get(sums) for _, sums in pending)

    def farthest(self, centroid_KT: NDArray[np.float64], n: int) -> kmeans.Candidates:
        """Return the rows farthest from their centroids, for empty clusters."""
        return kmeans.merge_farthest(self._map(_farthest, centroid_KT, n), n)

    def assign(self, centroid_KT: NDArray[np.float64]) -> nearest.Assignment:
        """Return labels and distances of all rows."""
        parts = list(self._map(_assign, centroid_KT))
        return nearest.Assignment(
            np.concatenate([part.labels for part in parts]), np.concatenate([part.sq_distance for part in parts])
        )


def _farthest(loss_NT: Any, example_id_N: Any, centroid_KT: Any, n: int) -> kmeans.Candidates:
    return kmeans.farthest(loss_NT, nearest.assign(loss_NT, centroid_KT), example_id_N, n)


def _assign(loss_NT: Any, example_id_N: Any, centroid_KT: Any) -> nearest.Assignment:
    return nearest.assign(loss_NT, centroid_KT)


def _assignments(clustered: Clustered) -> pa.Table:
    return pa.table(
        {
            "example_id": clustered.rows.example_id_N,
            "stratum": pa.repeat(pa.scalar(clustered.stratum, pa.string()), len(clustered.rows.example_id_N)),
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
