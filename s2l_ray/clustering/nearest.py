"""The nearest centroid of each row: to the last bit a function of that row and the centroids.

Shape suffixes: N examples, T checkpoints, K clusters, B rows of a tile.
"""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
LossArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
Bound = npt.NDArray[np.float32]
"""Of a distance [nats], rounded to the safe side."""

TIE_RELATIVE = 1e-5
"""Two squared distances closer than this, relative to the larger, are compared by the fixed-order formula."""

WIDER, NARROWER = np.float32(1 + 2.0**-21), np.float32(1 - 2.0**-21)
"""More than the rounding of four float32 operations."""
APART = np.float32(1 - 1e-5)
"""Bounds closer than this, relative to the larger, decide nothing."""

COMPILED_ROWS = 2**16
"""Fewer rows are done before numba is imported, or a kernel compiled."""
COMPILED_CHECKPOINTS = 64
"""Of more columns a matrix product is faster; and a compiler would unroll no longer loop."""

Known = tuple[npt.NDArray[np.int32], Bound, Bound]
"""Labels, and bounds of the distances to the own centroid and to any other, as in `bounds.Near`."""

_failed: list[Exception] = []
"""Why the compiled passes are off in this process."""
_TILE_VALUES = 2**17  # 1 MiB of float64: a tile of rows x K distances stays in a core's second-level cache


class Assignment(NamedTuple):
    """The nearest centroid of each row of a block.

    Attributes:
        labels: int32 [N], cluster ids 0..K-1; the lowest id where several centroids are equally near.
        sq_distance: float64 [N], squared Euclidean distance to that centroid [nat^2].
    """

    labels: npt.NDArray[np.int32]
    sq_distance: FloatArray


def pays_to_compile(loss_NT: LossArray, n_clusters: int) -> bool:
    """Return whether the passes of `compiled` are for such rows."""
    n_rows, n_checkpoints = loss_NT.shape
    is_large = n_rows >= COMPILED_ROWS and n_clusters > 1
    return is_large and loss_NT.dtype == np.float32 and 0 < n_checkpoints <= COMPILED_CHECKPOINTS


def compiled_pass(name: str, loss_NT: LossArray, n_clusters: int, *more: Any) -> Any:
    """Run a pass of `compiled` over some rows: what it finds is what numpy does, in a tenth to a third of the time.

    Returns:
        What it finds; None where numpy is to look instead: the pass would not pay, numba is not installed
        (`pip install 's2l-ray[fast]'`), or it fails.
    """
    if _failed or not pays_to_compile(loss_NT, n_clusters):
        return None
    try:
        from s2l_ray.clustering import compiled

        found = getattr(compiled, name)(loss_NT, *more)
    except ImportError:
        return None
    # numba keeps compiled code in a folder, which may be full, damaged, or written by two processes at once.
    except (OSError, EOFError, RuntimeError, TypeError, ValueError) as error:
        _failed.append(error)
        logging.getLogger(__name__).warning("compiled passes failed (%r); going on with numpy, which is slower", error)
        return None
    return found


def assign(loss_NT: LossArray, centroid_KT: FloatArray) -> Assignment:
    """Assign every row to its nearest centroid: to the last bit a function of that row and the centroids.

    Compiled code finds the nearest centroid, or, tile by tile, a matrix product. Where the best two are too
    close for the search to be trusted, all K distances of the row are computed again by the fixed-order formula.
    The distance returned always comes from that formula.

    Memory: the result (12 bytes a row, 20 where compiled) and about 3 MiB of scratch, independent of N.

    Args:
        loss_NT: trajectories [nats/token], finite; N = 0 is allowed.
        centroid_KT: centroids [nats/token], finite.

    Returns:
        Labels and squared distances.
    """
    known = compiled_pass("look", loss_NT, len(centroid_KT), centroid_KT)
    if known is not None:
        return Assignment(known[0], sq_distance_to_own(loss_NT, centroid_KT, known[0]))
    labels_N, sq_distance_N = np.zeros(len(loss_NT), dtype=np.int32), np.empty(len(loss_NT))
    for rows, loss_BT, found in _tiles(loss_NT, centroid_KT):
        labels_N[rows] = found.labels_B
        sq_distance_N[rows] = sq_distance_to_own(loss_BT, centroid_KT, labels_N[rows])
    return Assignment(labels_N, sq_distance_N)


def nearest_two(loss_NT: LossArray, centroid_KT: FloatArray) -> tuple[npt.NDArray[np.int32], FloatArray, FloatArray]:
    """Return the labels of `assign`, with bounds of the distances to the nearest and to the second nearest centroid.

    Returns:
        Labels int32 [N]; at least the distance to the own centroid, and at most that to any other, float64 [N]
        [nats], both as good as the product; infinite where there is no other.
    """
    labels_N = np.zeros(len(loss_NT), dtype=np.int32)
    upper_N, lower_N = np.empty(len(loss_NT)), np.empty(len(loss_NT))
    for rows, _, found in _tiles(loss_NT, centroid_KT):
        labels_N[rows] = found.labels_B
        np.sqrt(found.own_B, out=upper_N[rows])
        np.sqrt(found.others_B, out=lower_N[rows])
    return labels_N, upper_N, lower_N


