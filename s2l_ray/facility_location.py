"""Facility location: rows such that every row of the pool is like one that was taken.

The value of a subset S is the sum over all rows i of max(0, max over j in S of cos(h_i, h_j)), h being hidden states.
It is submodular, so taking the row with the largest gain, again and again, comes within 1 - 1/e of the best subset of
that size. A gain only falls as rows are taken, so one that was computed earlier is an upper bound, and most rows need
no second look.

Nothing is approximated and no N x N matrix is stored. Gains are computed in blocks of columns, for the rows whose
bound could win; they join a pool. A row that is taken changes the cover of few rows, and only those are needed to
keep the gains of the pool up to date; where they are many, the pool is cut to its largest gains first.

All numbers are whole: directions are rounded so that no sum leaves the 53 bits of a float64. The ranking is therefore
the same for every block size and number of threads, and copies of a row have equal gains.

Shape suffixes: N rows, D dimensions of a hidden state, C candidates of one evaluation, M rows whose cover changes.

Sources:
    Nemhauser, Wolsey and Fisher 1978 (the bound); Minoux 1978 (old gains as upper bounds). The value is that of
    CRAIG (Mirzasoleiman et al. 2020) and of submodlib with `metric="cosine"`: there, too, the similarities are plain
    cosines and the best one so far starts at 0, which leaves negative ones out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.sampling import Rank, rank_by

CANDIDATES = 64
"""Gains that are evaluated at once when they might win."""
BLOCK_ROWS, BLOCK_COLUMNS = 1024, 256
"""Similarities that are held at once: 2 MiB, so that they stay in cache."""
UPKEEP = 64
"""Keeping the pool up to date may cost as much per row taken as evaluating this many gains anew."""

_EXACT_BITS = 53  # whole numbers up to 2**53 are exact in float64


@dataclass(frozen=True)
class FacilityLocation:
    """The rows taken, in order.

    Attributes:
        order: int64 [n], positions of the rows.
        gains: float64 [n], what each added to the value when it was taken, in units of cosine; never rises.
    """

    order: NDArray[np.int64]
    gains: NDArray[np.float64]


def facility_location_order(
    hidden_ND: NDArray[np.floating[Any]],
    tie_N: NDArray[np.integer[Any]],
    n_rows: int,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> FacilityLocation:
    """Take rows one after the other, always the one with the largest gain; of equal gains the lowest tie.

    A smaller `n_rows` gives a prefix. Once no row adds anything, the rest follow in the order of their ties.

    Args:
        hidden_ND: finite, not all zero in any row.
        tie_N: unique integers.
        n_rows: rows to take, 0 to N.
        on_progress: called with the number of rows taken.

    Raises:
        ConfigError: fewer rows than 0 or more than there are.
        DataError: a hidden state is zero, so that it has no direction, or no number.
    """
    if not 0 <= n_rows <= len(tie_N):
        raise ConfigError(
            f"facility_location is asked for {n_rows} rows; expected 0 to {len(tie_N)}, the number of rows. "
            "Set select.budget accordingly."
        )
    by_tie_N = np.argsort(tie_N, kind="stable")
    direction_ND, one = _whole_directions(hidden_ND, by_tie_N, tie_N)
    order, gains = np.empty(n_rows, dtype=np.int64), np.zeros(n_rows)
    greedy = _Greedy(direction_ND) if n_rows else None
    for taken in range(n_rows):
        assert greedy is not None
        order[taken], gains[taken] = greedy.take()
        if on_progress is not None:
            on_progress(taken + 1)
    return FacilityLocation(by_tie_N[order], gains / one)


def facility_location_rank(
    hidden_ND: NDArray[np.floating[Any]],
    draw_N: NDArray[np.integer[Any]],
    tie_N: NDArray[np.integer[Any]],
    n_greedy: int,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Rank:
    """Rank the first rows by `facility_location_order`, the rest at random.

    A prefix of up to `n_greedy` rows is the same for every larger `n_greedy`.

    Args:
        hidden_ND: finite, not all zero in any row.
        draw_N: from `draws.draw_hash`; orders the rows that the greedy rule did not reach.
        tie_N: unique integers.
        n_greedy: rows to rank by their gains, 0 to N.
        on_progress: called with the number of rows taken.

    Returns:
        rank int64 [N].

    Raises:
        ConfigError: as `facility_location_order`.
        DataError: as `facility_location_order`.
    """
    order = facility_location_order(hidden_ND, tie_N, n_greedy, on_progress=on_progress).order
    place_N = np.full(len(tie_N), n_greedy, dtype=np.int64)
    place_N[order] = np.arange(n_greedy)
    return rank_by(place_N, draw_N, tie_N)


def _whole_directions(
    hidden_ND: NDArray[np.floating[Any]], order_N: NDArray[np.int64], tie_N: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], float]:
    """Return the directions of the rows, in the given order, in whole numbers, and the number that stands for 1.

    With b bits, no direction is longer than 2**b and no similarity larger than 2**2b, and the sum of N similarities
    is exact. Cosines are off by sqrt(D) * 2**-b at most (b = 18 for 100,000 rows), a few 2**-b in practice.
    """
    n_rows, n_dims = hidden_ND.shape
    bits = (_EXACT_BITS - math.ceil(math.log2(max(n_rows, 2)))) // 2
    scale = 2.0**bits - math.sqrt(n_dims) / 2  # rounding lengthens a row by less than sqrt(D) / 2
    direction_ND = np.empty((n_rows, n_dims))
    bad: list[int] = []
    for start in range(0, n_rows, BLOCK_ROWS):
        rows = order_N[start : start + BLOCK_ROWS]
        block_BD = np.ascontiguousarray(hidden_ND[rows], dtype=np.float64)
        norm_B = np.sqrt(np.square(block_BD).sum(axis=1))
        usable_B = (norm_B > 0) & np.isfinite(norm_B)
        bad.extend(tie_N[rows[~usable_B]].tolist())
        block_BD /= np.where(usable_B, norm_B, 1)[:, None]
        np.rint(block_BD * scale, out=direction_ND[start : start + BLOCK_ROWS])
    if bad:
        raise DataError(
            f"{len(bad)} examples have a hidden state that is zero or no number, first {bad[:5]}; they are like "
            "nothing. Score in another precision (`score.precision`), or take another `select.method`.",
            bad,
        )
    return direction_ND, scale**2


class _Greedy:
    """Takes one row after the other; rows are in the order of their ties, directions are whole numbers."""

    def __init__(self, direction_ND: NDArray[np.float64]) -> None:
        self._direction_ND = direction_ND
        n_rows = len(direction_ND)
        self._covered_N = np.zeros(n_rows)
        self._pool = np.arange(n_rows)
        self._is_pooled_N = np.ones(n_rows, dtype=bool)
        # The gain of a row of the pool, an upper bound of any other's, less than 0 of those taken.
        self._bound_N = self._gains(self._pool)

    def take(self) -> tuple[int, float]:
        """Take the row with the largest gain."""
        chosen = self._best()
        gain = float(self._bound_N[chosen])
        self._bound_N[chosen] = -1
        if gain > 0:
            self._cover(chosen)
        return chosen, gain

    def _best(self) -> int:
        bound_N = self._bound_N
        while True:
            best = bound_N[self._pool].max(initial=0)
            rivals = np.flatnonzero((bound_N >= best) & ~self._is_pooled_N)
            if not len(rivals):
                return int(np.argmax(bound_N))
            if len(rivals) > CANDIDATES:
                rivals = rivals[np.argpartition(-bound_N[rivals], CANDIDATES)[:CANDIDATES]]
            bound_N[rivals] = self._gains(rivals)
            self._pool = np.concatenate([self._pool, rivals])
            self._is_pooled_N[rivals] = True

    def _cover(self, chosen: int) -> None:
        """Count what a row covers, and take it off the gains of the pool."""
        similar_N = self._direction_ND @ self._direction_ND[chosen]
        changed = np.flatnonzero(similar_N > self._covered_N)
        n_kept = UPKEEP * len(similar_N) // max(len(changed), 1)
        if len(self._pool) > n_kept:
            self._is_pooled_N[self._pool] = False
            self._pool = self._pool[np.argpartition(-self._bound_N[self._pool], n_kept)[:n_kept]]
            self._is_pooled_N[self._pool] = True
        self._bound_N[self._pool] -= self._gains(self._pool, changed, similar_N[changed] - self._covered_N[changed])
        self._covered_N[changed] = similar_N[changed]

    def _gains(
        self,
        candidates: NDArray[np.int64],
        rows: NDArray[np.int64] | None = None,
        most_M: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        gain_C = np.zeros(len(candidates))
        for start in range(0, len(candidates), BLOCK_COLUMNS):
            columns = slice(start, start + BLOCK_COLUMNS)
            direction_DC = np.ascontiguousarray(self._direction_ND[candidates[columns]].T)
            n = len(self._covered_N) if rows is None else len(rows)
            for row in range(0, n, BLOCK_ROWS):
                block = slice(row, row + BLOCK_ROWS) if rows is None else rows[row : row + BLOCK_ROWS]
                more_MC = self._direction_ND[block] @ direction_DC
                more_MC -= self._covered_N[block, None]
                np.maximum(more_MC, 0, out=more_MC)
                if most_M is not None:
                    np.minimum(more_MC, most_M[row : row + BLOCK_ROWS, None], out=more_MC)
                gain_C[columns] += more_MC.sum(axis=0)
        return gain_C
