"""Drift: rows drawn alike show none, others do."""

import numpy as np
import pytest

from s2l_ray.clustering.drift import drift_of


def pool(n: int, seed: int, scale: float = 1.0, weights: tuple[float, ...] = (0.5, 0.3, 0.2)):
    generator = np.random.default_rng(seed)
    return scale * generator.chisquare(4, n), generator.choice(len(weights), n, p=weights)


@pytest.mark.parametrize("n_new", [30, 300, 3000])
@pytest.mark.parametrize("seed", range(5))
def test_rows_drawn_alike_show_no_notable_drift(n_new, seed):
    found = drift_of(*pool(20_000, 99), *pool(n_new, seed))
    assert found is not None
    assert not found.is_notable


@pytest.mark.parametrize("n_new", [300, 3000])
@pytest.mark.parametrize(
    ("scale", "weights"), [(3.0, (0.5, 0.3, 0.2)), (1.0, (0.2, 0.3, 0.5))], ids=["farther out", "another mix"]
)
def test_rows_drawn_otherwise_show_notable_drift(n_new, scale, weights):
    found = drift_of(*pool(20_000, 99), *pool(n_new, 1, scale, weights))
    assert found is not None
    assert found.is_notable


def test_shift_is_half_the_sum_of_the_differences_of_shares():
    found = drift_of(np.ones(4), np.array([0, 0, 1, 1]), np.array([1.0, 2.0]), np.array([1, 2]))
    assert found is not None
    assert found.shift == pytest.approx(0.5)  # shares (1/2, 1/2, 0) and (0, 1/2, 1/2)
    assert found.far_share == 0.5


def test_no_new_rows_is_no_drift():
    assert drift_of(np.ones(2), np.array([0, 1]), np.ones(0), np.zeros(0, int)) is None
