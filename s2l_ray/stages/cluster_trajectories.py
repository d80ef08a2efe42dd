"""`trajectories` -> `clusters`: `assignments-*`, `centroids`, `iterations` and, with a guard, `set_aside-*` (Parquet).

Exact Lloyd iterations on all rows: tasks read them into blocks, pass over the blocks, and write what became of each
row. The driver holds sums and the rows that the start is chosen from, however many rows there are.
Legend: N examples, T checkpoints, K clusters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import FileRecord, StageResult
from s2l_ray.clustering import kmeans, nearest, partials, seeding
from s2l_ray.clustering.partition import share_clusters
from s2l_ray.config import ClusterConfig, PoolResources, ResourcesConfig
from s2l_ray.id_index import IdIndex
from s2l_ray.labels import labelled
from s2l_ray.log import Task, display
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import metrics
from s2l_ray.stages.blocks import each
from s2l_ray.stages.contents import Contents, find_copies
from s2l_ray.stages.distributed_kmeans import StratumRows
from s2l_ray.stages.shared_storage import check_sign, leave_sign
from s2l_ray.stages.trajectory_blocks import Block, Inputs, Overview, Reader, not_learned_share

__all__ = ["Inputs", "cluster_trajectories"]


@dataclass(frozen=True)
class Clustered:
    """The clusters of one stratum.

    Attributes:
        stratum: its name.
        centroid_KT: float64 [K, T]; no cluster where the guard left nothing of the stratum.
        iterations: how they came about.
        converged: whether that had ended.
    """

    stratum: str
    centroid_KT: NDArray[np.float64]
    iterations: Sequence[kmeans.IterationStats] = ()
    converged: bool = True


def cluster_trajectories(
    inputs: Inputs, config: ClusterConfig, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Set aside what the guard finds, and cluster every stratum of the rest.

    Raises:
        ConfigError: the guard has a single checkpoint to go by.
        DataError: a loss is NaN or infinite, or the guard leaves no row.
    """
    pool = resources.cluster_trajectories
    leave_sign(output)
    contents = Contents(IdIndex.of(inputs.examples, "examples-"), find_copies(inputs.examples, pool, output), seed)
    reader = Reader(inputs, config, contents, output)
    overview = reader.overview(pool)
    blocks = reader.blocks(overview, pool)
    settings = _Settings(config, pool, seed)
    clustered = _cluster_all(blocks, overview.strata, settings)
    files, sums = _write_all(blocks, clustered, settings, output)
    there = [(each_stratum, part) for each_stratum, part in zip(clustered, sums, strict=True) if part.count_K.size]
    centroids = schemas.centroids(blocks[0].found.width)
    tables = [_centroids(each_stratum, part, centroids) for each_stratum, part in there]
    records = [
        *files,
        output.write_parquet("centroids.parquet", tables, centroids),
        output.write_parquet("iterations.parquet", [_iterations(c) for c, _ in there], schemas.ITERATIONS),
    ]
    summary = {
        "rows": sum(int(part.count_K.sum()) for part in sums),
        **(_guard_summary(blocks, overview) if config.guard is not None else {}),
        "n_clusters": sum(len(c.centroid_KT) for c in clustered),
        "strata": len(there),
        "inertia": math.fsum(part.inertia for part in sums),
        "converged": all(c.converged for c in clustered),
    }
    return StageResult(records, summary)


def _guard_summary(blocks: list[Block], overview: Overview) -> dict[str, int | float]:
    found = [block.found for block in blocks]
    return {
        "mean_initial": overview.mean_initial,
        "rows_duplicate": sum(block.duplicates for block in found),
        "rows_not_learned": sum(block.not_learned for block in found),
        "not_learned_share": not_learned_share(found),
    }


# ---------------------------------------------------------------------------------------------------------- clustering


@dataclass(frozen=True)
class _Settings:
    """What all strata have in common."""

    config: ClusterConfig
    pool: PoolResources
    seed: int


def _cluster_all(blocks: list[Block], strata: tuple[str, ...], settings: _Settings) -> list[Clustered]:
    """Cluster each stratum on its own; the guard may have left nothing of one."""
    config = settings.config
    size_S = np.sum([block.found.size_S for block in blocks], axis=0)
    there = np.flatnonzero(size_S)
    n_clusters_S = np.zeros(len(strata), np.int64)
    n_clusters_S[there] = (
        share_clusters(size_S[there], config.n_clusters) if config.n_clusters_per == "pool" else config.n_clusters
    )
    width = blocks[0].found.width
    clustered = [Clustered(stratum, np.empty((0, width))) for stratum in strata]
    with display.progress("cluster", len(there) * config.max_iter, "iterations") as progress:
        for index, stratum in enumerate(there.tolist()):
            progress.update(index * config.max_iter)
            rows = StratumRows(blocks, stratum, settings.pool)
            clustered[stratum] = _cluster(strata[stratum], rows, int(n_clusters_S[stratum]), settings, progress)
    return clustered