class _Found(NamedTuple):
    """The nearest centroid of each row of a tile, and bounds of squared distances [nat^2]."""

    labels_B: npt.NDArray[np.intp]
    own_B: FloatArray
    others_B: FloatArray


def _tiles(loss_NT: LossArray, centroid_KT: FloatArray) -> Iterator[tuple[slice, FloatArray, _Found]]:
    """Yield the rows in tiles whose scores stay in cache, with the nearest centroid of each."""
    (n_rows, n_checkpoints), n_clusters = loss_NT.shape, len(centroid_KT)
    # A checkpoint more, 1 in every row: the product then adds ||c||^2 as it goes.
    product_TK = np.vstack([-2.0 * centroid_KT.T, np.square(centroid_KT).sum(axis=1)])
    tile = min(4096, max(64, _TILE_VALUES // n_clusters))
    rows_BT, scratch_BK = np.ones((tile, n_checkpoints + 1)), np.empty((tile, n_clusters))
    for start in range(0, n_rows, tile):
        rows = slice(start, min(start + tile, n_rows))
        n = rows.stop - start
        loss_BT, score_BK = rows_BT[:n, :-1], scratch_BK[:n]
        loss_BT[:] = loss_NT[rows]
        if n_clusters == 1:
            own_B = sq_distance_to_own(loss_BT, centroid_KT, np.zeros(n, np.int32))
            yield rows, loss_BT, _Found(np.zeros(n, np.intp), own_B, np.full(n, np.inf))
            continue
        np.matmul(rows_BT[:n], product_TK, out=score_BK)
        found, doubtful_B = _nearest_by_product(score_BK, loss_BT, float(product_TK[-1].max()))
        if len(doubtful_B):
            found.labels_B[doubtful_B] = labels = _nearest_by_formula(loss_BT[doubtful_B], centroid_KT)
            found.own_B[doubtful_B] = sq_distance_to_own(loss_BT[doubtful_B], centroid_KT, labels)
            found.others_B[doubtful_B] = 0.0
        yield rows, loss_BT, found


def _nearest_by_product(
    score_BK: FloatArray, loss_BT: FloatArray, largest_centroid_sq: float
) -> tuple[_Found, npt.NDArray[np.intp]]:
    """Take the lowest score ||c||^2 - 2 x.c of each row, and say which rows are too close to call.

    The score is a difference of larger numbers, so its error is absolute: with unit roundoff u it is below
    (T + 3) u (||x||^2 + 2 ||c||^2), twice for two scores; the fixed-order distances that we must agree with
    err by less than 2 (T + 2) u (||x||^2 + ||c||^2) each. Together that is under 8 (T + 4) u (||x||^2 + max
    ||c||^2); `eps` is 2 u, which leaves a factor of two. Beyond that gap the product and the formula name the
    same cluster; within it, or within TIE_RELATIVE, the formula decides.
    """
    score, first_B = score_BK.reshape(-1), np.arange(len(score_BK)) * score_BK.shape[1]
    labels_B = score_BK.argmin(axis=1)
    best_B = score[first_B + labels_B]
    score[first_B + labels_B] = np.inf
    # numpy finds where the minimum of a short row is several times faster than the minimum.
    second_B = score[first_B + score_BK.argmin(axis=1)]
    loss_sq_B = np.square(loss_BT) @ np.ones(loss_BT.shape[1])
    eps = float(np.finfo(np.float64).eps)
    noise_B = 8.0 * (loss_BT.shape[1] + 4) * eps * (loss_sq_B + largest_centroid_sq)
    doubtful_B = second_B - best_B <= TIE_RELATIVE * np.maximum(second_B + loss_sq_B, 0.0) + noise_B
    own_B, others_B = best_B + loss_sq_B + noise_B, np.maximum(second_B + loss_sq_B - noise_B, 0.0)
    return _Found(labels_B, own_B, others_B), np.flatnonzero(doubtful_B)


def _nearest_by_formula(loss_BT: FloatArray, centroid_KT: FloatArray) -> npt.NDArray[np.intp]:
    """Compute all K distances, squares added in the order of the checkpoints; a tie goes to the lowest id."""
    distance_BK = np.zeros((len(loss_BT), len(centroid_KT)))
    for t in range(loss_BT.shape[1]):
        move_BK = np.subtract.outer(loss_BT[:, t], centroid_KT[:, t])
        distance_BK += np.square(move_BK, out=move_BK)
    nearest_B: npt.NDArray[np.intp] = distance_BK.argmin(axis=1)
    return nearest_B


def sq_distance_to_own(
    loss_BT: LossArray, centroid_KT: FloatArray, labels_B: npt.NDArray[np.integer[Any]]
) -> FloatArray:
    """Compute the squared distance to the own centroid [nat^2], the squares added in the order of the checkpoints."""
    known: FloatArray | None = compiled_pass("sq_distances", loss_BT, len(centroid_KT), centroid_KT, labels_B)
    if known is not None:
        return known
    distance_B = np.zeros(len(loss_BT))
    for t in range(loss_BT.shape[1]):
        own_B = centroid_KT[labels_B, t] if len(centroid_KT) > 1 else centroid_KT[0, t]
        move_B = loss_BT[:, t].astype(np.float64) - own_B
        distance_B += np.square(move_B, out=move_B)
    return distance_B
