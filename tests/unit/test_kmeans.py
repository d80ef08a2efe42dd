"""K-means against scikit-learn from the same start, and against itself in other blocks, orders and permutations."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from s2l_ray.clustering import kmeans, nearest, partials, relocation, seeding
from s2l_ray.errors import ConfigError, DataError

GRID = 2.0**-20


def on_grid(values):
    return (np.rint(np.asarray(values, dtype=np.float64) / GRID) * GRID).astype(np.float32)


def curves(n, t, seed=0):
    """Loss curves that fall at different rates."""
    rng = np.random.default_rng(seed)
    level, rate = rng.gamma(2.0, 1.0, (n, 1)), rng.beta(1.0, 3.0, (n, 1))
    return on_grid(level * np.exp(-rate * np.arange(t)) + rng.gamma(1.0, 0.02, (n, t)))


def skewed(n, t, seed=0):
    """A few dense groups and a long tail of rare, distant ones."""
    rng = np.random.default_rng(seed)
    group = np.minimum(rng.zipf(1.5, n) - 1, 60)
    centre = rng.gamma(1.5, 1.5, (61, t))
    return on_grid(np.abs(centre[group] + rng.normal(0, 0.03, (n, t))))


def duplicated(n, t, seed=0):
    rows = curves(max(n // 10, 1), t, seed)
    return rows[np.random.default_rng(seed + 1).integers(0, len(rows), n)]


def two_scales(n, t, seed=0):
    """Far from the origin and close together: where a distance by a product cancels."""
    return on_grid(15.0 + 1e-3 * curves(n, t, seed))


DATA = {"curves": curves, "skewed": skewed, "duplicated": duplicated, "two_scales": two_scales}


def start_of(loss, k, seed=0):
    return seeding.initial_centroids(loss, k, seed)


def sklearn_fit(loss, start, max_iter):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KMeans(len(start), init=start, n_init=1, algorithm="lloyd", tol=0, max_iter=max_iter).fit(
            loss.astype(np.float64)
        )


def blocks_fit(loss, start, max_iter, n_blocks, *, shuffle=None, row_key=None):
    """`fit` as the stage does it: rows cut into blocks, merged in any order."""
    cuts = np.array_split(np.arange(len(loss)), n_blocks)
    key = np.arange(len(loss)) if row_key is None else row_key
    rng = np.random.default_rng(shuffle)

    def ordered(parts):
        return parts if shuffle is None else [parts[i] for i in rng.permutation(len(parts))]

    def step(centroid):
        return partials.merge(
            ordered([partials.partial_sums(loss[c], nearest.assign(loss[c], centroid), len(centroid)) for c in cuts])
        )

    def relocate(centroid, n):
        return relocation.merge_farthest(
            ordered([relocation.farthest(loss[c], nearest.assign(loss[c], centroid), key[c], n) for c in cuts]), n
        )

    result = kmeans.lloyd(step, start, max_iter, relocate=relocate)
    return result, nearest.assign(loss, result.centroid_KT)


# ------------------------------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(("n", "t", "k"), [(2000, 12, 20), (1500, 4, 50), (500, 1, 7)])
def test_fit_same_start_as_sklearn_gives_its_labels_and_inertia(kind, n, t, k):
    loss = DATA[kind](n, t)
    start = start_of(loss, k)
    ours = kmeans.fit(loss, k, seed=0, max_iter=15, start_KT=start)
    theirs = sklearn_fit(loss, start, 15)
    np.testing.assert_array_equal(ours.assignment.labels, theirs.labels_)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-9)
    np.testing.assert_allclose(ours.centroid_KT, theirs.cluster_centers_, rtol=1e-9, atol=1e-12)


def test_fit_run_to_convergence_stops_where_sklearn_stops():
    loss = curves(1000, 6)
    start = start_of(loss, 8)
    ours, theirs = kmeans.fit(loss, 8, 0, 300, start_KT=start), sklearn_fit(loss, start, 300)
    assert ours.converged
    assert len(ours.iterations) == theirs.n_iter_ < 300
    np.testing.assert_array_equal(ours.assignment.labels, theirs.labels_)


@pytest.mark.parametrize("offset", [0.0, 2.0**22])
def test_initial_centroids_are_the_picks_of_sklearn_on_centred_data(offset):
    from sklearn.cluster import kmeans_plusplus

    loss = offset + np.rint(curves(3000, 12).astype(np.float64) * 256) / 4096
    expected = loss[kmeans_plusplus(loss - loss.mean(axis=0), 30, random_state=5)[1]]
    np.testing.assert_array_equal(seeding.initial_centroids(loss, 30, 5), expected)


def test_initial_centroids_seed_beyond_32_bits_and_negative_work():
    loss = curves(100, 3)
    np.testing.assert_array_equal(seeding.initial_centroids(loss, 5, 2**32 + 7), start_of(loss, 5, 7))
    assert len(seeding.initial_centroids(loss, 5, -1)) == 5


@pytest.mark.parametrize("seed", range(5))
def test_initial_centroids_few_distinct_rows_are_all_distinct(seed):
    rows = on_grid(10.0 + 2e-6 * np.arange(6)[:, None] * np.ones((1, 4)))
    loss = rows[np.random.default_rng(seed).integers(0, 6, 500)]
    assert seeding.count_distinct(loss) == 6
    assert len(np.unique(seeding.initial_centroids(loss, 6, seed), axis=0)) == 6


def test_initial_centroids_more_clusters_than_distinct_rows_says_how_many_there_are():
    loss = np.repeat(on_grid([[1.0, 2.0], [3.0, 4.0]]), 5, axis=0)
    assert seeding.effective_n_clusters(4, loss) == 2
    with pytest.raises(ConfigError, match="only 2 distinct"):
        seeding.initial_centroids(loss, 4, 0)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_n_clusters_out_of_range_is_a_config_error(k):
    with pytest.raises(ConfigError, match="n_clusters"):
        seeding.effective_n_clusters(k, curves(10, 2))
    with pytest.raises(ConfigError, match="n_clusters"):
        seeding.initial_centroids(curves(10, 2), k, 0)


# --------------------------------------------------------------------------------------------------------- assignment


def brute_force(loss, centroid):
    distance = np.zeros((len(loss), len(centroid)))
    for t in range(loss.shape[1]):
        distance += (loss[:, t, None].astype(np.float64) - centroid[None, :, t]) ** 2
    return distance.argmin(axis=1), distance.min(axis=1)


@pytest.mark.parametrize("kind", DATA)
def test_assign_equals_the_fixed_order_formula_to_the_last_bit(kind):
    loss = DATA[kind](5000, 12)
    centroid = start_of(loss, 40) + 1e-4
    labels, sq_distance = brute_force(loss, centroid)
    ours = nearest.assign(loss, centroid)
    np.testing.assert_array_equal(ours.labels, labels)
    np.testing.assert_array_equal(ours.sq_distance, sq_distance)
    assert ours.labels.dtype == np.int32
    assert ours.sq_distance.dtype == np.float64


def test_assign_row_between_two_centroids_goes_to_the_lowest_id():
    centroid = np.array([[5.0, 5.0], [3.0, 1.0], [1.0, 3.0], [1.0, 1.0], [3.0, 3.0]])
    ours = nearest.assign(on_grid([[2.0, 2.0], [1.0, 2.0], [9.0, 9.0]]), centroid)
    assert ours.labels.tolist() == [1, 2, 0]
    assert ours.sq_distance.tolist() == [2.0, 1.0, 32.0]


def test_assign_identical_centroids_go_to_the_lowest_id():
    loss = curves(300, 5)
    one = start_of(loss, 4)
    np.testing.assert_array_equal(
        nearest.assign(loss, np.concatenate([one, one])).labels, nearest.assign(loss, one).labels
    )


@pytest.mark.parametrize("offset", [0.0, 2.0**8])
def test_assign_ties_permuted_and_cut_gives_every_row_the_same_label(offset):
    # A lattice: most rows are exactly as far from several centroids. The offset makes the product lose 16 bits.
    axis = np.arange(12) / 4.0
    loss = (offset + np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)).astype(np.float32)
    centroid = offset + np.stack(np.meshgrid([0.5, 1.5, 2.5], [0.5, 1.5, 2.5], [0.0]), axis=-1).reshape(-1, 3)
    whole = nearest.assign(loss, centroid)
    np.testing.assert_array_equal(whole.labels, brute_force(loss, centroid)[0])
    for seed, n_blocks in enumerate([1, 2, 7, 50, len(loss)]):
        order = np.random.default_rng(seed).permutation(len(loss))
        labels, distance = np.empty(len(loss), np.int32), np.empty(len(loss))
        for block in np.array_split(order, n_blocks):
            labels[block], distance[block] = nearest.assign(loss[block], centroid)
        np.testing.assert_array_equal(labels, whole.labels)
        np.testing.assert_array_equal(distance, whole.sq_distance)


@pytest.mark.parametrize(("offset", "radius"), [(2.0, 1e-2), (10.0, 1e-3), (4096.0, 1e-3)])
def test_assign_exact_ties_that_a_product_gets_wrong_go_to_the_lowest_id(offset, radius):
    # Row i lies exactly between two centroids whose digits a product has to round.
    rng = np.random.default_rng(0)
    loss = (np.rint((offset + rng.random((200, 7))) * 2**10) / 2**10).astype(np.float32)
    step = np.rint(radius * rng.random((200, 7)) * 2**38) / 2**38
    pair = np.concatenate([loss + step, loss - step])
    order = rng.permutation(400)
    centroid = pair[np.argsort(order)]  # the pair of row i has the ids order[i] and order[i + 200]
    expected = np.minimum(order[:200], order[200:])
    best, _ = brute_force(loss, centroid)
    np.testing.assert_array_equal(best, expected)
    score = np.square(centroid).sum(axis=1) - 2.0 * loss @ centroid.T
    assert (score.argmin(axis=1) != expected).any()
    np.testing.assert_array_equal(nearest.assign(loss, centroid).labels, expected)


@pytest.mark.parametrize("seed", range(3))
def test_assign_close_rows_far_from_the_origin_equals_the_formula(seed):
    # Squared distances of 1e-6 from products of 1e8: the error of the product exceeds TIE_RELATIVE of them.
    rng = np.random.default_rng(seed)
    loss = (np.rint((4096.0 + 1e-2 * rng.random((3000, 7))) * 2**11) / 2**11).astype(np.float32)
    centroid = 4096.0 + 1e-2 * rng.random((50, 7))
    labels, sq_distance = brute_force(loss, centroid)
    ours = nearest.assign(loss, centroid)
    np.testing.assert_array_equal(ours.labels, labels)
    np.testing.assert_array_equal(ours.sq_distance, sq_distance)


def test_assign_no_rows_gives_an_empty_block_that_merges():
    empty, centroid = curves(10, 3)[:0], np.ones((4, 3))
    ours = nearest.assign(empty, centroid)
    assert ours.labels.shape == ours.sq_distance.shape == (0,)
    partial = partials.partial_sums(empty, ours, 4)
    assert partial.count_K.tolist() == [0] * 4
    assert partial.inertia == 0.0
    assert len(relocation.farthest(empty, ours, np.arange(0), 2).labels_C) == 0


# ------------------------------------------------------------------------------------------------------ blocks, merge


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("n_blocks", [2, 3, 7, 50])
def test_blocks_any_number_and_order_give_the_same_bits(kind, n_blocks):
    loss = DATA[kind](3000, 12)
    start = start_of(loss, 25)
    start[3] = 900.0  # wins no row: the second pass is part of the claim
    one, one_assigned = blocks_fit(loss, start, 6, 1)
    for shuffle in (None, 1, 2):
        many, assigned = blocks_fit(loss, start, 6, n_blocks, shuffle=shuffle)
        assert many.centroid_KT.tobytes() == one.centroid_KT.tobytes()
        assert [(s.inertia, s.shift, s.n_empty) for s in many.iterations] == [
            (s.inertia, s.shift, s.n_empty) for s in one.iterations
        ]
        np.testing.assert_array_equal(assigned.labels, one_assigned.labels)
    assert one.iterations[0].n_empty == 1


def test_rows_permuted_with_their_keys_give_the_same_centroids():
    loss = skewed(2000, 8)
    start = start_of(loss, 30)
    start[0] = 900.0
    order = np.random.default_rng(0).permutation(len(loss))
    plain, _ = blocks_fit(loss, start, 8, 3)
    permuted, _ = blocks_fit(loss[order], start, 8, 7, row_key=order)
    assert permuted.centroid_KT.tobytes() == plain.centroid_KT.tobytes()


@st.composite
def some_partial(draw, k=3, t=2):
    numerators = st.integers(0, 2**30)
    return partials.Partial(
        np.array(draw(st.lists(st.integers(0, 2**40), min_size=k, max_size=k)), dtype=np.int64),
        np.array(draw(st.lists(numerators, min_size=k * t, max_size=k * t)), dtype=np.float64).reshape(k, t) * GRID,
        draw(st.integers(0, 2**100)),
    )


def same(a, b):
    return (
        a.count_K.tobytes() == b.count_K.tobytes()
        and a.sum_KT.tobytes() == b.sum_KT.tobytes()
        and a.inertia_units == b.inertia_units
    )


@given(some_partial(), some_partial(), some_partial())
@settings(max_examples=60, deadline=None)
def test_merge_is_commutative_associative_and_has_an_identity(a, b, c):
    zero = partials.Partial.zero(3, 2)
    assert same(partials.merge([a, b]), partials.merge([b, a]))
    assert same(partials.merge([partials.merge([a, b]), c]), partials.merge([a, partials.merge([b, c])]))
    assert same(partials.merge([a, zero]), a)
    assert same(partials.merge([zero, a]), a)
    assert same(partials.merge(iter([a])), a)


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_partial_sums_of_any_cut_merge_to_those_of_the_whole(seed, n_blocks, n):
    loss = curves(n, 3, seed)
    centroid = np.array([[0.5, 0.5, 0.5], [2.0, 1.0, 0.5]])
    assigned = nearest.assign(loss, centroid)
    parts = [
        partials.partial_sums(loss[c], nearest.Assignment(assigned.labels[c], assigned.sq_distance[c]), 2)
        for c in np.array_split(np.arange(n), n_blocks)
    ]
    whole = partials.partial_sums(loss, assigned, 2)
    assert same(partials.merge(parts), whole)
    assert whole.inertia == pytest.approx(float(assigned.sq_distance.sum()), rel=1e-9, abs=1e-9)


def test_merge_leaves_its_inputs_unchanged():
    part = partials.Partial(np.array([1]), np.array([[2.0]]), 3)
    partials.merge([part, part])
    assert (part.count_K[0], part.sum_KT[0, 0], part.inertia_units) == (1, 2.0, 3)


def test_merge_nothing_or_other_shapes_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        partials.merge([])
    with pytest.raises(ValueError, match="shapes"):
        partials.merge([partials.Partial.zero(2, 3), partials.Partial.zero(3, 3)])


def test_inertia_very_large_distances_does_not_overflow():
    loss = np.array([[2.0**20] * 4] * 50, dtype=np.float32)
    partial = partials.partial_sums(loss, nearest.assign(loss, np.zeros((1, 4))), 1)
    assert partial.inertia == 50 * 4 * 2.0**40


def test_partial_and_candidates_survive_pickling():
    loss = curves(50, 3)
    assigned = nearest.assign(loss, start_of(loss, 3))
    partial = partials.partial_sums(loss, assigned, 3)
    assert same(pickle.loads(pickle.dumps(partial)), partial)
    found = pickle.loads(pickle.dumps(relocation.farthest(loss, assigned, np.arange(50), 2)))
    assert len(found.row_key_C) == 2


# ----------------------------------------------------------------------------------------------------- empty clusters


def test_empty_cluster_takes_the_farthest_row_as_in_sklearn():
    loss = on_grid([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [10.0, 10.0], [10.0, 11.0], [10.0, 16.0]])
    start = np.array([[0.0, 0.0], [10.0, 10.0], [100.0, 100.0]])
    ours, theirs = kmeans.fit(loss, 3, 0, 1, start_KT=start), sklearn_fit(loss, start, 1)
    # (10, 16) leaves cluster 1 for the empty cluster 2.
    assert ours.centroid_KT.tolist() == [[1 / 3, 1 / 3], [10.0, 10.5], [10.0, 16.0]]
    np.testing.assert_allclose(ours.centroid_KT, theirs.cluster_centers_, rtol=1e-12)
    assert [s.n_empty for s in ours.iterations] == [1]


@pytest.mark.parametrize("n_empty", [1, 2, 5])
def test_empty_clusters_relocated_reach_the_clustering_of_sklearn(n_empty):
    loss = skewed(1500, 6)
    start = start_of(loss, 20)
    start[-n_empty:] = 500.0 + np.arange(n_empty)[:, None]  # the nearest of them is still beyond every row
    ours, theirs = kmeans.fit(loss, 20, 0, 40, start_KT=start), sklearn_fit(loss, start, 40)
    assert ours.iterations[0].n_empty == n_empty
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-9)
    # scikit-learn hands several far rows to the empty clusters in no defined order, so ids may be exchanged.
    pairs = set(zip(ours.assignment.labels.tolist(), theirs.labels_.tolist(), strict=True))
    assert len(pairs) == len(np.unique(ours.assignment.labels)) == 20


def test_farthest_equal_distances_are_taken_in_the_order_of_the_key():
    loss = on_grid([[2.0], [0.0], [2.0], [0.0], [1.0]])
    assigned = nearest.assign(loss, np.array([[1.0]]))
    key = np.array([40, 30, 20, 10, 0])
    found = relocation.farthest(loss, assigned, key, 3)
    assert found.row_key_C.tolist() == [10, 20, 30]
    halves = [
        relocation.farthest(loss[s], nearest.Assignment(assigned.labels[s], assigned.sq_distance[s]), key[s], 3)
        for s in (slice(0, 2), slice(2, 5))
    ]
    for parts in (halves, halves[::-1]):
        assert relocation.merge_farthest(parts, 3).row_key_C.tolist() == [10, 20, 30]


def test_merge_farthest_keys_of_several_dtypes_are_refused():
    loss = curves(4, 2)
    assigned = nearest.assign(loss, np.ones((1, 2)))
    parts = [relocation.farthest(loss, assigned, np.arange(4).astype(d), 1) for d in (np.int64, np.uint64)]
    with pytest.raises(ValueError, match="dtype"):
        relocation.merge_farthest(parts, 1)


def test_relocation_of_the_last_row_of_a_cluster_keeps_its_old_centroid():
    loss = on_grid([[0.0], [0.0], [9.0]])
    start = np.array([[0.0], [5.0], [100.0]])
    ours = kmeans.fit(loss, 3, 0, 1, start_KT=start)
    assert ours.centroid_KT.tolist() == [[0.0], [5.0], [9.0]]


def test_relocation_is_not_done_when_all_rows_are_at_their_centroids():
    loss = np.repeat(on_grid([[1.0, 1.0], [2.0, 2.0]]), 3, axis=0)
    start = np.array([[1.0, 1.0], [2.0, 2.0], [7.0, 7.0]])
    ours = kmeans.fit(loss, 3, 0, 10, start_KT=start)
    assert ours.centroid_KT.tolist() == start.tolist()
    assert ours.converged
    assert len(ours.iterations) == 1


def test_lloyd_without_a_relocation_callback_leaves_empty_clusters_in_place():
    loss = curves(50, 2)
    start = np.array([[1.0, 1.0], [500.0, 500.0]])
    result = kmeans.lloyd(lambda centroid: partials.partial_sums(loss, nearest.assign(loss, centroid), 2), start, 3)
    assert result.centroid_KT[1].tolist() == [500.0, 500.0]
    assert [s.n_empty for s in result.iterations] == [1] * len(result.iterations)


# -------------------------------------------------------------------------------------------------- loop, small cases


def test_lloyd_reports_the_inertia_before_each_update_and_the_moves():
    loss = on_grid([[0.0], [2.0], [10.0], [14.0]])
    seen = []
    result = kmeans.lloyd(
        lambda centroid: partials.partial_sums(loss, nearest.assign(loss, centroid), 2),
        np.array([[0.0], [10.0]]),
        10,
        on_iteration=seen.append,
    )
    assert [(s.iteration, s.inertia, s.shift, s.n_empty) for s in result.iterations] == [
        (1, 20.0, 5.0, 0),
        (2, 10.0, 0.0, 0),
    ]
    assert seen == list(result.iterations)
    assert all(s.seconds >= 0 for s in seen)
    assert result.converged
    assert result.centroid_KT.tolist() == [[1.0], [12.0]]


def test_lloyd_inertia_never_rises_and_labels_match_the_final_centroids():
    loss = skewed(2000, 12, seed=4)
    ours = kmeans.fit(loss, 50, seed=1, max_iter=12)
    inertia = [s.inertia for s in ours.iterations] + [ours.inertia]
    assert inertia == sorted(inertia, reverse=True)
    np.testing.assert_array_equal(ours.assignment.labels, brute_force(loss, ours.centroid_KT)[0])


def test_lloyd_tolerance_stops_earlier():
    loss = curves(1000, 4)
    start = start_of(loss, 10)

    def step(centroid):
        return partials.partial_sums(loss, nearest.assign(loss, centroid), 10)

    full = kmeans.lloyd(step, start, 300)
    loose = kmeans.lloyd(step, start, 300, tolerance=full.iterations[2].shift)
    assert full.converged
    assert loose.converged
    assert len(loose.iterations) <= 3 < len(full.iterations)
    assert not kmeans.lloyd(step, start, 2).converged


@pytest.mark.parametrize(("max_iter", "tolerance"), [(0, 0.0), (-1, 0.0), (5, -1.0), (5, float("nan"))])
def test_lloyd_impossible_settings_are_config_errors(max_iter, tolerance):
    with pytest.raises(ConfigError):
        kmeans.lloyd(lambda centroid: partials.Partial.zero(1, 1), np.zeros((1, 1)), max_iter, tolerance)


def test_fit_does_not_change_its_start():
    loss = curves(100, 3)
    start = start_of(loss, 5)
    before = start.copy()
    kmeans.fit(loss, 5, 0, 5, start_KT=start)
    np.testing.assert_array_equal(start, before)


def test_fit_one_cluster_is_the_mean():
    loss = curves(500, 7)
    ours = kmeans.fit(loss, 1, 0, 5)
    np.testing.assert_array_equal(ours.centroid_KT[0], loss.astype(np.float64).sum(axis=0) / 500)
    assert not ours.assignment.labels.any()
    assert ours.converged


def test_fit_one_row():
    ours = kmeans.fit(on_grid([[1.0, 2.0]]), 1, 0, 5)
    assert ours.centroid_KT.tolist() == [[1.0, 2.0]]
    assert ours.inertia == 0.0


def test_fit_a_cluster_per_row_has_no_inertia():
    loss = curves(40, 5)
    ours = kmeans.fit(loss, 40, 0, 5)
    assert sorted(ours.assignment.labels.tolist()) == list(range(40))
    assert ours.inertia == 0.0


def test_fit_all_rows_equal_gives_one_finite_cluster():
    loss = np.full((30, 4), 0.5, dtype=np.float32)
    ours = kmeans.fit(loss, 10, 0, 5)
    assert ours.centroid_KT.tolist() == [[0.5] * 4]
    assert ours.inertia == 0.0


def test_fit_one_checkpoint_works():
    ours = kmeans.fit(on_grid([[0.0], [0.5], [9.0], [9.5]]), 2, 0, 10)
    assert sorted(ours.centroid_KT.ravel().tolist()) == [0.25, 9.25]


# --------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_validate_names_the_rows_with_a_loss_that_is_not_finite(bad):
    loss = curves(20, 3)
    loss[[4, 17], [0, 2]] = bad
    with pytest.raises(DataError, match="bf16") as raised:
        seeding.validate_trajectories(loss, np.arange(20) + 1000)
    assert raised.value.example_ids == (1004, 1017)
    assert "2 of 20" in str(raised.value)
    with pytest.raises(DataError, match="row position 4, 17") as raised:
        seeding.validate_trajectories(loss)
    assert raised.value.example_ids == ()


def test_validate_many_bad_rows_keeps_the_message_short_and_the_ids_complete():
    with pytest.raises(DataError) as raised:
        seeding.validate_trajectories(np.full((1000, 3), np.nan, np.float32), np.arange(1000))
    assert len(str(raised.value)) < 600
    assert len(raised.value.example_ids) == 1000


@pytest.mark.parametrize("shape", [(5, 0), (5,), (5, 2, 2)])
def test_validate_no_checkpoint_or_wrong_shape_is_a_data_error(shape):
    with pytest.raises(DataError, match="shape"):
        seeding.validate_trajectories(np.zeros(shape, np.float32))


def test_validate_finite_or_empty_passes():
    seeding.validate_trajectories(curves(20, 3))
    seeding.validate_trajectories(np.zeros((0, 3), np.float32))