def _cluster(stratum: str, rows: StratumRows, n_clusters: int, settings: _Settings, progress: Task) -> Clustered:
    config = settings.config
    sample_MT = rows.sample(config.init_rows).feature_MT
    found = seeding.effective_n_clusters(min(n_clusters, rows.rows), sample_MT)
    if found < n_clusters:
        display.warn(
            f"stratum {stratum!r}: {rows.rows} examples with too few distinct trajectories for {n_clusters} clusters; "
            f"it gets {found}"
        )
    start_KT = seeding.initial_centroids(sample_MT, found, settings.seed)
    before = progress.done

    def on_iteration(stats: kmeans.IterationStats) -> None:
        progress.update(before + stats.iteration, note=f"inertia {stats.inertia:.6g}")
        metrics.set_inertia(stratum, stats.inertia)

    result = kmeans.lloyd(rows.step(), start_KT, config.max_iter, relocate=rows.farthest, on_iteration=on_iteration)
    return Clustered(stratum, result.centroid_KT, result.iterations, result.converged)


# ------------------------------------------------------------------------------------------------------------- writing


def _write_all(
    blocks: list[Block], clustered: list[Clustered], settings: _Settings, output: StagedOutput
) -> tuple[list[FileRecord], list[partials.Partial]]:
    """Assign all rows to the final centroids and write files for each block; return the size and inertia of each."""
    shared, has_guard = ray.put(clustered), settings.config.guard is not None
    arguments = (
        (output, number, shared, block.start_S1, block.feature, block.example_id, block.aside if has_guard else None)
        for number, block in enumerate(blocks)
    )
    files: list[FileRecord] = []
    sums = [partials.Partial.zero(len(c.centroid_KT), 0) for c in clustered]
    with display.progress("write clusters", sum(block.found.rows for block in blocks), "rows") as progress:
        for (written, parts), block in zip(each(_write, arguments, settings.pool), blocks, strict=True):
            files += written
            sums = [partials.merge(both) for both in zip(sums, parts, strict=True)]
            progress.advance(block.found.rows)
    return files, sums


def _write(
    output: StagedOutput,
    number: int,
    clustered: list[Clustered],
    start_S1: NDArray[np.int64],
    feature_NT: NDArray[np.float32],
    example_id_N: NDArray[np.int64],
    aside: pa.Table | None,
) -> tuple[list[FileRecord], list[partials.Partial]]:
    check_sign(output)
    assigned, sums = [], []
    for stratum, start, stop in zip(clustered, start_S1[:-1], start_S1[1:], strict=True):
        part_NT, n_clusters = feature_NT[start:stop], len(stratum.centroid_KT)
        assignment = nearest.assign(part_NT, stratum.centroid_KT) if start < stop else _NOTHING
        assigned.append(assignment)
        # Of no column: sums are not needed any more.
        sums.append(partials.partial_sums(part_NT[:, :0], assignment, n_clusters))
    stratum_N = np.repeat(np.arange(len(clustered), dtype=np.int32), np.diff(start_S1))
    table = pa.table(
        {
            "example_id": example_id_N,
            "stratum": labelled(stratum_N, [c.stratum for c in clustered]),
            "cluster_id": np.concatenate([assignment.labels for assignment in assigned]),
            "distance": np.concatenate([assignment.sq_distance for assignment in assigned]),
        },
        schema=schemas.ASSIGNMENTS,
    )
    if len(clustered) > 1:
        table = table.sort_by("example_id")
    files = []
    if len(table):
        files.append(output.write_parquet(f"assignments-{number:05d}.parquet", [table], schemas.ASSIGNMENTS))
    # One at least, which says that there was a guard.
    if aside is not None and (len(aside) or number == 0):
        files.append(output.write_parquet(f"set_aside-{number:05d}.parquet", [aside], schemas.SET_ASIDE))
    return files, sums


_NOTHING = nearest.Assignment(np.empty(0, np.int32), np.empty(0))


def _centroids(clustered: Clustered, sums: partials.Partial, schema: pa.Schema) -> pa.Table:
    n_clusters, width = clustered.centroid_KT.shape
    return pa.table(
        {
            "stratum": [clustered.stratum] * n_clusters,
            "cluster_id": np.arange(n_clusters, dtype=np.int32),
            "size": sums.count_K,
            "centroid": pa.FixedSizeListArray.from_arrays(pa.array(clustered.centroid_KT.ravel()), width),
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
