"""The passes over the rows as machine code, by numba; imported only where that is installed and pays.

The labels are those of `nearest.assign`. Rows that must be searched for wait in a tile per cluster, whose rows have the
same few centroids to fear: those within twice the distance to their own. A search in float32 takes a row per vector
lane and keeps the nearest two distances; their error is bounded, and where they are too close to call the fixed-order
formula decides in float64. Nothing of size N x K is ever written.

`checkpoints` is a tuple of T zeros: numba's types carry the length of a tuple, so the compiler knows T, unrolls the
loop over it, and holds a centroid in registers.

Shape suffixes: N examples, T checkpoints, K clusters, B rows of a tile, C centroids that are looked at, J neighbours.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from s2l_ray.clustering.nearest import Bound, FloatArray, Known, LossArray

TILE = 64
"""Rows that are searched together: with 64 checkpoints 16 KiB, half of a core's first-level cache."""
# As in `nearest`, and here again: compiled code is kept until this file changes.
WIDER, NARROWER, APART = np.float32(1 + 2.0**-21), np.float32(1 - 2.0**-21), np.float32(1 - 1e-5)
_FAR = np.float32(3e38)
"""The square of a distance that no centroid has [nat^2]; finite, since infinity less infinity is no number."""
_ROUNDING = 2.0**-24
"""Unit roundoff of float32."""
_SMALLEST = 1e-18
"""The square of a smaller difference may vanish in float32 [nats]."""


def look(loss_NT: LossArray, centroid_KT: FloatArray) -> Known:
    """Find the nearest centroid of every row.

    Args:
        loss_NT: float32 trajectories [nats/token].
        centroid_KT: at least two centroids [nats/token].
    """
    n_rows = len(loss_NT)
    now = np.empty(n_rows, np.int32), np.empty(n_rows, np.float32), np.empty(n_rows, np.float32)
    _look(np.ascontiguousarray(loss_NT), centroid_KT, now, (0,) * loss_NT.shape[1])
    return now


def look_again(
    loss_NT: LossArray,
    centroid_KT: FloatArray,
    before: Known,
    moves: tuple[Bound, Bound, Bound],
    neighbours: tuple[npt.NDArray[np.int32], Bound],
) -> Known:
    """Look at the rows whose nearest centroid may have changed.

    Args:
        loss_NT: float32 trajectories [nats/token].
        centroid_KT: at least two centroids now.
        before: what was known of the same rows before the centroids moved.
        moves: `own_K`, `other_K` and `half_K` of `bounds.Moves`.
        neighbours: its `neighbour_KJ` and `apart_KJ`.
    """
    now = before[0].copy(), np.empty_like(before[1]), np.empty_like(before[2])
    checkpoints = (0,) * loss_NT.shape[1]
    _look_again(np.ascontiguousarray(loss_NT), before, centroid_KT, moves, neighbours, now, checkpoints)
    return now


def sq_distances(loss_NT: LossArray, centroid_KT: FloatArray, labels_N: npt.NDArray[np.int32]) -> FloatArray:
    """Compute the squared distance of every row to its centroid [nat^2], in the order of `nearest`."""
    found_N = np.empty(len(loss_NT))
    _sq_distances(np.ascontiguousarray(loss_NT), centroid_KT, labels_N, found_N, (0,) * loss_NT.shape[1])
    return found_N


def sums(loss_NT: LossArray, labels_N: npt.NDArray[np.int32], n_clusters: int) -> FloatArray:
    """Add up the rows of every cluster [nats/token], in their order."""
    sum_KT = np.zeros((n_clusters, loss_NT.shape[1]))
    _sums(np.ascontiguousarray(loss_NT), labels_N, sum_KT, (0,) * loss_NT.shape[1])
    return sum_KT


@njit(cache=True)
def _sq_distances(loss_NT: Any, centroid_KT: Any, labels_N: Any, found_N: Any, checkpoints: Any) -> None:
    for n in range(len(loss_NT)):
        found_N[n] = _sq_distance(loss_NT[n], centroid_KT[labels_N[n]], checkpoints)


@njit(cache=True)
def _sums(loss_NT: Any, labels_N: Any, sum_KT: Any, checkpoints: Any) -> None:
    for n in range(len(loss_NT)):
        for t in range(len(checkpoints)):
            sum_KT[labels_N[n], t] += loss_NT[n, t]


