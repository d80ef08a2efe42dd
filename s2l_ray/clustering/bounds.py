"""Lloyd's iterations that look again only at rows whose cluster may have changed; the result is that of looking at all.

Each row keeps an upper bound of the distance to its own centroid and a lower bound of the distance to every other one.
When centroids move, the bounds move with them (the triangle inequality); as long as the upper one stays below the
lower one, no distance has to be computed. Sums of clusters change by the rows that changed sides, and the inertia
follows from the sums. So an iteration costs a few operations a row, plus K distances for the rows near a border.

Bounds are float32, widened after every operation by more than its rounding, so they hold; and a row is only left
alone where they are apart by more than any doubt of the formula that `nearest.assign` goes by. Labels are therefore
equal to its labels, and on the grid of losses centroids and inertia are equal to the last bit for any blocks.

Shape suffixes: N examples, T checkpoints, K clusters, J neighbours, M rows that are looked at again.

Source: Hamerly 2010, "Making k-means even faster"; Elkan 2003 for the distances between centroids.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from s2l_ray.clustering.nearest import (
    APART,
    NARROWER,
    WIDER,
    Assignment,
    Bound,
    FloatArray,
    LossArray,
    compiled_pass,
    nearest_two,
    sq_distance_to_own,
)
from s2l_ray.clustering.partials import INERTIA_UNITS, Partial, merge, partial_sums
from s2l_ray.losses import rounded

NEIGHBOURS = 256
"""Of each centroid: where more may matter, all centroids are looked at."""


_PAIRS = 2**18
"""Differences between centroids that are held at once."""


class Near(NamedTuple):
    """What is known of each row of a block.

    Attributes:
        labels: int32 [N], its cluster.
        upper: float32 [N], at least the distance to its centroid [nats].
        lower: float32 [N], at most the distance to any other.
    """

    labels: npt.NDArray[np.int32]
    upper: Bound
    lower: Bound


@dataclass(frozen=True, eq=False)
class Moves:
    """How far centroids moved, and how far apart they are now; float32, rounded to the safe side [nats].

    Attributes:
        own_K: at least the move of each centroid.
        other_K: at least the largest move of any other.
        half_K: at most half the distance to the nearest other: a row nearer than that can have no other cluster.
        neighbour_KJ: int32, the nearest centroids of each, J at most, itself among them, nearest first.
        apart_KJ: at most the distance to each of them.
    """

    own_K: Bound
    other_K: Bound
    half_K: Bound
    neighbour_KJ: npt.NDArray[np.int32]
    apart_KJ: Bound

    @classmethod
    def between(cls, before_KT: FloatArray, after_KT: FloatArray) -> "Moves":
        """Compare the centroids of two iterations."""
        own_K = _above(np.sqrt(np.square(after_KT - before_KT).sum(axis=1)))
        order = np.argsort(own_K)
        other_K = np.full(len(own_K), own_K[order[-1]], np.float32)
        other_K[order[-1]] = own_K[order[-2]] if len(own_K) > 1 else 0
        n_neighbours = min(len(own_K), NEIGHBOURS)
        neighbour_KJ = np.empty((len(own_K), n_neighbours), np.int32)
        apart_KJ = np.empty(neighbour_KJ.shape, np.float32)
        at_once = max(1, _PAIRS // after_KT.size)
        for first in range(0, len(own_K), at_once):
            some = slice(first, first + at_once)
            sq_apart_BK = np.square(after_KT[some, None] - after_KT[None]).sum(axis=2)
            nearest_BJ = np.argpartition(sq_apart_BK, n_neighbours - 1, axis=1)[:, :n_neighbours]
            sq_apart_BJ = np.take_along_axis(sq_apart_BK, nearest_BJ, axis=1)
            order_BJ = np.argsort(sq_apart_BJ, axis=1)
            neighbour_KJ[some] = np.take_along_axis(nearest_BJ, order_BJ, axis=1)
            apart_KJ[some] = _below(np.sqrt(np.take_along_axis(sq_apart_BJ, order_BJ, axis=1)))
        half_K = apart_KJ[:, 1] / np.float32(2) if len(own_K) > 1 else np.full(1, np.inf, np.float32)
        return cls(own_K, other_K, half_K, neighbour_KJ, apart_KJ)


def first_pass(loss_NT: LossArray, centroid_KT: FloatArray, origin_T: FloatArray) -> tuple[Near, Partial]:
    """Look at every row.

    Args:
        loss_NT: trajectories of a block [nats/token].
        centroid_KT: where the iterations start.
        origin_T: a point among the rows, the same for all blocks.

    Returns:
        What is known of the rows, and their sums; in place of the inertia stand the squared distances to the origin.
    """
    near = _look(loss_NT, centroid_KT)
    spread_N = sq_distance_to_own(loss_NT, origin_T[None, :], np.zeros(len(loss_NT), np.int32))
    return near, partial_sums(loss_NT, Assignment(near.labels, spread_N), len(centroid_KT))


def next_pass(loss_NT: LossArray, near: Near, centroid_KT: FloatArray, moves: Moves) -> tuple[Near, Partial]:
    """Look again at the rows whose cluster may have changed.

    Args:
        loss_NT: trajectories of a block [nats/token].
        near: of the same rows, for the centroids before they moved.
        centroid_KT: the centroids now.
        moves: from those to these.

    Returns:
        What is known of the rows now, and the change of the sums.
    """
    now = _look_again(loss_NT, near, centroid_KT, moves)
    changed_M = np.flatnonzero(now.labels != near.labels)
    change = _change(loss_NT[changed_M], near.labels[changed_M], now.labels[changed_M], len(centroid_KT))
    return now, change


def _look(loss_NT: LossArray, centroid_KT: FloatArray) -> Near:
    known = compiled_pass("look", loss_NT, len(centroid_KT), centroid_KT)
    if known is not None:
        return Near(*known)
    labels_N, upper_N, lower_N = nearest_two(loss_NT, centroid_KT)
    return Near(labels_N, _above(upper_N), _below(lower_N))


def _look_again(loss_NT: LossArray, near: Near, centroid_KT: FloatArray, moves: Moves) -> Near:
    arrays, neighbours = (moves.own_K, moves.other_K, moves.half_K), (moves.neighbour_KJ, moves.apart_KJ)
    more = (centroid_KT, tuple(near), arrays, neighbours)
    known = compiled_pass("look_again", loss_NT, len(centroid_KT), *more)
    if known is not None:
        return Near(*known)
    labels_N = near.labels.copy()
    upper_N = (near.upper + moves.own_K[labels_N]) * WIDER
    lower_N = (near.lower - moves.other_K[labels_N]) * NARROWER
    # A row within half the distance to the next centroid is at least the other half away from all others.
    enough_N = np.maximum(lower_N, moves.half_K[labels_N]) * APART
    open_M = np.flatnonzero(upper_N >= enough_N)
    loss_MT = loss_NT[open_M]
    upper_N[open_M] = _above(np.sqrt(sq_distance_to_own(loss_MT, centroid_KT, labels_N[open_M])))
    still_M = upper_N[open_M] >= enough_N[open_M]
    open_M = open_M[still_M]
    labels_N[open_M], upper_N[open_M], lower_N[open_M] = _look(loss_MT[still_M], centroid_KT)
    return Near(labels_N, upper_N, lower_N)


class BoundedStep:
    """A pass over all rows for `kmeans.lloyd`, which remembers what the last one found."""

    def __init__(
        self,
        first: Callable[[FloatArray, FloatArray], Partial],
        again: Callable[[FloatArray, Moves], Partial | None],
    ) -> None:
        """Take the two passes over all blocks.

        Args:
            first: `first_pass` of every block, merged; keeps what is known of the rows.
            again: `next_pass` of every block, merged; likewise. None where what was known is lost.
        """
        self._first, self._again = first, again
        self._sums: Partial | None = None
        self._centroid_KT: FloatArray
        self._origin_T: FloatArray

    def __call__(self, centroid_KT: FloatArray, /) -> Partial:
        """Return the sums and the inertia of all rows, assigned to these centroids."""
        if self._sums is None:
            # The median, since a single centroid may lie far from all rows.
            self._origin_T = rounded(np.median(centroid_KT, axis=0)).astype(np.float64)
            change = None
        else:
            change = self._again(centroid_KT, Moves.between(self._centroid_KT, centroid_KT))
        if self._sums is None or change is None:
            self._sums = self._first(centroid_KT, self._origin_T)
        else:
            self._sums = merge([self._sums, change])
        self._centroid_KT = centroid_KT
        inertia_units = _inertia_units(self._sums, centroid_KT, self._origin_T)
        return Partial(self._sums.count_K, self._sums.sum_KT, inertia_units)


def _inertia_units(sums: Partial, centroid_KT: FloatArray, origin_T: FloatArray) -> int:
    """Return the inertia: sum |x - c|^2 = sum |x - o|^2 - sum over clusters of (c - o).(2 (s - n o) - n (c - o)).

    On the grid s - n o is exact, so that nothing cancels, and every step has one order.
    """
    count_K1, from_origin_KT = sums.count_K[:, None], centroid_KT - origin_T
    nearer_KT = from_origin_KT * (2 * (sums.sum_KT - count_K1 * origin_T) - count_K1 * from_origin_KT)
    nearer = math.fsum(nearer_KT.ravel().tolist())
    # Where every row is its centroid, rounding may leave a hair less than nothing.
    return max(0, sums.inertia_units - int(nearer * INERTIA_UNITS))


def _change(
    loss_MT: LossArray, before_M: npt.NDArray[np.int32], after_M: npt.NDArray[np.int32], n_clusters: int
) -> Partial:
    nothing_M = np.zeros(len(loss_MT))
    came = partial_sums(loss_MT, Assignment(after_M, nothing_M), n_clusters)
    went = partial_sums(loss_MT, Assignment(before_M, nothing_M), n_clusters)
    return Partial(came.count_K - went.count_K, came.sum_KT - went.sum_KT, 0)


def _above(distance: FloatArray) -> Bound:
    return np.asarray(distance, np.float32) * WIDER


def _below(distance: FloatArray) -> Bound:
    return np.asarray(distance, np.float32) * NARROWER
