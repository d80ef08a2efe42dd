"""Means, errors and weights against numpy, statistics and figures worked by hand."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.scoring import (
    Z_95,
    Mean,
    bounds_of_differences,
    bounds_of_share_differences,
    bounds_of_shares,
    difference_of,
    mean_of,
    means_by_group,
    share_difference_of,
    share_of,
    tail_groups,
    weighted_mean,
)

values = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


@given(values)
@settings(deadline=None)
def test_mean_of_rows_agrees_with_statistics(value_N):
    mean = mean_of(np.array(value_N))
    assert mean.value == pytest.approx(statistics.fmean(value_N), abs=1e-9)
    assert mean.standard_error == pytest.approx(statistics.stdev(value_N) / math.sqrt(len(value_N)), abs=1e-9)
    assert mean.rows == len(value_N)


def test_mean_of_one_row_has_no_error_and_no_interval():
    mean = mean_of(np.array([3.0]))
    assert mean == Mean(3.0, None, 1)
    assert mean.interval == (None, None)


def test_interval_is_the_normal_one_of_95_percent():
    low, high = Mean(1.0, 0.5, 9).interval
    assert (low, high) == (1.0 - 0.5 * Z_95, 1.0 + 0.5 * Z_95)
    assert statistics.NormalDist().cdf(Z_95) == pytest.approx(0.975, abs=1e-7)


def test_interval_covers_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        low, high = mean_of(generator.normal(2.0, 3.0, 200)).interval
        covered += low <= 2.0 <= high
    assert 925 <= covered <= 975


@pytest.mark.parametrize(("right", "rows"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 10), (499, 500)])
def test_interval_of_a_share_holds_wilsons_and_is_hardly_wider(right, rows):
    from scipy.stats import binomtest

    mean = share_of(np.arange(rows) < right)
    wilson = binomtest(right, rows).proportion_ci(method="wilson")
    low, high = mean.interval
    assert low <= wilson.low + 1e-9 < wilson.high - 1e-9 <= high
    assert high - low < 1.2 * (wilson.high - wilson.low)
    assert (mean.value, mean.rows) == (right / rows, rows)
    assert mean.standard_error == mean_of(np.arange(rows) < right).standard_error


@pytest.mark.parametrize(
    ("rows", "truth_G"),
    [
        (1, [0.5] * 28),
        (2, [0.5] * 28),
        (4, [0.03] * 10 + [0.97] * 18),
        (5, [0.2, 0.2]),
        (6, [0.01, 0.02, 0.05, 0.5, 0.9, 0.98, 0.99, 0.99]),
        (10, [0.01] * 28),
        (20, [0.1] * 14 + [0.9] * 14),
        (60, list(np.linspace(0, 1, 28))),
    ],
)
@pytest.mark.parametrize("zipf", [0.0, 1.2])
def test_interval_of_a_mean_of_shares_covers_the_truth_at_least_as_often_as_it_says(rows, truth_G, zipf):
    generator, covered, trials = np.random.default_rng(0), 0, 500
    weights = {str(g): (1 + g) ** -zipf for g in range(len(truth_G))}
    truth = np.average(truth_G, weights=list(weights.values()))
    for right_G in generator.binomial(rows, truth_G, size=(trials, len(truth_G))):
        groups = {str(g): share_of(np.arange(rows) < right) for g, right in enumerate(right_G)}
        low, high = weighted_mean(groups, weights, bounds=bounds_of_shares).interval
        covered += low <= truth <= high
    assert covered >= 0.925 * trials


def test_mean_of_shares_that_are_all_one_is_not_certain():
    groups = {name: share_of(np.ones(5)) for name in "abc"}
    mean = weighted_mean(groups, bounds=bounds_of_shares)
    assert (mean.value, mean.standard_error, mean.interval[1]) == (1.0, 0.0, 1.0)
    assert 0.7 < mean.interval[0] < 0.95


def test_interval_of_a_single_difference_is_bonetts_and_prices_but_for_the_bias_of_its_variance():
    both, ours, theirs, neither = 10, 7, 2, 5
    difference_N = np.repeat([0.0, 1.0, -1.0, 0.0], [both, ours, theirs, neither])
    n = len(difference_N) + 2
    share, other = (ours + 1) / n, (theirs + 1) / n
    half = Z_95 * math.sqrt((share + other - (share - other) ** 2) / n)
    low, high = share_difference_of(difference_N).interval
    assert (low + high) / 2 == pytest.approx(share - other)
    assert (high - low) / 2 == pytest.approx(half * math.sqrt(n / (n - 1)))


def test_interval_of_a_mean_difference_is_students():
    from scipy import stats

    difference_N = np.array([0.1, 0.4, -0.2, 0.3])
    expected = stats.ttest_1samp(difference_N, 0).confidence_interval(0.95)
    assert difference_of(difference_N).interval == pytest.approx((expected.low, expected.high))
    one_N, other_N = np.array([0.1, 0.4, 0.2]), np.array([-1.0, 2.0, 0.5, 0.7, 3.0])
    welch = stats.ttest_ind(one_N, -other_N, equal_var=False).confidence_interval(0.95)
    groups = {"a": difference_of(one_N), "b": difference_of(other_N)}
    found = weighted_mean(groups, bounds=bounds_of_differences).interval
    assert found == pytest.approx((welch.low / 2, welch.high / 2))
    assert difference_of(np.array([0.5])).interval == (None, None)
    assert difference_of(np.full(3, 0.5)).interval == (0.5, 0.5)


@pytest.mark.parametrize(
    ("rows", "truth_G", "gain_G"),
    [
        (2, [0.5] * 28, [0.0] * 28),
        (4, [0.03] * 10 + [0.9] * 18, [0.0] * 28),
        (6, [0.01, 0.02, 0.05, 0.5, 0.9, 0.98], [0.3, 0.2, 0.1, 0.3, -0.2, -0.1]),
        (10, [0.01] * 28, [0.02] * 28),
        (24, [0.1] * 14 + [0.9] * 14, [0.4] * 14 + [-0.1] * 14),
        (24, list(np.linspace(0, 0.7, 28)), [0.2] * 28),
        (200, [0.5], [0.05]),
        (10, [0.5], [0.4]),
    ],
)
@pytest.mark.parametrize("zipf", [0.0, 1.2])
@pytest.mark.parametrize("alike", [0.0, 0.8])
def test_interval_of_a_gain_covers_the_truth_at_least_as_often_as_it_says(rows, truth_G, gain_G, zipf, alike):
    generator, covered, trials = np.random.default_rng(0), 0, 400
    weights = {str(g): (1 + g) ** -zipf for g in range(len(truth_G))}
    gain = np.average(gain_G, weights=list(weights.values()))
    for _ in range(trials):
        groups = {}
        for g, (share, more) in enumerate(zip(truth_G, gain_G, strict=True)):
            # Some questions are as hard for both.
            hard_N = generator.random(rows)
            other_N = np.where(generator.random(rows) < alike, hard_N, generator.random(rows))
            groups[str(g)] = mean_of((other_N < share + more) * 1.0 - (hard_N < share))
        low, high = weighted_mean(groups, weights, bounds=bounds_of_share_differences).interval
        covered += low <= gain <= high
    assert covered >= 0.925 * trials


def test_gain_of_nothing_on_few_rows_is_not_certain():
    mean = weighted_mean({name: mean_of(np.zeros(5)) for name in "abc"}, bounds=bounds_of_share_differences)
    low, high = mean.interval
    assert (mean.value, mean.standard_error) == (0.0, 0.0)
    assert low == -high
    assert 0.05 < high < 0.2


def test_means_by_group_are_those_of_its_rows_in_order_of_name():
    groups = means_by_group(np.array([1.0, 10.0, 3.0, 7.0]), ["b", "a", "b", ""])
    assert list(groups) == ["", "a", "b"]
    assert groups["b"].value == 2.0
    assert groups["a"] == Mean(10.0, None, 1)


@given(st.dictionaries(st.sampled_from("abc"), values, min_size=1))
@settings(deadline=None)
def test_mean_weighted_by_rows_is_the_mean_of_all_rows(rows):
    value_N = np.concatenate([np.array(part) for part in rows.values()])
    group_N = [name for name, part in rows.items() for _ in part]
    groups = means_by_group(value_N, group_N)
    whole = weighted_mean(groups, {name: len(part) for name, part in rows.items()})
    assert whole.value == pytest.approx(float(np.mean(value_N)), abs=1e-9)
    assert whole.rows == len(value_N)


def test_macro_mean_counts_every_group_alike():
    mean = weighted_mean({"common": Mean(1.0, 0.3, 100), "rare": Mean(0.0, 0.4, 2)})
    assert mean.value == 0.5
    assert mean.standard_error == pytest.approx(0.25)
    assert mean.rows == 102


def test_weighted_error_is_that_of_independent_groups():
    mean = weighted_mean({"a": Mean(1.0, 0.3, 5), "b": Mean(2.0, 0.4, 5)}, {"a": 3, "b": 1})
    assert mean.value == 1.25
    assert mean.standard_error == pytest.approx(math.hypot(0.75 * 0.3, 0.25 * 0.4))


def test_weighted_mean_does_not_depend_on_the_scale_of_weights():
    groups = {"a": Mean(1.0, 0.3, 5), "b": Mean(2.0, 0.4, 5)}
    assert weighted_mean(groups, {"a": 3, "b": 1}).value == weighted_mean(groups, {"a": 300, "b": 100}).value


def test_group_of_one_row_takes_the_error_away():
    assert weighted_mean({"a": Mean(1.0, 0.1, 5), "b": Mean(0.0, None, 1)}).standard_error is None


def test_group_without_weight_counts_nothing_not_even_its_missing_error():
    groups = {"a": Mean(1.0, 0.1, 5), "unseen": Mean(0.0, None, 1)}
    assert weighted_mean(groups, {"a": 7, "elsewhere": 3}) == Mean(1.0, pytest.approx(0.1), 5)


def test_no_group_with_weight_has_no_mean_rather_than_a_crash():
    for mean in (weighted_mean({"a": Mean(1.0, 0.1, 5)}, {"b": 3}), weighted_mean({})):
        assert math.isnan(mean.value)
        assert (mean.standard_error, mean.rows) == (None, 0)


def test_missing_value_is_never_turned_into_a_number():
    assert math.isnan(mean_of(np.array([1.0, math.nan])).value)
    assert math.isnan(weighted_mean({"a": Mean(math.nan, 0.1, 2), "b": Mean(1.0, 0.1, 2)}).value)


@pytest.mark.parametrize(
    ("counts", "tail"),
    [
        ({}, set()),
        ({"a": 5}, set()),
        ({"a": 5, "b": 2}, {"b"}),
        ({"a": 5, "b": 2, "c": 1}, {"c"}),
        ({"b": 1, "a": 1, "d": 1, "c": 1}, {"a", "b"}),
    ],
)
def test_tail_is_the_rarer_half_ties_by_name(counts, tail):
    assert tail_groups(counts) == tail


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), max_size=12))
@settings(deadline=None)
def test_tail_is_no_more_common_than_the_rest(counts):
    tail = tail_groups(counts)
    assert len(tail) == len(counts) // 2
    rest = [counts[name] for name in counts if name not in tail]
    assert not tail or max(counts[name] for name in tail) <= min(rest)


def test_means_of_no_rows_are_none():
    assert means_by_group(np.array([]), []) == {}
