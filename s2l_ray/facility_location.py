"""Facility location: rows such that every row of the pool is like one that was taken.

The value of a subset S is the sum over all rows i of max(0, max over j in S of cos(h_i, h_j)), h being hidden states.
It is submodular, so taking the row with the largest gain, again and again, comes within 1 - 1/e of the best subset
(Nemhauser, Wolsey and Fisher 1978). A row's gain only falls as others are taken, so a gain that was computed earlier
is an upper bound, and most rows need no second look (Minoux 1978). Similarities are computed in columns as they are
needed: there is no N x N matrix.

Shape suffixes: N rows, D dimensions of a hidden state, C candidates of one evaluation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ray.errors import DataError
from s2l_ray.sampling import Rank, rank_by

CANDIDATES = 64
"""Gains that are evaluated together: wide enough for a matrix product, narrow enough to stay in cache."""
BLOCK_ROWS = 4096
_TIE = 1e-6  # relative; above the rounding of float32 similarities summed in float64


def facility_location_rank(
    hidden_ND: NDArray[np.floating[Any]],
    draw_N: NDArray[np.integer[Any]],
    tie_N: NDArray[np.integer[Any]],
    n_wanted: int,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Rank:
    """Rank rows by greedy facility location as far as they are wanted, the rest at random.

    A smaller `n_wanted` gives a prefix of the same ranking.

    Args:
        hidden_ND: finite, not all zero in any row.
        draw_N: from `sampling.draw_hash`; orders the rows that are not wanted.
        tie_N: unique integers; of rows with equal gains the lowest comes first.
        n_wanted: rows to rank by their gains.
        on_progress: called with the number of rows taken.

    Returns:
        rank int64 [N].

    Raises:
        DataError: a hidden state is zero and has no direction.
    """
    by_tie = np.argsort(tie_N, kind="stable")
    greedy = _Greedy(_normalised(hidden_ND[by_tie], tie_N[by_tie]))
    order = np.empty(n_wanted, dtype=np.int64)
    for taken in range(n_wanted):
        order[taken] = greedy.take()
        if on_progress is not None:
            on_progress(taken + 1)
    place_N = np.full(len(tie_N), n_wanted, dtype=np.int64)
    place_N[by_tie[order]] = np.arange(n_wanted)
    return rank_by(place_N, draw_N, tie_N)


def _normalised(hidden_ND: NDArray[np.floating[Any]], id_N: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    norm_N = np.linalg.norm(hidden_ND.astype(np.float64), axis=1)
    bad = np.flatnonzero(~(norm_N > 0) | ~np.isfinite(norm_N))
    if len(bad):
        ids = [int(i) for i in id_N[bad[:5]]]
        raise DataError(
            f"{len(bad)} examples have a hidden state that is zero or no number, first {ids}; they are like nothing. "
            "Train the proxy in another precision (`proxy.precision`), or take another `select.method`.",
            ids,
        )
    return np.ascontiguousarray(hidden_ND / norm_N[:, None], dtype=np.float32)


class _Greedy:
    """Takes one row after the other; rows are in order of their ties."""

    def __init__(self, unit_ND: NDArray[np.float32]) -> None:
        self._unit_ND = unit_ND
        self._covered_N = np.zeros(len(unit_ND), dtype=np.float32)
        self._bound_N = np.full(len(unit_ND), np.inf)

    def take(self) -> int:
        """Take the row with the largest gain."""
        bound_N = self._bound_N
        fresh_N = np.zeros(len(bound_N), dtype=bool)
        while True:
            stale_N = np.where(fresh_N, -np.inf, bound_N)
            best = bound_N[fresh_N].max(initial=-np.inf)
            if stale_N.max() < best * (1 - _TIE) or fresh_N.all():
                break
            n = min(CANDIDATES, len(stale_N))
            candidates = np.argpartition(-stale_N, n - 1)[:n]
            candidates = candidates[~fresh_N[candidates] & (bound_N[candidates] > -np.inf)]
            if not len(candidates):
                break
            bound_N[candidates] = self._gains(candidates)
            fresh_N[candidates] = True
        chosen = int(np.flatnonzero(fresh_N & (bound_N >= best * (1 - _TIE)))[0])
        self._covered_N = np.maximum(self._covered_N, self._unit_ND @ self._unit_ND[chosen])
        bound_N[chosen] = -np.inf
        return chosen

    def _gains(self, candidate_C: NDArray[np.int64]) -> NDArray[np.float64]:
        unit_DC = np.ascontiguousarray(self._unit_ND[candidate_C].T)
        gain_C = np.zeros(len(candidate_C))
        for start in range(0, len(self._unit_ND), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            more_NC = self._unit_ND[block] @ unit_DC
            more_NC -= self._covered_N[block, None]
            gain_C += np.maximum(more_NC, 0, out=more_NC).sum(axis=0, dtype=np.float64)
        return gain_C
