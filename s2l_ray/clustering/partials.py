"""Sums over the rows of clusters: what a block of rows contributes to the next centroids, and what follows from all.

Shape suffixes: N examples, T checkpoints, K clusters.

Trajectories are float32 multiples of 2**-20 nat, so float64 sums of them are exact up to 2**33 and may be added in any
order; the inertia is summed as integers. On values that are not on that grid everything still works, but the last bits
of the centroids may then depend on the blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2l_ray.clustering.nearest import Assignment, FloatArray, LossArray, compiled_pass

INERTIA_UNITS = 2**80
"""Squared distances are summed as integers, rounded to multiples of 1 / INERTIA_UNITS [nat^2]."""


@dataclass(frozen=True, eq=False)
class Partial:
    """What one block, or any number of merged blocks, contributes to the next centroids.

    Attributes:
        count_K: rows per cluster, int64.
        sum_KT: sum of the trajectories per cluster [nats/token], float64, exact on the 2**-20 grid.
        inertia_units: sum of squared distances in units of 1 / INERTIA_UNITS nat^2; a Python int, so no order
            of merging can change it. Distances of 2**-28 nat^2 and above enter it exactly.
    """

    count_K: npt.NDArray[np.int64]
    sum_KT: FloatArray
    inertia_units: int

    @classmethod
    def zero(cls, n_clusters: int, n_checkpoints: int) -> "Partial":
        """Return the neutral element of `merge`: no rows."""
        return cls(np.zeros(n_clusters, dtype=np.int64), np.zeros((n_clusters, n_checkpoints)), 0)

    @property
    def inertia(self) -> float:
        """Sum of squared distances to the assigned centroids [nat^2]."""
        return self.inertia_units / INERTIA_UNITS

    @property
    def n_empty(self) -> int:
        """Number of clusters without a row."""
        return int(np.count_nonzero(self.count_K == 0))


def partial_sums(loss_NT: LossArray, assignment: Assignment, n_clusters: int) -> Partial:
    """Reduce an assigned block to counts, sums and inertia.

    Args:
        loss_NT: trajectories [nats/token]; N = 0 is allowed.
        assignment: of the same rows.
        n_clusters: K.

    Returns:
        The block's contribution.
    """
    count_K = np.bincount(assignment.labels, minlength=n_clusters).astype(np.int64)
    sum_KT: FloatArray | None = compiled_pass("sums", loss_NT, n_clusters, assignment.labels, n_clusters)
    if sum_KT is None:
        sum_KT = np.empty((n_clusters, loss_NT.shape[1]))
        for t in range(loss_NT.shape[1]):
            # A column at a time: bincount is several times faster than np.add.at, and adds in the same order.
            sum_KT[:, t] = np.bincount(assignment.labels, weights=loss_NT[:, t], minlength=n_clusters)
    return Partial(count_K, sum_KT, _inertia_units(assignment.sq_distance))


def _inertia_units(sq_distance_N: FloatArray) -> int:
    # Three digits of base 2**40 (whole, fraction, fraction of that), each of which int64 holds.
    total, rest_N = 0, sq_distance_N
    for _ in range(2):
        digit_N = np.floor(rest_N)
        total = (total + _exact_sum(digit_N.astype(np.int64))) << 40
        rest_N = (rest_N - digit_N) * 2.0**40
    return total + _exact_sum(np.rint(rest_N).astype(np.int64))


def _exact_sum(value_N: npt.NDArray[np.int64]) -> int:
    # Two halves of 32 bits, each of which int64 can sum over 2**31 rows.
    return (int((value_N >> 32).sum()) << 32) + int((value_N & 0xFFFF_FFFF).sum())


def merge(partials: Iterable[Partial]) -> Partial:
    """Add the contributions of blocks. Commutative and associative to the last bit on the 2**-20 grid.

    Args:
        partials: at least one; all of the same K and T.

    Returns:
        Their sum.

    Raises:
        ValueError: no partial at all, or shapes that differ.
    """
    iterator = iter(partials)
    first = next(iterator, None)
    if first is None:
        raise ValueError("merge needs at least one Partial; use Partial.zero for no rows.")
    count_K, sum_KT, inertia_units = first.count_K.copy(), first.sum_KT.copy(), first.inertia_units
    for other in iterator:
        if other.sum_KT.shape != sum_KT.shape:
            raise ValueError(f"cannot merge partials of shapes {sum_KT.shape} and {other.sum_KT.shape}.")
        count_K += other.count_K
        sum_KT += other.sum_KT
        inertia_units += other.inertia_units
    return Partial(count_K, sum_KT, inertia_units)


def update(partial: Partial, previous_centroid_KT: FloatArray) -> FloatArray:
    """Move each centroid to the mean of its rows; a cluster without rows keeps its previous centroid.

    Args:
        partial: of all rows.
        previous_centroid_KT: the centroids that the rows were assigned to [nats/token].

    Returns:
        centroid_KT [nats/token], finite.
    """
    filled_K1 = (partial.count_K > 0)[:, None]
    mean_KT = partial.sum_KT / np.maximum(partial.count_K, 1)[:, None]
    return np.where(filled_K1, mean_KT, previous_centroid_KT)
