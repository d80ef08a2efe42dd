"""Drift: rows drawn alike show none, others do."""

import numpy as np
import pytest

from s2l_ray.clustering.drift import FAR, Drift, drift_of, far_distance, n_beyond


def drift_between(first: tuple[np.ndarray, np.ndarray], later: tuple[np.ndarray, np.ndarray]) -> Drift | None:
    (distance_N, cluster_N), (distance_M, cluster_M) = first, later
    far = far_distance(np.sort(distance_N)[-n_beyond(len(distance_N)) :], len(distance_N))
    n_clusters = max(cluster_N.max(), cluster_M.max()) + 1
    size_K, new_K = (np.bincount(cluster, minlength=n_clusters) for cluster in (cluster_N, cluster_M))
    return drift_of(size_K, new_K, int((distance_M > far).sum()))


def pool(n: int, seed: int, scale: float = 1.0, weights: tuple[float, ...] = (0.5, 0.3, 0.2)):
    generator = np.random.default_rng(seed)
    return scale * generator.chisquare(4, n), generator.choice(len(weights), n, p=weights)


@pytest.mark.parametrize("n_new", [30, 300, 3000])
@pytest.mark.parametrize("seed", range(5))
def test_rows_drawn_alike_show_no_notable_drift(n_new, seed):
    found = drift_between(pool(20_000, 99), pool(n_new, seed))
    assert found is not None
    assert not found.is_notable


@pytest.mark.parametrize("n_new", [300, 3000])
@pytest.mark.parametrize(
    ("scale", "weights"), [(3.0, (0.5, 0.3, 0.2)), (1.0, (0.2, 0.3, 0.5))], ids=["farther out", "another mix"]
)
def test_rows_drawn_otherwise_show_notable_drift(n_new, scale, weights):
    found = drift_between(pool(20_000, 99), pool(n_new, 1, scale, weights))
    assert found is not None
    assert found.is_notable


@pytest.mark.parametrize("n_rows", [1, 2, 3, 99, 100, 101, 102, 12_345])
def test_far_out_is_beyond_a_quantile_that_few_rows_decide(n_rows):
    distance_N = np.random.default_rng(n_rows).chisquare(4, n_rows)
    assert n_beyond(n_rows) <= n_rows * (1 - FAR) + 3
    largest = np.random.default_rng(0).permutation(np.sort(distance_N)[-n_beyond(n_rows) :])
    assert far_distance(largest, n_rows) == pytest.approx(np.quantile(distance_N, FAR), rel=1e-12)


def test_shift_is_half_the_sum_of_the_differences_of_shares():
    found = drift_of(np.array([2, 2, 0]), np.array([0, 1, 1]), 1)
    assert found is not None
    assert found.shift == pytest.approx(0.5)  # shares (1/2, 1/2, 0) and (0, 1/2, 1/2)
    assert found.far_share == 0.5


def test_no_new_rows_is_no_drift():
    assert drift_of(np.array([1, 1]), np.array([0, 0]), 0) is None
