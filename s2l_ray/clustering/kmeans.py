"""K-means on loss trajectories, in pieces that give the same bits however the rows are cut into blocks.

Start (`seeding`), assign one block (`nearest.assign`), reduce it and combine blocks (`partials`), fill clusters that
are empty (`relocation`), and the loop around them (`lloyd`). The loop takes the pass over the rows as a callback, so
that a test gives it a plain function and the stage gives it one task per block. `fit` joins the pieces in memory;
`bounds` has a pass that gives the same and looks at fewer rows.

Shape suffixes: N examples, T checkpoints, K clusters.

Why the bits do not depend on the blocks: sums of trajectories are exact (`partials`); distances that are kept or
compared closely come from one formula with a fixed order of operations, never from a matrix product.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from s2l_ray.clustering.nearest import Assignment, FloatArray, LossArray, assign
from s2l_ray.clustering.partials import Partial, partial_sums, update
from s2l_ray.clustering.relocation import Candidates, farthest, relocate_empty
from s2l_ray.clustering.seeding import START_ROWS, effective_n_clusters, initial_centroids, validate_trajectories
from s2l_ray.errors import ConfigError


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
