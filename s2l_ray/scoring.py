"""Scores of a target: means per group with how sure they are, and what a table of arms needs.

`micro` counts every held-out row alike; `macro` is the mean over skills (over sources where there are no skills), so
that a rare skill weighs as much as a common one. `micro_exact_match` weighs a skill by how often it occurs in the
training data, because held-out rows may be balanced.
Legend: N rows, G groups.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""

Bounds = Callable[[Sequence[tuple[float, "Mean"]]], tuple[float, float] | None]
"""The 95 % interval of a weighted sum of means, the weights adding up to 1; None where the normal one has to do."""


@dataclass(frozen=True)
class Mean:
    """A mean, and how sure it is.

    Attributes:
        standard_error: None for a single row.
        bounds: 95 % interval, where the normal approximation will not do.
    """

    value: float
    standard_error: float | None
    rows: int
    bounds: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """95 % interval over the rows; by the normal approximation where there is no better one."""
        if self.bounds is not None:
            return self.bounds
        if self.standard_error is None:
            return None, None
        return self.value - Z_95 * self.standard_error, self.value + Z_95 * self.standard_error


def mean_of(value_N: NDArray[np.float64]) -> Mean:
    """Return the mean over rows, each row alike."""
    n = len(value_N)
    error = float(np.std(value_N, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Mean(float(np.mean(value_N)), error, n)


def share_of(is_so_N: NDArray[Any]) -> Mean:
    """Return the share of rows that are so.

    Where all rows are right, or none, the standard error is 0; the interval is not, and says what so few rows can.

    Args:
        is_so_N: booleans, or 0 and 1.
    """
    mean = mean_of(np.asarray(is_so_N, np.float64))
    return replace(mean, bounds=bounds_of_shares([(1.0, mean)]))


def bounds_of_shares(weighted: Sequence[tuple[float, Mean]]) -> tuple[float, float]:
    """Return the 95 % interval of a weighted sum of shares, the weights adding up to 1.

    As if z^2 more rows had been seen, half of them right, spread over the groups by weight; the variance is then
    estimated without bias, or groups of one or two rows would seem surer than they are.

    Source:
        Agresti and Coull 1998, for a single share. For several groups the tests measure how often the truth is within.
    """
    z2 = Z_95**2
    centre = variance = 0.0
    for weight, mean in weighted:
        rows = mean.rows + z2 * weight
        share = (mean.value * mean.rows + z2 * weight / 2) / rows
        centre += weight * share
        variance += weight**2 * share * (1 - share) / (rows - 1)
    half = Z_95 * math.sqrt(variance)
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_of(difference_N: NDArray[np.float64]) -> Mean:
    """Return the mean of paired differences, one a row."""
    mean = mean_of(difference_N)
    return replace(mean, bounds=bounds_of_differences([(1.0, mean)]))


def share_difference_of(difference_N: NDArray[np.float64]) -> Mean:
    """Return the mean of paired differences of verdicts, each row's -1, 0 or 1."""
    mean = mean_of(difference_N)
    return replace(mean, bounds=bounds_of_share_differences([(1.0, mean)]))


def bounds_of_differences(weighted: Sequence[tuple[float, Mean]]) -> tuple[float, float] | None:
    """Return the t interval of a weighted sum of means; None where a group has a single row.

    Source:
        Satterthwaite 1946, for the degrees of freedom of several groups.
    """
    from scipy import stats

    if any(mean.standard_error is None for _, mean in weighted):
        return None
    variances = [((weight * (mean.standard_error or 0.0)) ** 2, mean.rows - 1) for weight, mean in weighted]
    value, variance = sum(weight * mean.value for weight, mean in weighted), sum(part for part, _ in variances)
    if variance == 0:
        return value, value
    freedom = variance**2 / sum(part**2 / rows for part, rows in variances)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return value - half, value + half


