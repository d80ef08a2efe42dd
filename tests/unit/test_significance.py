"""Paired comparisons against scipy, Holm by hand, and the advice on budgets."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.significance import (
    compare_paired,
    corrected,
    higher_is_better,
    holm,
    interval_of_mean,
    recommend_budget,
)

scores = st.lists(st.floats(-10, 10), min_size=3, max_size=12)


def by_seed(values):
    return dict(enumerate(values))


def compare(ours, theirs, metric="macro_exact_match"):
    return compare_paired(by_seed(ours), by_seed(theirs), name="s2l", baseline="random", metric=metric)


@given(scores, st.integers(0, 2**32 - 1))
def test_t_interval_and_p_value_are_scipys(ours, seed):
    theirs = np.random.default_rng(seed).normal(size=len(ours))
    assume(np.std(np.array(ours) - theirs) > 1e-6)
    found, expected = compare(ours, theirs), stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert found.effect == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-9)


@given(scores, st.integers(0, 2**32 - 1))
def test_swapping_the_sides_turns_everything_round(ours, seed):
    theirs = np.random.default_rng(seed).normal(size=len(ours)).tolist()
    here, there = compare(ours, theirs), compare(theirs, ours)
    assert (here.effect, here.low, here.high) == pytest.approx((-there.effect, -there.high, -there.low))
    turned = {"better": "worse", "worse": "better"}
    assert here.verdict == turned.get(there.verdict, there.verdict)


def test_pairs_are_made_by_seed_not_by_order():
    found = compare_paired(
        {"a": 1.0, "b": 2.0, "c": 9.0}, {"c": 8.0, "b": 1.0, "d": 5.0}, name="x", baseline="y", metric="tail_share"
    )
    assert (found.pairs, found.effect, found.low, found.high) == (2, 1.0, None, None)


def test_a_lower_loss_is_better():
    found = compare([1.0, 1.1, 0.9], [2.0, 2.2, 1.9], metric="macro_loss")
    assert found.effect == pytest.approx(1.0333, abs=1e-4)
    assert found.verdict == "better"
    assert "better than random" in found.sentence
    assert "nats/token" in found.sentence


def test_an_interval_over_zero_is_not_distinguishable_and_the_sentence_says_so():
    found = compare([0.30, 0.40, 0.20], [0.31, 0.33, 0.25])
    assert found.low < 0 < found.high
    assert found.verdict == "not distinguishable"
    assert found.sentence.endswith("not distinguishable from random.")


def test_one_seed_gives_no_interval_and_proves_nothing():
    found = compare([0.9], [0.1])
    assert (found.low, found.high, found.p_value, found.verdict) == (None, None, None, "too few seeds")
    assert "proves nothing" in found.sentence


def test_equal_scores_are_not_distinguishable_and_a_gain_that_no_seed_changes_proves_nothing():
    assert compare([1.0, 2.0], [1.0, 2.0]).verdict == "not distinguishable"
    for ours, theirs in (([2.0, 3.0], [1.0, 2.0]), ([0.30, 0.35], [0.29, 0.34])):
        found = compare(ours, theirs)
        assert (found.low, found.high, found.p_value, found.verdict) == (None, None, None, "too few seeds")
        assert "2 paired seeds: all differ alike" in found.sentence


def test_budgets_without_a_seed_in_common_are_not_compared():
    scores = {0.1: {0: 0.50, 1: 0.51}, 0.2: {0: 0.60, 1: 0.63, 2: 0.64}, 0.4: {2: 0.9}}
    advice = recommend_budget(scores, metric="macro_exact_match")
    assert advice.best == 0.2
    assert recommend_budget({0.1: {0: 0.5, 1: 0.6}, 0.4: {2: 0.7, 3: 0.9}}, metric="macro_exact_match").best == 0.4


def test_no_seed_in_common_an_unknown_metric_and_nan_are_refused():
    with pytest.raises(ConfigError, match="no seed in common"):
        compare_paired({1: 0.1}, {2: 0.2}, name="x", baseline="y", metric="macro_loss")
    with pytest.raises(ConfigError, match="bleu"):
        higher_is_better("bleu")
    with pytest.raises(DataError, match="NaN"):
        compare([1.0, np.nan], [1.0, 1.0])


def test_t_interval_covers_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = [
        found.low <= 0.5 <= found.high
        for found in (compare(generator.normal(0.5, 1, 6), np.zeros(6)) for _ in range(2000))
    ]
    assert 0.93 < np.mean(covered) < 0.97


def test_holm_worked_by_hand():
    # .01 x 4, .02 x 3, .03 x 2 = .06 too, .04 x 1 lifted to .06; back in the order given.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_correction_takes_back_a_verdict_that_rests_on_many_tries():
    lucky = next(
        compare(ours, np.zeros(5))
        for ours in np.random.default_rng(2).normal(0.5, 0.5, (50, 5))
        if 0.01 < compare(ours, np.zeros(5)).p_value < 0.04
    )
    others = [compare(np.random.default_rng(n).normal(0, 1, 5), np.zeros(5)) for n in range(9)]
    assert lucky.verdict == "better"
    assert corrected([lucky, *others])[0].verdict == "not distinguishable"
    assert corrected([lucky])[0].verdict == "better"


def test_recommended_budget_is_the_smallest_as_good_as_full_data():
    full = by_seed([0.60, 0.62, 0.61])
    tried = {
        0.1: by_seed([0.30, 0.32, 0.31]),
        0.2: by_seed([0.58, 0.64, 0.60]),
        0.4: by_seed([0.60, 0.63, 0.62]),
    }
    advice = recommend_budget(tried, metric="macro_exact_match", full=full)
    assert (advice.recommended, advice.best) == (0.2, 0.4)
    assert "could hide" in advice.reason


def test_recommended_budget_without_full_data_is_measured_against_the_best():
    tried = {0.1: by_seed([2.0, 2.1, 2.2]), 0.2: by_seed([1.5, 1.6, 1.7]), 0.4: by_seed([1.0, 1.1, 1.2])}
    advice = recommend_budget(tried, metric="macro_loss")
    assert (advice.recommended, advice.best, advice.against) == (0.4, 0.4, None)


def test_recommended_budget_falls_back_to_the_best_where_all_are_worse_than_full_data():
    tried = {0.1: by_seed([2.0, 2.1, 2.2]), 0.2: by_seed([1.95, 2.15, 2.15])}
    advice = recommend_budget(tried, metric="macro_loss", full=by_seed([1.0, 1.1, 1.2]))
    assert advice.recommended == 0.1
    assert advice.against.baseline == "budget 0.2"


def test_recommended_budget_with_one_seed_is_none_and_says_why():
    advice = recommend_budget({0.1: {0: 1.0}, 0.2: {0: 0.5}}, metric="macro_loss")
    assert (advice.recommended, advice.best) == (None, 0.2)
    assert "one seed" in advice.reason


def test_interval_of_mean_is_scipys():
    values = [0.1, 0.4, 0.2, 0.5]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval_of_mean(values) == pytest.approx((0.3, expected.low, expected.high))
    assert interval_of_mean([0.1]) == (0.1, None, None)
    assert interval_of_mean([0.25, 0.25, 0.25]) == (0.25, None, None)  # no chance was seen, which does not make it sure


def test_no_budget_is_recommended_where_all_score_the_same_with_every_seed():
    tried = {budget: by_seed([0.0, 0.0, 0.0]) for budget in (0.05, 0.1, 0.2)}
    advice = recommend_budget(tried, metric="macro_exact_match", full=by_seed([0.0, 0.0, 0.0]))
    assert (advice.recommended, advice.against) == (None, None)
    assert "tells nothing" in advice.reason


def test_budget_that_scores_what_full_data_does_hides_no_loss():
    tried = {0.1: by_seed([0.10, 0.19]), 0.2: by_seed([0.5, 0.6])}
    advice = recommend_budget(tried, metric="macro_exact_match", full=by_seed([0.5, 0.6]))
    assert advice.recommended == 0.2
    assert advice.reason == "the smallest budget that scores what full data does, with every one of 2 seeds"


def test_smaller_budget_that_could_not_be_compared_is_not_called_worse():
    advice = recommend_budget({0.05: {0: 0.5}, 0.1: by_seed([0.40, 0.41, 0.39])}, metric="macro_exact_match")
    assert advice.recommended == 0.1
    assert advice.reason == (
        "the best of all, and 0.05 could not be compared with it, for want of seeds in common that differ"
    )
    advice = recommend_budget(
        {0.05: by_seed([0.20, 0.22, 0.19]), 0.1: by_seed([0.40, 0.41, 0.39])}, metric="macro_exact_match"
    )
    assert advice.reason == "the best of all, and every smaller one is worse"
