"""Where k-means starts: the rows it looks at are checked, and K of them chosen.

Shape suffixes: N examples, T checkpoints, K clusters, M rows of the start's sample.
"""

import numpy as np
import numpy.typing as npt

from s2l_ray.clustering.nearest import FloatArray, IntArray, LossArray
from s2l_ray.errors import ConfigError, DataError

START_ROWS = 65_536
"""Rows that the start looks at [rows]; k-means++ is sequential, so it runs in one place on a sample."""

_IDS_SHOWN = 5


def validate_trajectories(loss_NT: LossArray, example_id_N: IntArray | None = None) -> None:
    """Check that a block of trajectories can be clustered.

    Args:
        loss_NT: losses [nats/token], N examples x T checkpoints. N = 0 passes: a block may be empty.
        example_id_N: ids to name in the message; row positions are named where it is None.

    Raises:
        DataError: not two-dimensional, no checkpoint, or a loss that is NaN or infinite.
    """
    if loss_NT.ndim != 2 or loss_NT.shape[1] == 0:
        raise DataError(
            f"The trajectories have shape {loss_NT.shape}; expected one row per example and at least one "
            "checkpoint. Set proxy.checkpoints to 1 or more and score again."
        )
    bad_N = ~np.isfinite(loss_NT).all(axis=1)
    n_bad = int(np.count_nonzero(bad_N))
    if n_bad == 0:
        return
    position = np.flatnonzero(bad_N)
    ids = [int(i) for i in (position if example_id_N is None else example_id_N[position])]
    checkpoints = np.flatnonzero(~np.isfinite(loss_NT).all(axis=0))
    where = "row position" if example_id_N is None else "example_id"
    shown = ", ".join(str(i) for i in ids[:_IDS_SHOWN]) + (", ..." if n_bad > _IDS_SHOWN else "")
    raise DataError(
        f"{n_bad} of {len(loss_NT)} trajectories hold a NaN or infinite loss "
        f"({where} {shown}; checkpoint index {', '.join(str(int(t)) for t in checkpoints[:_IDS_SHOWN])}); "
        "expected finite losses only. If the proxy ran in fp16, train and score it in bf16 or fp32; "
        "if only some checkpoints are affected, the proxy diverged: lower proxy.learning_rate.",
        example_ids=() if example_id_N is None else ids,
    )


def count_distinct(sample_MT: LossArray) -> int:
    """Count the distinct rows of a sample.

    Args:
        sample_MT: trajectories [nats/token].

    Returns:
        Number of distinct rows, 0 for an empty sample.
    """
    return len(np.unique(sample_MT, axis=0))


def effective_n_clusters(n_clusters: int, sample_MT: LossArray) -> int:
    """Lower the number of clusters to what the sample can hold apart.

    Args:
        n_clusters: clusters asked for.
        sample_MT: the sample that `initial_centroids` will see [nats/token].

    Returns:
        min(n_clusters, distinct rows of the sample).

    Raises:
        ConfigError: n_clusters < 1, or more than the rows of the sample.
    """
    _check_n_clusters(n_clusters, len(sample_MT))
    return min(n_clusters, count_distinct(sample_MT))


def initial_centroids(sample_MT: LossArray, n_clusters: int, seed: int) -> FloatArray:
    """Choose distinct rows of the sample to start from, by scikit-learn's greedy k-means++.

    Greedy (several candidates per pick, the best one kept) because plain k-means++ ended with 7-10 % more
    inertia on skewed data. The same sample in another order gives another start: the caller orders it, by a
    hash of the rows.

    Args:
        sample_MT: M trajectories [nats/token], finite, in an order that does not depend on files or blocks.
        n_clusters: rows to choose; see `effective_n_clusters`.
        seed: any integer; taken modulo 2**32, which is what numpy's RandomState holds.

    Returns:
        centroid_KT [nats/token], float64, K distinct rows of the sample.

    Raises:
        ConfigError: n_clusters < 1 or more than the distinct rows.

    Source:
        Arthur and Vassilvitskii 2007; `sklearn.cluster.kmeans_plusplus`.
    """
    from sklearn.cluster import kmeans_plusplus
    from threadpoolctl import threadpool_limits

    _check_n_clusters(n_clusters, len(sample_MT))
    sample = np.ascontiguousarray(sample_MT, dtype=np.float64)
    # Centred as in sklearn's KMeans.fit: its distances are computed by a product and would cancel otherwise.
    centred = sample - sample.mean(axis=0)
    # One thread, because the bits of the product, hence the picks, vary with the number of threads.
    with threadpool_limits(limits=1):
        _, pick_K = kmeans_plusplus(centred, n_clusters, random_state=seed % 2**32)
    return _made_distinct(sample, np.asarray(pick_K, dtype=np.int64))


def _check_n_clusters(n_clusters: int, n_rows: int) -> None:
    if n_clusters < 1:
        raise ConfigError(f"cluster.n_clusters is {n_clusters}; expected 1 or more. Set cluster.n_clusters higher.")
    if n_clusters > n_rows:
        raise ConfigError(
            f"cluster.n_clusters is {n_clusters} but there are only {n_rows} rows to cluster; expected at "
            "most one cluster per row. Lower cluster.n_clusters or give more examples."
        )


def _made_distinct(sample_MT: FloatArray, pick_K: npt.NDArray[np.int64]) -> FloatArray:
    """Replace picks that repeat a row: where distinct rows are few, rounding lets k-means++ pick copies."""
    _, first = np.unique(sample_MT[pick_K], axis=0, return_index=True)
    if len(first) == len(pick_K):
        return sample_MT[pick_K]
    kept = [int(i) for i in pick_K[np.sort(first)]]
    nearest_M = np.full(len(sample_MT), np.inf)
    for row in kept:
        np.minimum(nearest_M, _sq_distance_to(sample_MT, sample_MT[row]), out=nearest_M)
    while len(kept) < len(pick_K):
        row = int(np.argmax(nearest_M))
        if nearest_M[row] == 0.0:
            raise ConfigError(
                f"cluster.n_clusters is {len(pick_K)} but the sample holds only {len(kept)} distinct "
                f"trajectories; expected at least as many. Set cluster.n_clusters to {len(kept)} or less."
            )
        kept.append(row)
        np.minimum(nearest_M, _sq_distance_to(sample_MT, sample_MT[row]), out=nearest_M)
    return sample_MT[kept]


def _sq_distance_to(loss_NT: FloatArray, point_T: FloatArray) -> FloatArray:
    distance_N = np.zeros(len(loss_NT))
    for t in range(loss_NT.shape[1]):
        distance_N += np.square(loss_NT[:, t] - point_T[t])
    return distance_N
