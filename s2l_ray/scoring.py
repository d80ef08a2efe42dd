"""Scores of a target: means per group with standard errors, and what a table of arms needs.

`micro` counts every held-out row alike; `macro` is the mean over skills (over sources where there are no skills), so
that a rare skill weighs as much as a common one. `micro_exact_match` weighs a skill by how often it occurs in the
training data, because held-out rows may be balanced.
Legend: N rows, G groups.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error (None for a single row)."""

    value: float
    standard_error: float | None
    rows: int

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """95 % interval over the rows, by the normal approximation."""
        if self.standard_error is None:
            return None, None
        return self.value - Z_95 * self.standard_error, self.value + Z_95 * self.standard_error


def mean_of(value_N: NDArray[np.float64]) -> Mean:
    """Return the mean over rows, each row alike."""
    n = len(value_N)
    error = float(np.std(value_N, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Mean(float(np.mean(value_N)), error, n)


def means_by_group(
    value_N: NDArray[np.float64], group_N: Sequence[str], mean: Callable[[NDArray[np.float64]], Mean] = mean_of
) -> dict[str, Mean]:
    """Return the mean of every group, in order of name; a row's value may be several numbers, which `mean` knows."""
    names = np.asarray(group_N, dtype=object)
    return {str(name): mean(value_N[names == name]) for name in sorted(set(group_N))}


def weighted_mean(groups: Mapping[str, Mean], weights: Mapping[str, float] | None = None) -> Mean:
    """Return the mean over groups, each alike or by a weight; groups without a weight count nothing.

    The standard error is that of the groups' own means, taken as independent. Where no group has a weight there is
    no mean: NaN over 0 rows.
    """
    weight = {name: 1.0 if weights is None else float(weights.get(name, 0.0)) for name in groups}
    counted = {name: mean for name, mean in groups.items() if weight[name] > 0}
    if not counted:
        return Mean(math.nan, None, 0)
    total = sum(weight[name] for name in counted)
    value = sum(weight[name] * mean.value for name, mean in counted.items()) / total
    rows = sum(mean.rows for mean in counted.values())
    if any(mean.standard_error is None for mean in counted.values()):
        return Mean(value, None, rows)
    variance = sum((weight[name] / total * (mean.standard_error or 0.0)) ** 2 for name, mean in counted.items())
    return Mean(value, math.sqrt(variance), rows)


def tail_groups(counts: Mapping[str, int]) -> set[str]:
    """Return the tail: the rarer half of the groups, ties by name."""
    order = sorted(counts, key=lambda name: (counts[name], name))
    return set(order[: len(order) // 2])
