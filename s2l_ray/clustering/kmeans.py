"""K-means on loss trajectories, in pieces that give the same bits however the rows are cut into blocks.

Start (`seeding`), assign one block (`nearest.assign`), reduce it (`partial_sums`), combine blocks
(`merge`), move the centroids (`update`), and the loop around them (`lloyd`). The loop takes the pass over the
rows as a callback, so that a test gives it a plain function and the stage gives it one task per block. `fit`
joins the pieces in memory; `bounds` has a pass that gives the same and looks at fewer rows.

Shape suffixes: N examples, T checkpoints, K clusters, C candidate rows.

Why the bits do not depend on the blocks: trajectories are float32 multiples of 2**-20 nat, so float64 sums of
them are exact up to 2**33 and may be added in any order; distances that are kept or compared closely come
from one formula with a fixed order of operations, never from a matrix product; the inertia is summed as
integers. On values that are not on that grid everything still works, but the last bits of the centroids may
then depend on the blocks.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from s2l_ray.clustering.nearest import Assignment, FloatArray, IntArray, LossArray, assign
from s2l_ray.clustering.seeding import START_ROWS, effective_n_clusters, initial_centroids, validate_trajectories
from s2l_ray.errors import ConfigError

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
    sum_KT = np.empty((n_clusters, loss_NT.shape[1]))
    for t in range(loss_NT.shape[1]):
        # A column at a time: bincount is several times faster than np.add.at, and just as exact on the grid.
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


@dataclass(frozen=True)
class IterationStats:
    """One iteration of Lloyd's algorithm.

    Attributes:
        iteration: 1 for the first.
        inertia: sum of squared distances to the centroids *before* this iteration's update, as scikit-learn
            reports it [nat^2].
        shift: sum of the squared moves of the centroids [nat^2].
        n_empty: clusters without a row in this iteration's assignment, before any relocation.
        seconds: wall time.
    """

    iteration: int
    inertia: float
    shift: float
    n_empty: int
    seconds: float


@dataclass(frozen=True, eq=False)
class LloydResult:
    """The end of the loop.

    Attributes:
        centroid_KT: final centroids [nats/token]. Rows must be assigned to these once more, so that labels
            match them.
        iterations: statistics in order.
        converged: the centroids stopped moving before `max_iter` ran out.
    """

    centroid_KT: FloatArray
    iterations: Sequence[IterationStats]
    converged: bool


class Step(Protocol):
    """A pass over all rows: assign them to the centroids, reduce, merge."""

    def __call__(self, centroid_KT: FloatArray, /) -> Partial:
        """Return the merged partial of all rows."""
        ...


class Relocate(Protocol):
    """A second pass, asked for only when clusters are empty: find the farthest rows."""

    def __call__(self, centroid_KT: FloatArray, n_empty: int, /) -> Candidates:
        """Return the `n_empty` farthest of all rows, from their assignment to these centroids."""
        ...


def lloyd(
    step: Step,
    centroid_KT: FloatArray,
    max_iter: int,
    tolerance: float = 0.0,
    *,
    relocate: Relocate | None = None,
    on_iteration: Callable[[IterationStats], None] | None = None,
) -> LloydResult:
    """Run Lloyd's algorithm over any way to pass over the rows.

    The loop ends when the centroids move by no more than `tolerance`; with 0 that is when an assignment
    repeats, since equal labels give equal sums. It does not see labels: the caller makes the final
    assignment, with `LloydResult.centroid_KT`, so that labels and centroids match.

    Args:
        step: one pass over all rows.
        centroid_KT: where to start [nats/token].
        max_iter: most iterations, at least 1.
        tolerance: stop at a sum of squared moves of this much or less [nat^2]; absolute, scikit-learn's is
            relative to the variance of the data.
        relocate: finds the rows for empty clusters; without it, they keep their centroids.
        on_iteration: called with the statistics of every iteration.

    Returns:
        Final centroids, statistics, whether it converged.

    Raises:
        ConfigError: max_iter < 1, or a tolerance that is negative or NaN.

    Source:
        Lloyd 1982; scikit-learn, `_kmeans_single_lloyd`.
    """
    if max_iter < 1:
        raise ConfigError(f"cluster.max_iter is {max_iter}; expected 1 or more. Set cluster.max_iter higher.")
    if not tolerance >= 0.0:
        raise ConfigError(f"The k-means tolerance is {tolerance}; expected 0 or more. 0 runs to convergence.")
    iterations: list[IterationStats] = []
    centroid_KT = np.ascontiguousarray(centroid_KT, dtype=np.float64)
    for iteration in range(1, max_iter + 1):
        began = time.perf_counter()
        partial = step(centroid_KT)
        n_empty = partial.n_empty
        if n_empty and relocate is not None:
            partial = relocate_empty(partial, relocate(centroid_KT, n_empty))
        moved_KT = update(partial, centroid_KT)
        # fsum is correctly rounded, so that the convergence test does not depend on how a machine adds vectors.
        shift = math.fsum(np.square(moved_KT - centroid_KT).ravel().tolist())
        centroid_KT = moved_KT
        stats = IterationStats(iteration, partial.inertia, shift, n_empty, time.perf_counter() - began)
        iterations.append(stats)
        if on_iteration is not None:
            on_iteration(stats)
        if shift <= tolerance:
            return LloydResult(centroid_KT, tuple(iterations), converged=True)
    return LloydResult(centroid_KT, tuple(iterations), converged=False)


@dataclass(frozen=True, eq=False)
class Fit:
    """A clustering of rows that are in memory.

    Attributes:
        centroid_KT: final centroids [nats/token].
        assignment: of all rows to the final centroids.
        inertia: of that assignment [nat^2].
        iterations: statistics of the loop.
        converged: whether the loop ended before `max_iter`.
    """

    centroid_KT: FloatArray
    assignment: Assignment
    inertia: float
    iterations: Sequence[IterationStats]
    converged: bool


def fit(
    loss_NT: LossArray,
    n_clusters: int,
    seed: int,
    max_iter: int = 20,
    *,
    start_KT: FloatArray | None = None,
) -> Fit:
    """Cluster rows in memory with the pieces of this module.

    Args:
        loss_NT: trajectories [nats/token]; the start looks at the first START_ROWS, in the order given.
        n_clusters: K; lowered to the distinct rows of the start's sample.
        seed: of the start.
        max_iter: most iterations.
        start_KT: start here instead; `n_clusters` and `seed` then play no part.

    Returns:
        Centroids, and the assignment that matches them.

    Raises:
        ConfigError: n_clusters or max_iter that cannot be.
        DataError: NaN or infinite losses, or no checkpoint.
    """
    validate_trajectories(loss_NT)
    if start_KT is None:
        sample_MT = loss_NT[:START_ROWS]
        start_KT = initial_centroids(sample_MT, effective_n_clusters(n_clusters, sample_MT), seed)
    row_key_N = np.arange(len(loss_NT))

    def step(centroid_KT: FloatArray) -> Partial:
        return partial_sums(loss_NT, assign(loss_NT, centroid_KT), len(centroid_KT))

    def relocate(centroid_KT: FloatArray, n_empty: int) -> Candidates:
        return farthest(loss_NT, assign(loss_NT, centroid_KT), row_key_N, n_empty)

    result = lloyd(step, start_KT, max_iter, relocate=relocate)
    assignment = assign(loss_NT, result.centroid_KT)
    inertia = partial_sums(loss_NT, assignment, len(result.centroid_KT)).inertia
    return Fit(result.centroid_KT, assignment, inertia, result.iterations, result.converged)