def bounds_of_share_differences(weighted: Sequence[tuple[float, Mean]]) -> tuple[float, float]:
    """Return the 95 % interval of a weighted sum of paired differences of verdicts, each row's -1, 0 or 1.

    As if two more pairs had been seen, one for either side, spread over the groups by weight: where both sides are
    right on the same few rows, the interval is not nothing. The variance is estimated without bias, as for shares.

    Source:
        Bonett and Price 2012, for a single difference, but for that. For several groups the tests measure how often
        the truth is within.
    """
    centre = variance = 0.0
    for weight, mean in weighted:
        rows = mean.rows + 2 * weight
        squares = mean.rows * mean.value**2 + (mean.standard_error or 0.0) ** 2 * mean.rows * (mean.rows - 1)
        value = mean.value * mean.rows / rows
        centre += weight * value
        variance += weight**2 * ((squares + 2 * weight) / rows - value**2) / (rows - 1)
    half = Z_95 * math.sqrt(variance)
    return max(-1.0, centre - half), min(1.0, centre + half)


def means_by_group(
    value_N: NDArray[np.float64], group_N: Sequence[str], mean: Callable[[NDArray[np.float64]], Mean] = mean_of
) -> dict[str, Mean]:
    """Return the mean of every group, in order of name; a row's value may be several numbers, which `mean` knows."""
    name_G, group_of_N = np.unique(np.asarray(group_N, dtype=object), return_inverse=True)
    order = np.argsort(group_of_N, kind="stable")
    parts = np.split(value_N[order], np.cumsum(np.bincount(group_of_N)))[:-1]  # nothing is behind the last
    return {str(name): mean(part) for name, part in zip(name_G, parts, strict=True)}


def weighted_mean(
    groups: Mapping[str, Mean], weights: Mapping[str, float] | None = None, *, bounds: Bounds | None = None
) -> Mean:
    """Return the mean over groups, each alike or by a weight; groups without a weight count nothing.

    The standard error is that of the groups' own means, taken as independent. Where no group has a weight there is
    no mean: NaN over 0 rows.

    Args:
        bounds: makes the interval, where what the groups' values are allows a better one than the normal one.
    """
    weight = {name: 1.0 if weights is None else float(weights.get(name, 0.0)) for name in groups}
    total = sum(weight.values())
    counted = [(weight[name] / total, mean) for name, mean in groups.items() if weight[name] > 0]
    if not counted:
        return Mean(math.nan, None, 0)
    errors = [share * mean.standard_error for share, mean in counted if mean.standard_error is not None]
    return Mean(
        sum(share * mean.value for share, mean in counted),
        math.hypot(*errors) if len(errors) == len(counted) else None,
        sum(mean.rows for _, mean in counted),
        bounds(counted) if bounds else None,
    )


def tail_groups(counts: Mapping[str, int]) -> set[str]:
    """Return the tail: the rarer half of the groups, ties by name."""
    order = sorted(counts, key=lambda name: (counts[name], name))
    return set(order[: len(order) // 2])


@dataclass(frozen=True)
class Grouping:
    """What held-out rows are grouped by.

    Attributes:
        by: `skill` where some row has one, else `source`.
        is_there: whether some row has that.
        counts: rows of the pool per group; none where neither skill nor truth is known of any.
    """

    by: str
    is_there: bool
    counts: Mapping[str, int]

    def means(
        self, metric: str, groups: Mapping[str, Mean], of_all: Mean, bounds: Bounds | None
    ) -> Iterator[tuple[str, Mean]]:
        """Yield what a metric is with each group alike, and with groups as they occur in training."""
        if groups or not self.is_there:  # rows that nothing tells apart are one group
            yield f"macro_{metric}", weighted_mean(groups, bounds=bounds) if groups else of_all
        # By the share in training, where every group that is asked about is there.
        is_weighed = bool(groups) and all(self.counts.get(group) for group in groups)
        yield f"micro_{metric}", weighted_mean(groups, self.counts, bounds=bounds) if is_weighed else of_all
