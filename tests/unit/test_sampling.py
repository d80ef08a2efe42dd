"""Rankings against the rules they come from, transcribed literally, for every budget."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray import draws, sampling
from s2l_ray.errors import ConfigError, DataError

cluster_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=8)
exponents = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
seeds = st.integers(0, 2**32)


def rows_of(size_K, seed=0):
    """Rows of clusters 0..K-1 in shuffled order, with draws and ids."""
    cluster = np.repeat(np.arange(len(size_K)), size_K)
    rng = np.random.default_rng(seed)
    cluster = cluster[rng.permutation(len(cluster))]
    content = rng.integers(-(2**63), 2**63 - 1, len(cluster))
    ids = rng.permutation(len(cluster)) + 100
    return cluster, draws.draw_hash(content, np.zeros(len(cluster), np.int64), seed), ids


def counts_at(rank, label, budget, n_labels):
    return np.bincount(label[rank < budget], minlength=n_labels)


def is_permutation(rank):
    return rank.dtype == np.int64 and np.array_equal(np.sort(rank), np.arange(len(rank)))


# -------------------------------------------------------------------------------------------------------- Algorithm 1


def test_quotas_worked_by_hand():
    # 10 rows over sizes 1, 3, 20, 4: floor(10/4) = 2 -> all 1 of A; floor(9/3) = 3 of B; floor(6/2) = 3 of the
    # cluster of 4; the rest, 3, of the cluster of 20.
    assert sampling.quotas(np.array([1, 3, 20, 4]), 10).tolist() == [1, 3, 3, 3]
    # 11: floor(11/4) = 2 -> 1; floor(10/3) = 3; floor(7/2) = 3; the rest, 4, of the largest.
    assert sampling.quotas(np.array([1, 3, 20, 4]), 11).tolist() == [1, 3, 4, 3]
    # Fewer rows than clusters: the smallest get none, as in the authors' code.
    assert sampling.quotas(np.array([5, 6, 7]), 2).tolist() == [0, 1, 1]
    assert sampling.quotas(np.array([5, 6, 7]), 18).tolist() == [5, 6, 7]
    assert sampling.quotas(np.array([5, 6, 7]), 0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("budget", [-1, 19])
def test_quotas_budget_out_of_range_is_a_config_error(budget):
    with pytest.raises(ConfigError, match="18"):
        sampling.quotas(np.array([5, 6, 7]), budget)


@given(cluster_sizes)
def test_quotas_sum_to_the_budget_within_bounds_and_even(size_K):
    size = np.array(size_K)
    for budget in range(size.sum() + 1):
        quota = sampling.quotas(size, budget)
        assert quota.sum() == budget
        assert (quota >= 0).all()
        assert (quota <= size).all()
        open_ = quota < size
        if open_.any():
            assert quota[open_].max() - quota[open_].min() <= 1
            assert quota.max() <= quota[open_].min() + 1


@given(cluster_sizes)
def test_quotas_one_more_row_raises_exactly_one_quota_by_one(size_K):
    size = np.array(size_K)
    for budget in range(size.sum()):
        more = sampling.quotas(size, budget + 1) - sampling.quotas(size, budget)
        assert sorted(more.tolist()) == [0] * (len(size) - 1) + [1]


@given(cluster_sizes, seeds)
def test_balanced_rank_every_prefix_is_algorithm_1(size_K, seed):
    cluster, draw, ids = rows_of(size_K, seed)
    rank = sampling.balanced_rank(cluster, draw, ids)
    assert is_permutation(rank)
    for budget in range(len(cluster) + 1):
        expected = sampling.quotas(np.array(size_K), budget)
        assert counts_at(rank, cluster, budget, len(size_K)).tolist() == expected.tolist()


def test_balanced_rank_every_prefix_is_algorithm_1_with_a_long_tail():
    size = np.maximum(1, 3000 // np.arange(1, 101) ** 1.3).astype(np.int64)
    cluster, draw, ids = rows_of(size, 3)
    rank = sampling.balanced_rank(cluster, draw, ids)
    for budget in range(0, len(cluster) + 1, 37):
        assert counts_at(rank, cluster, budget, 100).tolist() == sampling.quotas(size, budget).tolist()


@given(cluster_sizes, seeds, exponents)
def test_balanced_rank_inside_a_cluster_follows_the_draw(size_K, seed, exponent):
    cluster, draw, ids = rows_of(size_K, seed)
    rank = sampling.balanced_rank(cluster, draw, ids, exponent)
    for k in range(len(size_K)):
        rows = np.flatnonzero(cluster == k)
        np.testing.assert_array_equal(rows[np.argsort(draw[rows])], rows[np.argsort(rank[rows])])


@given(cluster_sizes, seeds, exponents, st.data())
def test_balanced_rank_of_rows_that_came_later_takes_where_a_quota_falls_short(size_K, seed, exponent, data):
    n_clusters = len(size_K)
    had = np.array(data.draw(st.lists(st.integers(0, 20), min_size=n_clusters, max_size=n_clusters)))
    gave = np.array([data.draw(st.integers(0, n)) for n in had.tolist()])
    cluster, draw, ids = rows_of(size_K, seed)
    rank = sampling.balanced_rank(cluster, draw, ids, exponent, sampling.Beside(had[cluster], gave[cluster]))
    assert is_permutation(rank)
    power = (np.array(size_K) + had) ** float(exponent)
    left, taken = np.array(size_K), gave.copy()
    for row in sampling.order_of(rank):
        key = (taken + 1) / power
        assert key[cluster[row]] <= key[left > 0].min() * (1 + 1e-9)
        taken[cluster[row]] += 1
        left[cluster[row]] -= 1


def test_balanced_rank_top_up_worked_by_hand():
    # Clusters 0, 1, 2 gave 5, 1 and 0 rows; 2, 3 and 1 new ones came. Even shares: 2; 1; 1; then 1; then 0, 0.
    cluster = np.repeat([0, 1, 2], [2, 3, 1])
    draw = np.arange(6)
    beside = sampling.Beside(np.array([9, 9, 9])[cluster], np.array([5, 1, 0])[cluster])
    order = sampling.order_of(sampling.balanced_rank(cluster, draw, draw, 0.0, beside))
    assert cluster[order].tolist() == [2, 1, 1, 1, 0, 0]


def test_balanced_rank_exponent_half_worked_by_hand():
    # Sizes 1 (id 0), 4 (id 1), 9 (id 2): keys j, j / 2, j / 3 for the j-th row, j from 1.
    #   1/3: 2;  1/2: 1;  2/3: 2;  1: 2, 1, 0 (largest first);  4/3: 2;  3/2: 1;  5/3: 2;  2: 2, 1;  7/3, 8/3, 3: 2
    cluster = np.repeat([0, 1, 2], [1, 4, 9])
    draw = np.arange(14)
    order = sampling.order_of(sampling.balanced_rank(cluster, draw, draw, 0.5))
    assert cluster[order].tolist() == [2, 1, 2, 2, 1, 0, 2, 1, 2, 2, 1, 2, 2, 2]


def test_balanced_rank_exponent_half_irrational_ties_go_to_the_larger_cluster():
    # 1 / sqrt(2 m) = 3 / sqrt(18 m) = 5 / sqrt(50 m): equal, but not always after rounding.
    for m in (1, 3, 5, 7, 11):
        size = [2 * m, 18 * m, 50 * m]
        cluster = np.repeat([0, 1, 2], size)
        draw = np.arange(len(cluster))
        rank = sampling.balanced_rank(cluster, draw, draw, 0.5)
        first = np.concatenate([[0], np.cumsum(size)])[:3]
        assert rank[first[2] + 4] + 1 == rank[first[1] + 2]
        assert rank[first[1] + 2] + 1 == rank[first[0]]


def test_balanced_rank_equal_sizes_go_from_the_highest_id():
    cluster = np.array([7, 7, 3, 3, 5, 5])
    draw = np.arange(6)
    assert cluster[sampling.order_of(sampling.balanced_rank(cluster, draw, draw))].tolist() == [7, 5, 3] * 2


@given(cluster_sizes, seeds, exponents)
@settings(deadline=None)
def test_balanced_rank_next_row_has_the_smallest_key(size_K, seed, exponent):
    cluster, draw, ids = rows_of(size_K, seed)
    order = sampling.order_of(sampling.balanced_rank(cluster, draw, ids, exponent))
    taken = [0] * len(size_K)
    for row in order:
        key = {k: (taken[k] + 1) / n**exponent for k, n in enumerate(size_K) if taken[k] < n}
        smallest = min(key.values())
        tied = [k for k in key if key[k] <= smallest * (1 + 1e-9)]
        assert cluster[row] == max(tied, key=lambda k: (size_K[k], k))
        taken[cluster[row]] += 1


def test_balanced_rank_exponent_one_keeps_the_natural_shares():
    size = np.array([10, 100, 890])
    cluster, draw, ids = rows_of(size)
    rank = sampling.balanced_rank(cluster, draw, ids, 1.0)
    for budget in range(1, 1001):
        share = counts_at(rank, cluster, budget, 3)
        # What the divisor method promises (d'Hondt): never less than the whole rows of the share.
        assert (share >= budget * size // 1000).all()
        assert (share <= budget * size / 1000 + 2).all()


@pytest.mark.parametrize("exponent", [-0.5, 1.5, math.nan, math.inf])
def test_balanced_rank_exponent_out_of_range_is_a_config_error(exponent):
    with pytest.raises(ConfigError, match="quota_exponent"):
        sampling.balanced_rank(np.zeros(2, int), np.arange(2), np.arange(2), exponent)


# ------------------------------------------------------------------------------------------------- the authors' rule


def official_quotas(size_SK, budget):
    """Rows per (source, cluster), and rows from the small clusters of each source together.

    A literal transcription of the authors' `initialize_labeled_data` and `faiss_kmeans_selection`, except that sorting
    is stable. `size_SK`: for each source, the sizes of its clusters.
    """
    counts = [sum(sizes) for sizes in size_SK]
    by_size = np.argsort(counts, kind="stable")
    taken = [[0] * len(sizes) for sizes in size_SK]
    from_small = [0] * len(size_SK)
    num = budget
    for i, s in enumerate(by_size):
        n_per_source = num // (len(by_size) - i)
        if counts[s] <= n_per_source:
            taken[s] = [n if n > 2 else 0 for n in size_SK[s]]
            from_small[s] = sum(n for n in size_SK[s] if n <= 2)
            num -= counts[s]
            continue
        num -= n_per_source
        n = n_per_source
        clusters = [k for k in np.argsort(size_SK[s], kind="stable") if size_SK[s][k] > 2]
        for j, k in enumerate(clusters):
            n_per_cluster = n // (len(clusters) - j)
            taken[s][k] = min(n_per_cluster, size_SK[s][k])
            n -= taken[s][k]
        from_small[s] = n
    return taken, from_small


def official_rows(size_SK, seed=0):
    source = np.repeat(np.arange(len(size_SK)), [sum(sizes) for sizes in size_SK])
    cluster = np.concatenate([np.repeat(np.arange(len(sizes)), sizes) for sizes in size_SK])
    order = np.random.default_rng(seed).permutation(len(source))
    draw = draws.draw_hash(order, np.zeros(len(order), np.int64), seed)
    return source[order], cluster[order], draw, order


def official_counts(size_SK, source, cluster, chosen):
    taken, from_small = [], []
    for s, sizes in enumerate(size_SK):
        count = np.bincount(cluster[chosen & (source == s)], minlength=len(sizes)).tolist()
        taken.append([c if n > 2 else 0 for c, n in zip(count, sizes, strict=True)])
        from_small.append(sum(c for c, n in zip(count, sizes, strict=True) if n <= 2))
    return taken, from_small


def test_official_rank_worked_by_hand():
    # Source 0: 6 rows in clusters of 2 and 4. Source 1: 9 rows in clusters of 1, 3 and 5.
    size_SK = [[2, 4], [1, 3, 5]]
    source, cluster, draw, ids = official_rows(size_SK)
    rank = sampling.official_rank(source, cluster, draw, ids)
    # 7 rows: floor(7/2) = 3 of source 0, all from its cluster of 4; 4 of source 1: 2 from the 3, 2 from the 5.
    assert official_counts(size_SK, source, cluster, rank < 7) == ([[0, 3], [0, 2, 2]], [0, 0])
    # 10 rows: 5 and 5; source 0 has used up its cluster of 4 and takes 1 of the cluster of 2; source 1: 2 + 3.
    assert official_counts(size_SK, source, cluster, rank < 10) == ([[0, 4], [0, 2, 3]], [1, 0])
    # 14 rows: source 0 whole, source 1 has 8 of 9: all but its single row.
    assert official_counts(size_SK, source, cluster, rank < 14) == ([[0, 4], [0, 3, 5]], [2, 0])


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4), seeds)
@settings(deadline=None)
def test_official_rank_every_prefix_is_the_authors_rule(size_SK, seed):
    source, cluster, draw, ids = official_rows(size_SK, seed)
    rank = sampling.official_rank(source, cluster, draw, ids)
    assert is_permutation(rank)
    for budget in range(len(source) + 1):
        expected = official_quotas(size_SK, budget)
        assert sum(map(sum, expected[0])) + sum(expected[1]) == budget
        assert official_counts(size_SK, source, cluster, rank < budget) == expected


def test_official_rank_small_clusters_are_drawn_together():
    size_SK = [[1, 2, 2, 1, 2, 3]]
    source, cluster, draw, ids = official_rows(size_SK, 4)
    rank = sampling.official_rank(source, cluster, draw, ids)
    small = np.flatnonzero(cluster < 5)
    assert (cluster[rank < 3] == 5).all()
    np.testing.assert_array_equal(small[np.argsort(rank[small])], small[np.argsort(draw[small])])


def test_official_rank_sources_given_as_text():
    size_SK = [[3, 4], [1, 9]]
    source, cluster, draw, ids = official_rows(size_SK)
    as_text = np.array(["gsm8k", "math"], dtype=object)[source]
    np.testing.assert_array_equal(
        sampling.official_rank(as_text, cluster, draw, ids),
        sampling.official_rank(source, cluster, draw, ids),
    )


# ------------------------------------------------------------------------------------------- rankings of the few alone


def first_of_each(cluster, draw, most_K):
    """Return the rows that are among the `most_K` of lowest draw of their cluster."""
    return np.flatnonzero(draws.position_in_group(cluster, (draw,)) < most_K[cluster])


@given(cluster_sizes, seeds, exponents, st.data())
@settings(deadline=None)
def test_the_first_rows_are_the_same_where_only_those_that_can_be_taken_are_ranked(size_K, seed, exponent, data):
    n_clusters = len(size_K)
    had = np.array(data.draw(st.lists(st.integers(0, 20), min_size=n_clusters, max_size=n_clusters)))
    gave = np.array([data.draw(st.integers(0, n)) for n in had.tolist()])
    cluster, draw, ids = rows_of(size_K, seed)
    size, before = np.array(size_K), sampling.Beside(had, gave)
    order = sampling.order_of(sampling.balanced_rank(cluster, draw, ids, exponent, before.take(cluster)))
    for budget in range(len(ids) + 1):
        most_K = sampling.most_taken(size, budget, exponent, before)
        assert (most_K <= np.bincount(cluster[order[:budget]], minlength=n_clusters) + 2).all()
        few = first_of_each(cluster, draw, most_K)
        left_K = size - np.bincount(cluster[few], minlength=n_clusters)
        beside = sampling.Beside(had + left_K, gave).take(cluster[few])
        rank = sampling.balanced_rank(cluster[few], draw[few], ids[few], exponent, beside)
        assert few[sampling.order_of(rank)[:budget]].tolist() == order[:budget].tolist()


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4), seeds)
@settings(deadline=None)
def test_the_first_rows_by_the_authors_rule_are_the_same_where_only_those_that_can_be_taken_are_ranked(size_SK, seed):
    source, cluster, draw, ids = official_rows(size_SK, seed)
    order = sampling.order_of(sampling.official_rank(source, cluster, draw, ids))
    key = sampling.cluster_keys(source, cluster)
    size_K = np.bincount(key)
    source_K = np.zeros(len(size_K), int)
    source_K[key] = source
    for budget in {*range(0, len(ids), 7), len(ids) - 1, len(ids)}:
        few = first_of_each(key, draw, sampling.most_taken_officially(source_K, size_K, budget))
        left_K = size_K - np.bincount(key[few], minlength=len(size_K))
        source_left_S = np.bincount(source_K, weights=left_K).astype(int)
        left = (left_K[key[few]], source_left_S[source[few]])
        rank = sampling.official_rank(source[few], cluster[few], draw[few], ids[few], *left)
        assert few[sampling.order_of(rank)[:budget]].tolist() == order[:budget].tolist()


# ------------------------------------------------------------------------------------------------------ other rankings


SELECTORS = {
    "paper": sampling.balanced_rank,
    "square_root": lambda label, draw, ids: sampling.balanced_rank(label, draw, ids, 0.5),
    "official": lambda label, draw, ids: sampling.official_rank(label % 2, label, draw, ids),
    "random": lambda _, draw, ids: sampling.random_rank(draw, ids),
    "random_per_source": sampling.random_per_source_rank,
    "score": lambda label, draw, ids: sampling.score_rank(label / 2.0, draw, ids),
}


@pytest.mark.parametrize("name", SELECTORS)
@given(cluster_sizes, seeds)
@settings(max_examples=25, deadline=None)
def test_rank_any_order_of_the_input_gives_every_row_the_same_rank(name, size_K, seed):
    label, draw, ids = rows_of(size_K, seed)
    rank = SELECTORS[name](label, draw, ids)
    assert is_permutation(rank)
    order = np.random.default_rng(seed).permutation(len(label))
    np.testing.assert_array_equal(SELECTORS[name](label[order], draw[order], ids[order]), rank[order])


@pytest.mark.parametrize("name", SELECTORS)
def test_rank_equal_draws_are_ordered_by_the_tie(name):
    label, ids = np.repeat([0, 1, 2], [3, 4, 5]), np.arange(12)[::-1].copy()
    rank = SELECTORS[name](label, np.zeros(12, np.uint64), ids)
    assert is_permutation(rank)
    for k in range(3):
        assert np.argsort(rank[label == k]).tolist() == np.argsort(ids[label == k]).tolist()


@pytest.mark.parametrize("name", SELECTORS)
def test_rank_no_rows(name):
    none = np.zeros(0, np.int64)
    assert SELECTORS[name](none, none.astype(np.uint64), none).shape == (0,)


def test_random_rank_draws_use_all_64_bits():
    draw = np.array([2**63 + 1, 2**63, 5, 2**64 - 1], dtype=np.uint64)
    assert sampling.random_rank(draw, np.arange(4)).tolist() == [2, 1, 0, 3]


def test_random_per_source_rank_takes_equal_numbers():
    source, draw, ids = rows_of([3, 50, 50])
    rank = sampling.random_per_source_rank(np.array(["a", "b", "c"])[source], draw, ids)
    assert counts_at(rank, source, 9, 3).tolist() == [3, 3, 3]
    assert counts_at(rank, source, 33, 3).tolist() == [3, 15, 15]


def test_score_rank_highest_first_and_ties_by_draw():
    score = np.array([1.0, 3.0, 3.0, -2.0], dtype=np.float32)
    assert sampling.score_rank(score, np.array([0, 9, 4, 1]), np.arange(4)).tolist() == [2, 1, 0, 3]


def test_score_rank_scores_that_are_not_finite_are_named():
    with pytest.raises(DataError) as raised:
        sampling.score_rank(np.array([1.0, np.nan, np.inf]), np.arange(3), np.array([10, 11, 12]))
    assert raised.value.example_ids == (11, 12)


def test_order_of_is_the_inverse_of_a_rank():
    rank = np.array([2, 0, 3, 1])
    assert sampling.order_of(rank).tolist() == [1, 3, 0, 2]


def test_cluster_keys_are_numbered_by_stratum_then_cluster():
    stratum = np.array(["math", "gsm", "math", "gsm", "math"], dtype=object)
    assert sampling.cluster_keys(stratum, np.array([0, 7, 5, 7, 0])).tolist() == [1, 0, 2, 0, 1]
    assert sampling.cluster_keys(stratum[:0], np.zeros(0, int)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 4)), min_size=1, max_size=30))
def test_cluster_keys_are_dense_and_equal_only_for_equal_pairs(pairs):
    keys = sampling.cluster_keys(np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])).tolist()
    numbering = {pair: i for i, pair in enumerate(sorted(set(pairs)))}
    assert keys == [numbering[pair] for pair in pairs]


def chi_square(count, expected):
    return float((np.square(count - expected) / expected).sum())


@pytest.mark.parametrize("first_seed", [0, 10_000])
def test_draw_every_row_of_a_cluster_is_chosen_equally_often(first_seed):
    # Contents that count up: the worst case for a weak mix. 3 of 10 rows of cluster 0 are taken, 4,000 times.
    cluster, content = np.repeat([0, 1], [10, 12]), np.arange(22)
    ids, zero = np.arange(22), np.zeros(22, np.int64)
    chosen, first, pairs = np.zeros(10), np.zeros(10), np.zeros((10, 10))
    for seed in range(first_seed, first_seed + 4000):
        rank = sampling.balanced_rank(cluster, draws.draw_hash(content, zero, seed), ids)[:10]
        took = rank < 6
        assert took.sum() == 3
        chosen += took
        first[np.argmin(rank)] += 1
        pairs += np.outer(took, took)
    # Upper 0.1 % points of chi-square: 27.9 (9 degrees of freedom), 80.1 (44, an upper bound here).
    assert chi_square(first, np.full(10, 400.0)) < 27.9
    assert chi_square(chosen, np.full(10, 1200.0)) < 27.9
    assert chi_square(pairs[np.triu_indices(10, 1)], np.full(45, 4000 * 6 / 90)) < 80.1


@pytest.mark.parametrize(
    ("method", "order"),
    [
        # Losses before 5, 5, 6, 4, 9 and after 1, 3, 2, 0.5, 1.5; response tokens 3, 9, 4, 7, 1.
        ("longest", [1, 3, 2, 0, 4]),
        ("least_confidence", [1, 2, 4, 0, 3]),
        # Perplexities 2.72, 20.1, 7.39, 1.65, 4.48; distances from the median 1.76, 15.6, 2.91, 2.83, 0.
        ("middle_perplexity", [4, 0, 3, 2, 1]),
        # Drops 4, 2, 4, 3.5, 7.5; the equal ones by their draws.
        ("high_learnability", [4, 0, 2, 3, 1]),
        ("curriculum", [3, 0, 4, 2, 1]),
    ],
)
def test_selection_score_ranks_five_rows_as_worked_by_hand(method, order):
    score_N = sampling.selection_score(
        method,
        loss_initial_N=np.array([5.0, 5.0, 6.0, 4.0, 9.0]),
        loss_last_N=np.array([1.0, 3.0, 2.0, 0.5, 1.5]),
        response_tokens_N=np.array([3, 9, 4, 7, 1]),
    )
    rank_N = sampling.score_rank(score_N, np.arange(5, dtype=np.uint64), np.arange(5))
    assert sampling.order_of(rank_N).tolist() == order


def test_middle_perplexity_takes_the_median_of_perplexities_not_of_losses():
    score_N = sampling.selection_score(
        "middle_perplexity",
        loss_initial_N=np.zeros(4),
        loss_last_N=np.array([0.0, 1.0, 3.0, 2.2]),
        response_tokens_N=np.ones(4, int),
    )
    # Perplexities 1, 2.718, 20.09, 9.025; median 5.872.
    assert score_N == pytest.approx([-4.8716, -3.1533, -14.2139, -3.1533], abs=1e-3)
