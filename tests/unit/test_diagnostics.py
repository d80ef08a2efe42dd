"""Diagnostics by hand, against scikit-learn, by enumeration, and on data that is made to agree or not to."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from s2l_ray import diagnostics
from s2l_ray.clustering import seeding
from s2l_ray.diagnostics import (
    HEALTH,
    PERMUTATIONS,
    RESAMPLES,
    PrefixAgreement,
    gradient_similarity,
    learned_level,
    prefix_agreement,
    rank_correlation,
    roughness,
    sample_clusters,
    silhouette,
    trajectory_health,
)
from s2l_ray.errors import DataError

GRID = 2.0**-20


def on_grid(values):
    return np.asarray(np.round(np.asarray(values) / GRID) * GRID, dtype=np.float32)


def health(loss_NT, initial=50.0):
    """Classes by name; with losses of 50 before training the floor is 1, and 24.5 is the highest learned loss."""
    loss_NT = np.array(loss_NT, np.float32)
    return [HEALTH[i] for i in trajectory_health(np.full(len(loss_NT), initial, np.float32), loss_NT)]


# --------------------------------------------------------------------------------------------------------- trajectories


@pytest.mark.parametrize(
    ("last", "level"),
    [
        ([0, 0, 0], 0.51),  # the floor is 1 of 51: the median row keeps 1 / 51
        ([39.8, 39.8, 0], 0.9),  # a pretrained proxy takes a fifth: half as far is a tenth
        ([60, 60, 60], 1.0),  # nothing was learned; a level of 1 would call standing still learned
    ],
)
def test_level_of_learning_is_half_the_way_of_the_median_row(last, level):
    found = learned_level(np.full(3, 50.0, np.float32), np.array(last, np.float32))
    assert found == pytest.approx(level, abs=0.001)
    assert found < 1


def test_row_of_a_pretrained_proxy_is_learned_by_the_level_of_its_data():
    initial_N, loss_NT = np.full(3, 50.0, np.float32), np.array([[44, 40], [49, 49], [44, 40]], np.float32)
    level = learned_level(initial_N, loss_NT[:, -1])
    found = [HEALTH[i] for i in trajectory_health(initial_N, loss_NT, learned=level)]
    assert found == ["learned early", "never learned", "learned early"]


@pytest.mark.parametrize(
    ("loss_T", "expected"),
    [
        ([24.5, 1, 1, 1], "learned early"),
        ([25, 24.5, 1, 1], "learned early"),
        ([40, 24.75, 24.5, 20], "learned late"),
        ([40, 30, 25, 24.5], "learned late"),
        ([20, 30, 30, 24.5], "learned early"),
        ([24.5, 20, 20, 24.75], "forgotten"),
        ([1, 1, 1, 49.75], "forgotten"),
        ([40, 30, 25, 24.75], "never learned"),
        ([60, 60, 60, 49.75], "never learned"),
        ([1, 1, 1, 50], "rising"),
        ([60, 60, 60, 60], "rising"),
        ([40, 24.5, 1], "learned early"),
        ([40, 30, 24.5], "learned late"),
        ([24.5], "learned early"),
        ([24.75], "never learned"),
        ([50], "rising"),
    ],
)
def test_trajectory_health_by_hand(loss_T, expected):
    assert health([loss_T]) == [expected]


def test_trajectory_health_raises_losses_by_the_floor_of_all_rows():
    initial_N = np.array([0.5, 99.5], np.float32)
    # The mean is 50, the floor 1: (0 + 1) / (0.5 + 1) is above a half although the loss went to nothing.
    found_N = trajectory_health(initial_N, np.array([[0.0], [0.0]], np.float32))
    assert [HEALTH[i] for i in found_N] == ["never learned", "learned early"]
    assert found_N.dtype == np.int8


def test_a_part_of_the_rows_is_judged_by_the_mean_of_all():
    initial_N, loss_NT = np.array([0.5, 99.5]), np.array([[0.0], [0.0]])
    for judge in (trajectory_health, roughness):
        parts = [judge(initial_N[n : n + 1], loss_NT[n : n + 1], 50.0)[0] for n in range(2)]
        assert parts == judge(initial_N, loss_NT).tolist()
        assert parts[0] != judge(initial_N[:1], loss_NT[:1])[0]


def test_trajectory_health_and_roughness_do_not_depend_on_blocks(monkeypatch):
    generator = np.random.default_rng(0)
    initial_N, loss_NT = on_grid(generator.uniform(1, 9, 50)), on_grid(generator.uniform(0, 9, (50, 5)))
    whole = trajectory_health(initial_N, loss_NT), roughness(initial_N, loss_NT)
    assert set(whole[0]) == set(range(len(HEALTH)))
    monkeypatch.setattr(diagnostics, "_BLOCK_ROWS", 7)
    assert trajectory_health(initial_N, loss_NT).tolist() == whole[0].tolist()
    assert roughness(initial_N, loss_NT).tolist() == whole[1].tolist()


@pytest.mark.parametrize(
    ("loss_T", "expected"),
    [
        ([40, 30, 20], 1.0),
        ([60, 70, 80], 1.0),
        ([20, 50, 20], 3.0),
        ([40, 45, 30], 1.5),
        ([49.5, 50, 49.75], 1.25),  # moves by 0.25 in all, less than the floor of 1
        ([49.75, 49.75, 49.75], 0.25),
        ([50, 50, 50], 0.0),
    ],
)
def test_roughness_by_hand(loss_T, expected):
    assert roughness(np.array([50.0]), np.array([loss_T])).tolist() == [expected]


def test_trajectories_of_zeros_divide_by_nothing():
    with np.errstate(all="raise"):
        assert roughness(np.zeros(2), np.zeros((2, 3))).tolist() == [0, 0]
        assert len(trajectory_health(np.zeros(2), np.zeros((2, 3)))) == 2


@pytest.mark.parametrize("judge", [trajectory_health, roughness])
def test_trajectories_that_cannot_be_judged_are_refused(judge):
    for initial_N, loss_NT in (
        (np.ones(2), np.array([[1.0, np.nan], [1.0, 1.0]])),
        (np.array([np.inf, 1.0]), np.ones((2, 2))),
        (np.ones(3), np.ones((2, 2))),
        (np.ones(2), np.ones((2, 0))),
        (np.ones(0), np.ones((0, 0))),
    ):
        with pytest.raises(DataError):
            judge(initial_N, loss_NT)
    assert judge(np.ones(0), np.ones((0, 3))).shape == (0,)


# ------------------------------------------------------------------------------------------------------------- clusters


def test_silhouette_by_hand():
    found_M = silhouette(np.array([[0.0], [1.0], [10.0], [12.0], [40.0]], np.float32), np.array([7, 7, 3, 3, 5]))
    assert found_M == pytest.approx([10 / 11, 9 / 10, 7.5 / 9.5, 9.5 / 11.5, 0.0])


@pytest.mark.parametrize("label_M", [[0, 0, 0], [0, 1, 2], [], [4]])
def test_silhouette_without_two_clusters_or_a_pair_is_none(label_M):
    assert silhouette(np.zeros((len(label_M), 2), np.float32), np.array(label_M, int)) is None


def clear_groups(rows=200, groups=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, groups, rows), generator


def test_prefix_agreement_of_repeated_checkpoints_is_one():
    column_M = on_grid(np.random.default_rng(0).gamma(2, 1, 300))
    agreements, _ = prefix_agreement(np.repeat(column_M[:, None], 5, axis=1), 10, 20, seed=3)
    assert agreements == [PrefixAgreement(t, 1.0) for t in (1, 2, 3, 4)]


def test_prefix_agreement_of_noise_before_a_clear_end_is_near_zero_and_its_ceiling_one():
    group_M, generator = clear_groups()
    loss_MT = on_grid(
        np.concatenate(
            [generator.uniform(1, 1.01, (200, 3)), group_M[:, None] * 3.0 + generator.normal(0, 0.01, (200, 1))], 1
        )
    )
    agreements, ceiling = prefix_agreement(loss_MT, 4, 30, seed=0)
    assert [a.checkpoints for a in agreements] == [1, 2, 3]
    assert all(abs(a.adjusted_rand) < 0.05 for a in agreements)
    assert ceiling == 1.0


def test_prefix_agreement_is_what_sklearn_makes_of_the_same_starts():
    loss_MT = on_grid(np.random.default_rng(1).gamma(2, 1, (300, 4)))

    def clustered(part_MT, seed):
        start_KT = seeding.initial_centroids(part_MT, 6, seed)
        return KMeans(6, init=start_KT, n_init=1, tol=0, max_iter=200).fit(part_MT.astype(np.float64)).labels_

    agreements, ceiling = prefix_agreement(loss_MT, 6, 200, seed=5)
    whole = clustered(loss_MT, 5)
    expected = [adjusted_rand_score(whole, clustered(loss_MT[:, :t], 5)) for t in (1, 2, 3)]
    assert [a.adjusted_rand for a in agreements] == pytest.approx(expected)
    assert 0 < expected[0] < expected[2] < 1
    assert ceiling == pytest.approx(adjusted_rand_score(whole, clustered(loss_MT, 6)))
    assert ceiling < 1


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [(1, []), (2, [1]), (17, list(range(1, 17))), (32, list(range(1, 32, 2)))],
)
def test_prefix_agreement_looks_at_16_even_prefixes_at_most(checkpoints, expected):
    loss_MT = on_grid(np.random.default_rng(0).uniform(0, 5, (20, checkpoints)))
    agreements, _ = prefix_agreement(loss_MT, 3, 5, seed=0)
    assert [a.checkpoints for a in agreements] == expected


def test_prefix_agreement_with_fewer_distinct_rows_than_clusters_uses_them_all():
    loss_MT = np.repeat(np.array([[1.0, 1.0], [1.0, 2.0], [3.0, 3.0]], np.float32), 4, axis=0)
    agreements, ceiling = prefix_agreement(loss_MT, 50, 10, seed=0)
    # The first checkpoint tells two of three groups apart.
    assert agreements == [PrefixAgreement(1, pytest.approx(adjusted_rand_score([0, 1, 2] * 4, [0, 0, 1] * 4)))]
    assert ceiling == 1.0
    with pytest.raises(DataError):
        prefix_agreement(np.ones((0, 3)), 2, 10, seed=0)


def test_rank_correlation_by_hand():
    # Rank differences 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15).
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([0.1, 50.0, 0.2, 900.0])) == pytest.approx(0.8)
    assert rank_correlation(np.arange(5), -(np.arange(5) ** 3)) == pytest.approx(-1)
    assert rank_correlation(np.arange(2), np.arange(2)) is None
    assert rank_correlation(np.ones(5), np.arange(5)) is None
    assert rank_correlation(np.arange(5), np.ones(5)) is None


# ------------------------------------------------------------------------------------------------------------ gradients


def directions(*degrees):
    angle_M = np.deg2rad(degrees)
    return np.stack([np.cos(angle_M), np.sin(angle_M)], axis=1)


def test_gradient_similarity_by_hand_leaves_zero_rows_out():
    gradient_MD = np.concatenate([directions(0, 60) * [[3], [0.01]], np.zeros((1, 2)), directions(90, 180) * 7])
    found = gradient_similarity(gradient_MD.astype(np.float32), np.array([4, 4, 4, 9, 9]), seed=0)
    assert found.within == pytest.approx((0.5 + 0.0) / 2, abs=1e-6)
    assert found.between == pytest.approx((0 - 1 + np.cos(np.pi / 6) - 0.5) / 4, abs=1e-6)
    assert (found.pairs_within, found.pairs_between) == (2, 4)


@pytest.mark.parametrize("label_M", [[0, 0, 0], [0, 1, 2], [0, 1, 1]])
def test_gradient_similarity_without_both_kinds_of_pairs_is_none(label_M):
    gradient_MD = directions(0, 30, 60)
    # The pair of the last labels is one with a row that has no direction.
    gradient_MD[2] *= label_M != [0, 1, 1]
    assert gradient_similarity(gradient_MD, np.array(label_M), seed=0) is None


def noisy_groups(rows=80, dims=30, strength=1.0, seed=0):
    group_M, generator = clear_groups(rows, 4, seed)
    centre_KD = generator.normal(0, strength, (4, dims))
    return (centre_KD[group_M] + generator.normal(0, 1, (rows, dims))).astype(np.float32), group_M, generator


def test_gradient_similarity_does_not_depend_on_order_or_names():
    gradient_MD, group_M, generator = noisy_groups()
    found = gradient_similarity(gradient_MD, group_M, seed=1)
    order = generator.permutation(80)
    moved = gradient_similarity(gradient_MD[order], group_M[order], seed=1)
    assert (moved.within, moved.between) == pytest.approx((found.within, found.between), rel=1e-9)
    assert (moved.low, moved.high) == pytest.approx((found.low, found.high), abs=0.05)
    assert gradient_similarity(gradient_MD, np.array([9, 2, 5, 1])[group_M], seed=1) == found


def test_gradient_similarity_of_separated_groups_is_clear():
    gradient_MD, group_M, _ = noisy_groups()
    found = gradient_similarity(gradient_MD, group_M, seed=0)
    assert found.p_value == 1 / (PERMUTATIONS + 1)
    assert 0.2 < found.low < found.within - found.between < found.high < 0.9


def test_gradient_similarity_of_random_labels_is_not():
    found = [gradient_similarity(*noisy_groups(40, strength=0.0, seed=seed)[:2], seed=seed) for seed in range(40)]
    p_value_R = np.array([f.p_value for f in found])
    # Uniform: mean 1/2 with a standard error of 0.046, and 2 of 40 below 0.05.
    assert abs(p_value_R.mean() - 0.5) < 0.2
    assert (p_value_R < 0.05).sum() <= 8
    assert sum(f.low <= 0 <= f.high for f in found) >= 30


def test_gradient_similarity_interval_is_that_of_resampled_rows_without_self_pairs():
    gradient_MD, group_M, _ = noisy_groups(12, strength=0.5)
    found = gradient_similarity(gradient_MD, group_M, seed=4)
    unit_MD = gradient_MD / np.linalg.norm(gradient_MD, axis=1, keepdims=True)
    differences = []
    for count_M in np.random.default_rng(4).multinomial(12, np.full(12, 1 / 12), size=RESAMPLES):
        pairs = [(a, b) for a, b in combinations(np.repeat(np.arange(12), count_M), 2) if a != b]
        cosine_P = np.array([unit_MD[a] @ unit_MD[b] for a, b in pairs])
        same_P = np.array([group_M[a] == group_M[b] for a, b in pairs])
        if same_P.any() and not same_P.all():
            differences.append(cosine_P[same_P].mean() - cosine_P[~same_P].mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=1e-5)


def test_gradient_similarity_p_value_is_near_that_of_all_permutations():
    gradient_MD, label_M = np.random.default_rng(3).normal(size=(7, 3)), np.array([0, 0, 0, 0, 1, 1, 1])
    unit_MD = gradient_MD / np.linalg.norm(gradient_MD, axis=1, keepdims=True)

    def within(members):
        others = set(range(7)) - set(members)
        return sum(unit_MD[a] @ unit_MD[b] for part in (members, others) for a, b in combinations(sorted(part), 2))

    sums = np.array([within(members) for members in combinations(range(7), 4)])
    expected = (sums >= within((0, 1, 2, 3)) - 1e-9).mean()
    assert 0.05 < expected < 0.95
    assert gradient_similarity(gradient_MD, label_M, seed=0).p_value == pytest.approx(expected, abs=0.06)


def test_gradient_similarity_with_one_pair_has_no_interval():
    label_M = np.array([0, 0, *range(1, 29)])
    found = gradient_similarity(np.random.default_rng(0).normal(size=(30, 4)), label_M, seed=0)
    # Both rows of the only pair are in (1 - 1/e)^2 = 40 % of the resamples.
    assert (found.pairs_within, found.low, found.high) == (1, None, None)
    assert 0 < found.p_value <= 1


# --------------------------------------------------------------------------------------------------------------- sample


@pytest.mark.parametrize(
    ("n_rows", "expected"),
    # By turn: cluster 2 (row 5), cluster 0 (rows 1, 2), cluster 1 (rows 3, 4), and the third of cluster 0, row 0.
    [
        (0, []),
        (1, [5]),
        (2, [1, 5]),
        (3, [1, 2, 5]),
        (5, [1, 2, 3, 4, 5]),
        (6, [0, 1, 2, 3, 4, 5]),
        (9, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_sample_clusters_by_hand(n_rows, expected):
    label_N = np.array([0, 0, 0, 1, 1, 2], np.int32)
    draw_N = np.array([2**64 - 1, 1, 3, 2, 2**63, 0], np.uint64)
    found = sample_clusters(label_N, draw_N, n_rows)
    assert found.tolist() == expected
    assert found.dtype == np.int64


def test_sample_clusters_takes_third_rows_of_all_before_a_fourth_of_any():
    label_N, draw_N = np.array([0] * 5 + [1] * 4), np.arange(9, dtype=np.uint64)
    assert sample_clusters(label_N, draw_N, 6).tolist() == [0, 1, 2, 5, 6, 7]
    assert sample_clusters(label_N, draw_N, 7).tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_sample_clusters_of_equal_draws_goes_by_position():
    assert sample_clusters(np.array([1, 0, 1, 0, 1]), np.zeros(5, np.uint64), 3).tolist() == [0, 1, 2]
    assert sample_clusters(np.empty(0, np.int32), np.empty(0, np.uint64), 3).tolist() == []


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_sample_clusters_is_a_function_of_the_draws(labels, n_rows, seed):
    generator = np.random.default_rng(seed)
    label_N = np.array(labels)
    draw_N, order = generator.permutation(len(labels)).astype(np.uint64), generator.permutation(len(labels))
    here = sample_clusters(label_N, draw_N, n_rows)
    there = sample_clusters(label_N[order], draw_N[order], n_rows)
    assert len(here) == min(n_rows, len(labels))
    assert sorted(order[there].tolist()) == here.tolist()
