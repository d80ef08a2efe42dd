"""Drift: whether rows that came later are like those that the clusters were made of.

Shape suffix: K clusters, those of all strata.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAR = 0.99
"""A new row is far out where it lies farther from its centroid than this share of the first pool."""
MUCH = 2.0
"""Twice of what there would be without any drift is worth a warning."""
MIX = 0.1
"""A mix of clusters is another one where a tenth of the rows would have to lie elsewhere."""
CERTAIN = 3.0
"""Standard errors that chance is given."""


@dataclass(frozen=True)
class Drift:
    """How new rows differ from those that were clustered.

    Attributes:
        far_share: share of the new rows that are far out; `1 - FAR` of them would be.
        far_by_chance: the most of it that chance explains.
        shift: half the sum of the differences of the clusters' shares: 0 is the same mix, 1 has nothing in common.
        shift_by_chance: what so few rows would show without any drift.
    """

    far_share: float
    far_by_chance: float
    shift: float
    shift_by_chance: float

    @property
    def is_notable(self) -> bool:
        """Whether the first pool's clusters no longer fit."""
        far = self.far_share > max(self.far_by_chance, MUCH * (1 - FAR))
        return far or self.shift > max(MIX, MUCH * self.shift_by_chance)

    @property
    def in_words(self) -> str:
        """What was found, as a clause about the new rows."""
        return (
            f"{self.far_share:.1%} of them lie farther from their centroid than {FAR:.0%} of the first pool, and their "
            f"mix of clusters differs by {self.shift:.0%} (by chance: {self.shift_by_chance:.0%})"
        )


def far_distance(largest: NDArray[np.floating[Any]], n_rows: int) -> float:
    """Return the distance beyond which a row is far out: the quantile `FAR` of the first pool's.

    Args:
        largest: the largest `n_beyond(n_rows)` of the first pool's squared distances, in any order [nats^2].
        n_rows: N.
    """
    place = FAR * (n_rows - 1)
    around = np.sort(largest)[:2]
    return float(around[0] + (around[-1] - around[0]) * (place - math.floor(place)))


def n_beyond(n_rows: int) -> int:
    """Return how many of the largest distances of N rows decide what is far out."""
    return n_rows - math.floor(FAR * (n_rows - 1))


def drift_of(size_K: NDArray[np.integer[Any]], new_K: NDArray[np.integer[Any]], n_far: int) -> Drift | None:
    """Compare new rows with the first pool.

    Args:
        size_K: rows of each cluster in the first pool.
        new_K: new rows of each.
        n_far: new rows that are far out.

    Returns:
        None where there is no new row.
    """
    n_first, n_new = int(size_K.sum()), int(new_K.sum())
    if not n_new:
        return None
    usual, share_K = 1 - FAR, size_K / n_first
    # The mean absolute deviation of a binomial share, as a normal one's.
    by_chance_K = np.sqrt(2 / math.pi * share_K * (1 - share_K) * (1 / n_new + 1 / n_first))
    return Drift(
        n_far / n_new,
        usual + CERTAIN * math.sqrt(usual * FAR / n_new),
        float(np.abs(new_K / n_new - share_K).sum() / 2),
        float(by_chance_K.sum() / 2),
    )
