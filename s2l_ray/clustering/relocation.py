"""Empty clusters are given the rows that are farthest from their own centroids.

Shape suffixes: N examples, T checkpoints, K clusters, C candidate rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2l_ray.clustering.nearest import Assignment, FloatArray, IntArray, LossArray
from s2l_ray.clustering.partials import Partial


@dataclass(frozen=True, eq=False)
class Candidates:
    """The rows farthest from their own centroids, farthest first; equal distances by ascending key.

    Attributes:
        sq_distance_C: squared distance to the own centroid [nat^2].
        row_key_C: the caller's key of the row, unique, independent of blocks (`example_id`).
        labels_C: the cluster that the row is assigned to.
        loss_CT: its trajectory [nats/token], float64.
    """

    sq_distance_C: FloatArray
    row_key_C: IntArray
    labels_C: npt.NDArray[np.int32]
    loss_CT: FloatArray

    def _best(self, n: int) -> "Candidates":
        order = np.lexsort((self.row_key_C, -self.sq_distance_C))[:n]
        return Candidates(self.sq_distance_C[order], self.row_key_C[order], self.labels_C[order], self.loss_CT[order])


def farthest(loss_NT: LossArray, assignment: Assignment, row_key_N: IntArray, n: int) -> Candidates:
    """Find the n rows of a block that are farthest from their own centroids.

    Args:
        loss_NT: trajectories [nats/token].
        assignment: of the same rows, to the centroids that left clusters empty.
        row_key_N: unique integer key of each row that does not depend on the blocks.
        n: rows wanted, the number of empty clusters of the whole data; fewer come back from a smaller block.

    Returns:
        Candidates, ordered by (distance descending, key ascending).
    """
    n_rows = len(loss_NT)
    keep = np.arange(n_rows)
    if 0 < n < n_rows:
        threshold = np.partition(assignment.sq_distance, n_rows - n)[n_rows - n]
        keep = np.flatnonzero(assignment.sq_distance >= threshold)  # all rows at the threshold: the key decides
    return Candidates(
        assignment.sq_distance[keep],
        row_key_N[keep],
        assignment.labels[keep],
        np.asarray(loss_NT[keep], dtype=np.float64),
    )._best(n)


def merge_farthest(candidates: Iterable[Candidates], n: int) -> Candidates:
    """Combine the candidates of blocks into the n farthest of all rows.

    Args:
        candidates: at least one; row keys of one dtype.
        n: rows wanted.

    Returns:
        Candidates, ordered by (distance descending, key ascending).

    Raises:
        ValueError: no candidates at all, or row keys of several dtypes (numpy would compare them as floats).
    """
    parts = list(candidates)
    dtypes = {str(part.row_key_C.dtype) for part in parts}
    if len(dtypes) != 1:
        raise ValueError(f"row keys must have one integer dtype in all blocks, found {sorted(dtypes)}.")
    return Candidates(
        np.concatenate([part.sq_distance_C for part in parts]),
        np.concatenate([part.row_key_C for part in parts]),
        np.concatenate([part.labels_C for part in parts]),
        np.concatenate([part.loss_CT for part in parts]),
    )._best(n)


def relocate_empty(partial: Partial, candidates: Candidates) -> Partial:
    """Give each empty cluster, by ascending id, the next farthest row, which leaves its old cluster.

    As in scikit-learn a row may leave even when it is the last of its cluster. That cluster then has no row,
    and `update` leaves its centroid where it was (scikit-learn would move it onto the largest cluster's
    centroid, where it can never win a row). Unlike scikit-learn, a row at distance 0 is not taken: its copy
    of a centroid could not win a row either, and the loop would go on exchanging the two.

    Args:
        partial: of all rows.
        candidates: farthest rows of all rows, from the same assignment; too few leave clusters empty.

    Returns:
        The corrected partial; the inertia, which belongs to the assignment, stays.

    Source:
        scikit-learn, `_k_means_common.pyx`, `_relocate_empty_clusters_dense`.
    """
    count_K, sum_KT = partial.count_K.copy(), partial.sum_KT.copy()
    n_useful = int(np.count_nonzero(candidates.sq_distance_C > 0.0))
    empty = np.flatnonzero(partial.count_K == 0)
    for cluster, row in zip(empty, range(n_useful), strict=False):
        old = candidates.labels_C[row]
        count_K[old] -= 1
        sum_KT[old] -= candidates.loss_CT[row]
        count_K[cluster] = 1
        sum_KT[cluster] = candidates.loss_CT[row]
    return Partial(count_K, sum_KT, partial.inertia_units)