@njit(cache=True)
def _look(loss_NT: Any, centroid_KT: Any, now: Known, checkpoints: Any) -> None:
    centroids, scratch = _prepared(centroid_KT, checkpoints)
    everyone_K = np.arange(len(centroid_KT)).astype(np.int32)
    for start in range(0, len(loss_NT), TILE):
        row_B = np.arange(start, min(start + TILE, len(loss_NT)))
        _search(loss_NT, row_B, everyone_K, np.float32(np.inf), centroids, scratch, now, checkpoints)


@njit(cache=True)
def _look_again(
    loss_NT: Any, before: Known, centroid_KT: Any, moves: Any, neighbours: Any, now: Known, checkpoints: Any
) -> None:
    (_, upper_N, lower_N), (own_K, other_K, half_K), (labels_N, new_upper_N, new_lower_N) = before, moves, now
    centroids, scratch = _prepared(centroid_KT, checkpoints)
    _, single_KT, (wider, _, absolute) = centroids
    waiting_KB = np.empty((len(centroid_KT), TILE), np.int64)
    waiting_K = np.zeros(len(centroid_KT), np.int64)
    for n in range(len(loss_NT)):
        own = labels_N[n]
        upper = (upper_N[n] + own_K[own]) * WIDER
        lower = (lower_N[n] - other_K[own]) * NARROWER
        # A row within half the distance to the next centroid is at least the other half away from all others.
        enough = max(lower, half_K[own]) * APART
        if upper >= enough:
            sq_distance = _sq_distance_in_any_order(loss_NT[n], single_KT[own], checkpoints)
            upper = (np.sqrt(sq_distance) * wider + absolute) * WIDER
        new_upper_N[n], new_lower_N[n] = upper, lower
        if upper >= enough:
            waiting_KB[own, waiting_K[own]] = n
            waiting_K[own] += 1
            if waiting_K[own] == TILE:
                _search_feared(loss_NT, waiting_KB[own], own, neighbours, centroids, scratch, now, checkpoints)
                waiting_K[own] = 0
    for own in range(len(centroid_KT)):
        if waiting_K[own]:
            row_B = waiting_KB[own, : waiting_K[own]]
            _search_feared(loss_NT, row_B, own, neighbours, centroids, scratch, now, checkpoints)


@njit(cache=True)
def _prepared(centroid_KT: Any, checkpoints: Any) -> Any:
    """Return the centroids in both precisions with the error of a distance in float32, and what a search writes to.

    The differences err by 2 u |c| at most, the centroid's own rounding among it, their sum of squares by (T + 1) u of
    itself, and its root by half of that.
    """
    relative = (len(checkpoints) + 4) * _ROUNDING
    absolute = 2 * _ROUNDING * math.sqrt((centroid_KT * centroid_KT).sum(axis=1).max()) + _SMALLEST
    errors = np.float32(1 + relative), np.float32(1 - relative), np.float32(absolute)
    found = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.int32)
    rows_TB = np.zeros((len(checkpoints), TILE), np.float32)
    return (centroid_KT, centroid_KT.astype(np.float32), errors), (rows_TB, *found)


@njit(cache=True)
def _search_feared(
    loss_NT: Any, row_B: Any, own: int, neighbours: Any, centroids: Any, scratch: Any, now: Known, checkpoints: Any
) -> None:
    """Look at the centroids that rows of a cluster may be nearer to than to its own."""
    neighbour_KJ, apart_KJ = neighbours
    upper_N, farthest = now[1], 0.0
    for b in range(len(row_B)):
        farthest = max(farthest, upper_N[row_B[b]])
    count = np.searchsorted(apart_KJ[own], 2 * farthest / APART, side="right")
    if count == apart_KJ.shape[1]:
        feared_C, beyond = np.arange(len(centroids[0])).astype(np.int32), np.float32(np.inf)
    else:
        feared_C, beyond = neighbour_KJ[own, :count].copy(), apart_KJ[own, count]
    _search(loss_NT, row_B, feared_C, beyond, centroids, scratch, now, checkpoints)


