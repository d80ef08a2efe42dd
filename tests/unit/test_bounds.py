"""Bounds against the passes that look at every row: the same labels, centroids and inertia, from fewer distances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.clustering import bounds, kmeans, nearest, partials, relocation
from tests.unit.test_kmeans import DATA, blocks_fit, on_grid, skewed, start_of


class Blocks:
    """Rows in blocks, with what is known of them, as the stage keeps them."""

    def __init__(self, loss, n_blocks):
        self.loss = np.array_split(loss, n_blocks)
        self.near = [None] * n_blocks
        self.looked_at = []

    def first(self, centroid, origin):
        found = [bounds.first_pass(loss, centroid, origin) for loss in self.loss]
        self.near = [near for near, _ in found]
        return partials.merge(sums for _, sums in found)

    def again(self, centroid, moves):
        found = [bounds.next_pass(loss, near, centroid, moves) for loss, near in zip(self.loss, self.near, strict=True)]
        self.near = [near for near, _ in found]
        return partials.merge(change for _, change in found)

    @property
    def step(self):
        return bounds.BoundedStep(self.first, self.again)


def bounded_fit(loss, start, max_iter, n_blocks):
    blocks = Blocks(loss, n_blocks)
    key = np.arange(len(loss))

    def relocate(centroid, n):
        return relocation.farthest(loss, nearest.assign(loss, centroid), key, n)

    return blocks, kmeans.lloyd(blocks.step, start, max_iter, relocate=relocate)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize("empty", [False, True])
def test_lloyd_with_bounds_is_lloyd_on_all_rows_to_the_last_bit(kind, n_blocks, empty):
    loss = DATA[kind](3000, 12)
    start = start_of(loss, 40)
    if empty:
        start[3] = 900.0  # wins no row: a far row takes its place, and every bound with it
    _, ours = bounded_fit(loss, start, 15, n_blocks)
    plain, _ = blocks_fit(loss, start, 15, 1)
    assert ours.centroid_KT.tobytes() == plain.centroid_KT.tobytes()
    assert [(s.shift, s.n_empty) for s in ours.iterations] == [(s.shift, s.n_empty) for s in plain.iterations]
    inertia = np.array([s.inertia for s in plain.iterations])
    np.testing.assert_allclose([s.inertia for s in ours.iterations], inertia, rtol=1e-12, atol=1e-12)


def test_what_was_known_may_get_lost_and_changes_nothing():
    loss = DATA["curves"](2000, 8)
    start = start_of(loss, 30)
    blocks, passes = Blocks(loss, 2), []

    def again(centroid, moves):
        passes.append(len(passes))
        return None if len(passes) % 3 == 0 else blocks.again(centroid, moves)

    lost = kmeans.lloyd(bounds.BoundedStep(blocks.first, again), start, 12)
    whole = kmeans.lloyd(Blocks(loss, 2).step, start, 12)
    assert len(passes) > 6
    assert lost.centroid_KT.tobytes() == whole.centroid_KT.tobytes()
    assert [s.inertia for s in lost.iterations] == [s.inertia for s in whole.iterations]


@pytest.mark.parametrize("kind", DATA)
def test_inertia_is_the_same_for_any_blocks(kind):
    loss = DATA[kind](2000, 8)
    start = start_of(loss, 30)
    one, many = (bounded_fit(loss, start, 10, n)[1] for n in (1, 13))
    assert [s.inertia for s in one.iterations] == [s.inertia for s in many.iterations]


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 12), st.floats(0, 3))
@settings(max_examples=60, deadline=None)
def test_bounds_hold_wherever_the_centroids_go(seed, t, k, reach):
    generator = np.random.default_rng(seed)
    loss = on_grid(generator.gamma(1.0, 2.0, (200, t)))
    centroid = loss[generator.choice(200, k, replace=False)].astype(np.float64)
    near, _ = bounds.first_pass(loss, centroid, centroid.mean(axis=0))
    for _ in range(4):
        moved = centroid + reach * generator.normal(0, 1, centroid.shape) * generator.integers(0, 2, (k, 1))
        near, _ = bounds.next_pass(loss, near, moved, bounds.Moves.between(centroid, moved))
        centroid = moved
        np.testing.assert_array_equal(near.labels, nearest.assign(loss, centroid).labels)
        distance = np.sqrt(np.square(loss[:, None, :].astype(np.float64) - centroid).sum(axis=2))
        own = np.take_along_axis(distance, near.labels[:, None].astype(int), axis=1)[:, 0]
        assert (near.upper >= own).all()
        np.put_along_axis(distance, near.labels[:, None].astype(int), np.inf, axis=1)
        assert (near.lower <= distance.min(axis=1)).all()


def test_rows_that_cannot_have_moved_are_not_looked_at_again(monkeypatch):
    loss = skewed(5000, 12)
    looked_at = []
    real = bounds.nearest_two

    def counted(rows, centroid):
        looked_at.append(len(rows))
        return real(rows, centroid)

    monkeypatch.setattr(bounds, "nearest_two", counted)
    bounded_fit(loss, start_of(loss, 40), 20, 1)
    assert looked_at[0] == 5000
    assert sum(looked_at[1:]) < 0.5 * 5000 * (len(looked_at) - 1)
    assert looked_at[-1] < 0.2 * 5000
