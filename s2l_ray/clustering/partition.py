"""What k-means is given: which checkpoints of a trajectory, and how many clusters each stratum gets.

Shape suffixes: T checkpoints, S strata.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Window = Literal["all", "early", "middle", "late"] | int
"""The checkpoints that are clustered: all, a third of them, or every n-th."""


def window_columns(window: Window, n_checkpoints: int) -> NDArray[np.int64]:
    """Return which checkpoints a window keeps.

    Args:
        window: `early`, `middle` or `late` is a third of the checkpoints, rounded up; a number n is every n-th,
            counted back from the last, so that the last one is always kept.
        n_checkpoints: T, at least 1.

    Returns:
        Column indices, rising, at least one.
    """
    third = -(-n_checkpoints // 3)
    match window:
        case "all":
            return np.arange(n_checkpoints)
        case "early":
            return np.arange(third)
        case "middle":
            start = (n_checkpoints - third) // 2
            return np.arange(start, start + third)
        case "late":
            return np.arange(n_checkpoints - third, n_checkpoints)
        case _:
            return np.arange((n_checkpoints - 1) % window, n_checkpoints, window)


def share_clusters(size_S: NDArray[np.integer[Any]], n_clusters: int) -> NDArray[np.int64]:
    """Share K clusters over strata in proportion to the square roots of their sizes.

    Args:
        size_S: rows of each stratum, at least 1.
        n_clusters: K over all strata.

    Returns:
        int64 [S]: at least 2 clusters each, but no more than a third of the stratum's rows, and at least 1. They
        sum to K only roughly.
    """
    root_S = np.sqrt(size_S.astype(np.float64))
    wanted_S = np.floor(n_clusters * root_S / root_S.sum() + 0.5).astype(np.int64)
    most_S = np.maximum(1, size_S // 3)
    shared_S: NDArray[np.int64] = np.minimum(np.maximum(2, wanted_S), most_S)
    return shared_S