@njit(cache=True)
def _search(
    loss_NT: Any,
    row_B: Any,
    feared_C: Any,
    beyond: np.float32,
    centroids: Any,
    scratch: Any,
    now: Known,
    checkpoints: Any,
) -> None:
    """Look at some centroids for the rows of a tile; all others are `beyond` the one that the rows are at."""
    (labels_N, upper_N, lower_N), (rows_TB, best_B, second_B, label_B) = now, scratch
    centroid_KT, single_KT, errors = centroids
    for b in range(len(row_B)):
        for t in range(len(checkpoints)):
            rows_TB[t, b] = loss_NT[row_B[b], t]
    _two_nearest(rows_TB, single_KT, feared_C, best_B, second_B, label_B, checkpoints)
    _to_bounds(best_B, second_B, errors)
    for b in range(len(row_B)):
        n, label, upper, lower = row_B[b], label_B[b], best_B[b], second_B[b]
        if upper >= lower * APART:
            label, best, second = _two_by_formula(loss_NT[n], centroid_KT, checkpoints)
            upper, lower = np.float32(math.sqrt(best)) * WIDER, np.float32(math.sqrt(second)) * NARROWER
        elif beyond < np.inf:
            lower = min(lower, (beyond - upper_N[n]) * NARROWER)
        labels_N[n], upper_N[n], lower_N[n] = label, upper, lower


@njit(cache=True, fastmath={"contract", "nnan", "nsz"})
def _two_nearest(
    rows_TB: Any, centroid_KT: Any, feared_C: Any, best_B: Any, second_B: Any, label_B: Any, checkpoints: Any
) -> None:
    """Find the two nearest of some centroids for each row of a tile.

    Two centroids at a time, by minimum and maximum: for a value that is either replaced or kept the compiler writes the
    replaced lanes alone, and some processors take four times as long for that as for all the distances.
    """
    for b in range(TILE):
        best_B[b], second_B[b], label_B[b] = _FAR, _FAR, 0
    for c in range(0, len(feared_C), 2):
        one = feared_C[c]
        is_pair = c + 1 < len(feared_C)
        other, at_least = (feared_C[c + 1], np.float32(0)) if is_pair else (one, _FAR)
        for b in range(TILE):
            to_one = to_other = np.float32(0)
            for t in range(len(checkpoints)):
                loss = rows_TB[t, b]
                to_one += (loss - centroid_KT[one, t]) * (loss - centroid_KT[one, t])
                to_other += (loss - centroid_KT[other, t]) * (loss - centroid_KT[other, t])
            to_other = max(to_other, at_least)
            nearer, farther, label = min(to_one, to_other), max(to_one, to_other), one if to_one <= to_other else other
            best, before = best_B[b], label_B[b]
            second_B[b] = min(second_B[b], farther, max(best, nearer))
            label_B[b] = label if nearer < best else before
            best_B[b] = min(best, nearer)


@njit(cache=True)
def _to_bounds(best_B: Any, second_B: Any, errors: Any) -> None:
    """Turn squared distances in float32 into bounds of distances, in place."""
    wider, narrower, absolute = errors
    for b in range(TILE):
        best_B[b] = (np.sqrt(best_B[b]) * wider + absolute) * WIDER
        second_B[b] = (np.sqrt(second_B[b]) * narrower - absolute) * NARROWER


@njit(cache=True)
def _two_by_formula(loss_T: Any, centroid_KT: Any, checkpoints: Any) -> tuple[int, float, float]:
    """Compute all K squared distances [nat^2], squares added in the order of the checkpoints; a tie: the lowest id."""
    label, best, second = 0, math.inf, math.inf
    for k in range(len(centroid_KT)):
        sq_distance = _sq_distance(loss_T, centroid_KT[k], checkpoints)
        if sq_distance < best:
            label, best, second = k, sq_distance, best
        elif sq_distance < second:
            second = sq_distance
    return label, best, second


@njit(cache=True)
def _sq_distance(loss_T: Any, centroid_T: Any, checkpoints: Any) -> float:
    """Compute a squared distance [nat^2], squares added in the order of the checkpoints."""
    sq_distance = 0.0
    for t in range(len(checkpoints)):
        move = np.float64(loss_T[t]) - centroid_T[t]
        sq_distance += move * move
    return sq_distance


@njit(cache=True, fastmath={"contract", "reassoc"})
def _sq_distance_in_any_order(loss_T: Any, centroid_T: Any, checkpoints: Any) -> np.float32:
    """Compute a squared distance [nat^2] in float32, several squares at a time."""
    sq_distance = np.float32(0)
    for t in range(len(checkpoints)):
        move = loss_T[t] - centroid_T[t]
        sq_distance += move * move
    return sq_distance
