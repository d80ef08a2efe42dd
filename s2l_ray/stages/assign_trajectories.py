"""`trajectories` of new rows + frozen `clusters` -> `assignments`: `assignments-*` and `set_aside-*` (Parquet).

Nothing is trained and no centroid moves. Rows that the first pool held already, copies among the new ones, rows that
the guard does not pass, and rows of a stratum without clusters are set aside with their reason.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.attempts import StagedOutput
from s2l_ray.clustering import nearest
from s2l_ray.clustering.drift import Drift, drift_of
from s2l_ray.clustering.guard import learning_ratio, set_aside
from s2l_ray.clustering.partition import window_columns
from s2l_ray.config import ClusterConfig, ResourcesConfig
from s2l_ray.draws import occurrences
from s2l_ray.log import display
from s2l_ray.sampling import cluster_keys

KNOWN = "in the first pool"
NO_CLUSTER = "no cluster of its source"


@dataclass(frozen=True)
class Inputs:
    """The new rows, and the pool whose clusters they join."""

    trajectories: Artifact
    examples: Artifact
    clusters: Artifact
    known: Artifact


def assign_trajectories(
    inputs: Inputs, config: ClusterConfig, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Give every new row its nearest centroid, and say how far the new rows are from the first."""
    table = inputs.trajectories.read_in_order("trajectories-")
    example_id_M, loss_MT = table.column("example_id").to_numpy(), schemas.matrix(table, "loss")
    strata = inputs.clusters.read_table("centroids.parquet")
    stratum_M = _strata(table, strata, config)
    reason_M, ratio_M = _reasons(inputs, table, loss_MT, config)
    label_M, distance_M = _assigned(loss_MT[:, window_columns(config.window, loss_MT.shape[1])], stratum_M, strata)
    reason_M = np.where(label_M < 0, NO_CLUSTER, reason_M)
    kept_M = np.array([reason is None for reason in reason_M])
    assignments = pa.table(
        {
            "example_id": example_id_M[kept_M],
            "stratum": stratum_M[kept_M],
            "cluster_id": label_M[kept_M],
            "distance": distance_M[kept_M],
        },
        schema=schemas.ASSIGNMENTS,
    )
    aside = pa.table(
        {
            "example_id": example_id_M[~kept_M],
            "reason": reason_M[~kept_M],
            "ratio": ratio_M[~kept_M],
            "loss_first": loss_MT[~kept_M, 0],
            "loss_last": loss_MT[~kept_M, -1],
        },
        schema=schemas.SET_ASIDE,
    )
    records = [
        output.write_parquet("assignments-00000.parquet", [assignments], schemas.ASSIGNMENTS),
        output.write_parquet("set_aside-00000.parquet", [aside], schemas.SET_ASIDE),
    ]
    reasons, counts = np.unique(reason_M[~kept_M].astype(str), return_counts=True)
    drift = _drift(inputs.clusters, assignments)
    summary = {
        "rows": len(assignments),
        "rows_set_aside": dict(zip(reasons.tolist(), counts.tolist(), strict=True)),
        "drift": None if drift is None else asdict(drift),
    }
    return StageResult(records, summary)


def _strata(table: pa.Table, centroids: pa.Table, config: ClusterConfig) -> NDArray[np.object_]:
    if config.stratify_by == "source":
        sources = table.column("source").to_numpy(zero_copy_only=False)
        return np.array([source or "" for source in sources], dtype=object)
    return np.full(len(table), centroids.column("stratum")[0].as_py(), dtype=object)


def _reasons(
    inputs: Inputs, table: pa.Table, loss_MT: NDArray[np.float32], config: ClusterConfig
) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Return why a row is set aside, None where it is not, and its share of loss that is left."""
    examples = inputs.examples.read_in_order("examples-", ["example_id", "content_hash"])
    place_M = np.searchsorted(examples.column("example_id").to_numpy(), table.column("example_id").to_numpy())
    hash_M = examples.column("content_hash").to_numpy()[place_M]
    known = inputs.known.read_table("examples-", ["content_hash"]).column(0).to_numpy()
    initial_M = table.column("loss_initial").to_numpy()
    if config.guard is None:
        ratio_M = learning_ratio(loss_MT, float(initial_M.mean(dtype=np.float64)))
        reason_M = np.full(len(table), None, dtype=object)
    else:
        occurrence_M = occurrences(hash_M, table.column("example_id").to_numpy())
        mean_initial = float(initial_M[occurrence_M == 0].mean(dtype=np.float64))
        found = set_aside(loss_MT, occurrence_M, mean_initial, config.guard)
        ratio_M, reason_M = found.ratio_N, found.reason_N
    return np.where(np.isin(hash_M, known), KNOWN, reason_M), ratio_M


def _assigned(
    feature_MT: NDArray[np.float32], stratum_M: NDArray[np.object_], centroids: pa.Table
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the cluster within the stratum, -1 where it has none, and the squared distance."""
    label_M, distance_M = np.full(len(feature_MT), -1, np.int32), np.zeros(len(feature_MT))
    of_stratum = centroids.column("stratum").to_numpy(zero_copy_only=False)
    centroid_KT = schemas.matrix(centroids, "centroid")
    for stratum in np.unique(of_stratum.astype(str)).tolist():
        here_M = stratum_M == stratum
        assignment = nearest.assign(feature_MT[here_M], centroid_KT[of_stratum == stratum])
        label_M[here_M], distance_M[here_M] = assignment.labels, assignment.sq_distance
    return label_M, distance_M


def _drift(clusters: Artifact, assignments: pa.Table) -> Drift | None:
    first = clusters.read_table("assignments-", ["stratum", "cluster_id", "distance"])
    both = pa.concat_tables([first, assignments.select(first.column_names)])
    key = cluster_keys(both.column("stratum").to_numpy(zero_copy_only=False), both.column("cluster_id").to_numpy())
    distances: list[Any] = [part.column("distance").to_numpy() for part in (first, assignments)]
    drift = drift_of(distances[0], key[: len(first)], distances[1], key[len(first) :])
    if drift is not None and drift.is_notable:
        display.warn(
            f"the new rows are not like the first pool: {drift.in_words}. The proxy may not know such rows; run the "
            "whole again on all rows"
        )
    return drift
