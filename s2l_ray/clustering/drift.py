"""Drift: whether rows that came later are like those that the clusters were made of.

Shape suffixes: N rows of the first pool, M new rows, K clusters.
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


def drift_of(
    distance_N: NDArray[np.floating[Any]],
    cluster_N: NDArray[np.integer[Any]],
    distance_M: NDArray[np.floating[Any]],
    cluster_M: NDArray[np.integer[Any]],
) -> Drift | None:
    """Compare new rows with the first pool.

    Args:
        distance_N: squared distances to the own centroid in the first pool [nats^2].
        cluster_N: numbers of the clusters, 0 to K - 1.
        distance_M: those of the new rows.
        cluster_M: theirs.

    Returns:
        None where there is no new row.
    """
    n_new = len(distance_M)
    if not n_new:
        return None
    usual = 1 - FAR
    far_share = float((distance_M > np.quantile(distance_N, FAR)).mean())
    n_clusters = int(max(cluster_N.max(), cluster_M.max())) + 1
    share_K = np.bincount(cluster_N, minlength=n_clusters) / len(cluster_N)
    new_K = np.bincount(cluster_M, minlength=n_clusters) / n_new
    # The mean absolute deviation of a binomial share, as a normal one's.
    by_chance_K = np.sqrt(2 / math.pi * share_K * (1 - share_K) * (1 / n_new + 1 / len(cluster_N)))
    return Drift(
        far_share,
        usual + CERTAIN * math.sqrt(usual * FAR / n_new),
        float(np.abs(new_K - share_K).sum() / 2),
        float(by_chance_K.sum() / 2),
    )
