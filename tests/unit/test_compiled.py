"""Compiled passes against those of numpy: the same labels and centroids to the last bit, and bounds that hold."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.clustering import bounds, nearest, partials
from tests.unit.test_bounds import bounded_fit
from tests.unit.test_kmeans import DATA, blocks_fit, on_grid, start_of

pytest.importorskip("numba", reason="needs `pip install 's2l-ray[fast]'`")
from s2l_ray.clustering import compiled

# Every other number of checkpoints would be compiled anew, which takes seconds.
CHECKPOINTS = (1, 12)


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """Let few rows be worth it; no pass may fail and leave the work to numpy."""
    monkeypatch.setattr(nearest, "COMPILED_ROWS", 1)
    monkeypatch.setattr(nearest, "_failed", [])
    yield
    assert not nearest._failed


def by_numpy(loss, centroid):
    """Return the labels of the formula, and all distances."""
    sq_distance = np.zeros((len(loss), len(centroid)))
    for t in range(loss.shape[1]):
        sq_distance += np.square(loss[:, t, None].astype(np.float64) - centroid[:, t])
    return sq_distance.argmin(axis=1), np.sqrt(sq_distance)


def check_known(known, loss, centroid):
    labels, upper, lower = known
    expected, distance = by_numpy(loss, centroid)
    np.testing.assert_array_equal(labels, expected)
    own = np.take_along_axis(distance, expected[:, None], axis=1)[:, 0]
    assert (upper >= own).all()
    np.put_along_axis(distance, expected[:, None], np.inf, axis=1)
    assert (lower <= distance.min(axis=1)).all()


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize("empty", [False, True])
def test_lloyd_compiled_is_lloyd_by_numpy_to_the_last_bit(kind, n_blocks, empty, monkeypatch):
    loss = DATA[kind](3000, 12)
    start = start_of(loss, 40)
    if empty:
        start[3] = 900.0
    _, ours = bounded_fit(loss, start, 15, n_blocks)
    ended = nearest.assign(loss, ours.centroid_KT)
    monkeypatch.setattr(nearest, "COMPILED_ROWS", 10**9)
    plain, assignment = blocks_fit(loss, start, 15, 1)
    assert ours.centroid_KT.tobytes() == plain.centroid_KT.tobytes()
    assert [(s.shift, s.n_empty) for s in ours.iterations] == [(s.shift, s.n_empty) for s in plain.iterations]
    np.testing.assert_array_equal(ended.labels, assignment.labels)
    assert ended.sq_distance.tobytes() == assignment.sq_distance.tobytes()


@given(
    st.integers(0, 10_000),
    st.sampled_from(CHECKPOINTS),
    st.integers(2, 40),
    # A mean of losses on a grid moves by nothing, or by more than the least that float32 rounds to a share of itself.
    st.floats(0, 3).map(lambda reach: reach if reach > 2.0**-60 else 0.0),
    st.sampled_from([2.0**-16, 1.0, 2.0**14]),
    st.sampled_from([0.0, 2.0**4]),
)
@settings(max_examples=80, deadline=None)
def test_labels_and_bounds_hold_wherever_the_centroids_go(seed, t, k, reach, scale, offset):
    generator = np.random.default_rng(seed)
    loss = on_grid(offset + scale * generator.gamma(1.0, 2.0, (200, t)))
    loss[100:120] = loss[:20]
    centroid = loss[generator.choice(200, k)].astype(np.float64)  # some of them equal
    known = compiled.look(loss, centroid)
    check_known(known, loss, centroid)
    near = bounds.Near(*known)
    for _ in range(4):
        away = reach * scale * generator.normal(0, 1, centroid.shape) * generator.integers(0, 2, (k, 1))
        moves = bounds.Moves.between(centroid, centroid + away)
        near, _ = bounds.next_pass(loss, near, centroid + away, moves)
        centroid = centroid + away
        check_known(near, loss, centroid)


def test_more_centroids_than_neighbours_are_known_are_all_looked_at():
    loss = on_grid(np.random.default_rng(0).gamma(1.0, 2.0, (4000, 12)))
    n_clusters = bounds.NEIGHBOURS + 60
    centroid = loss[:n_clusters].astype(np.float64)
    near, _ = bounds.first_pass(loss, centroid, centroid.mean(axis=0))
    moved = centroid[::-1] + 0.01
    near, _ = bounds.next_pass(loss, near, moved, bounds.Moves.between(centroid, moved))
    check_known(near, loss, moved)


def test_sums_and_distances_are_those_of_numpy_to_the_last_bit_off_the_grid_too(monkeypatch):
    generator = np.random.default_rng(0)
    loss = generator.gamma(1.0, 2.0, (5000, 12)).astype(np.float32)
    centroid, labels = generator.gamma(1.0, 2.0, (40, 12)), generator.integers(0, 39, 5000).astype(np.int32)

    def found():
        distance = nearest.sq_distance_to_own(loss, centroid, labels)
        part = partials.partial_sums(loss, nearest.Assignment(labels, distance), 40)
        return distance.tobytes(), part.sum_KT.tobytes(), part.count_K.tobytes(), part.inertia_units

    compiled_ones = found()
    monkeypatch.setattr(nearest, "compiled_pass", lambda *arguments: None)
    monkeypatch.setattr(partials, "compiled_pass", lambda *arguments: None)
    assert found() == compiled_ones


@pytest.mark.parametrize("value", [3e18, 3e19, 1e30])
def test_distances_that_float32_cannot_hold_are_still_compared(value):
    loss = np.full((70, 12), value, np.float32)
    loss[::2] *= np.float32(1.5)
    centroid = np.stack([np.zeros(12), loss[0].astype(np.float64), loss[1].astype(np.float64) * 1.1])
    check_known(compiled.look(loss, centroid), loss, centroid)


@pytest.mark.parametrize(
    ("loss", "n_clusters"),
    [
        (np.zeros((100, 12)), 5),
        (np.zeros((100, nearest.COMPILED_CHECKPOINTS + 1), np.float32), 5),
        (np.zeros((100, 12), np.float32), 1),
        (np.zeros((0, 12), np.float32), 5),
    ],
)
def test_what_the_kernels_are_not_for_is_left_to_numpy(loss, n_clusters):
    assert not nearest.pays_to_compile(loss, n_clusters)
    assert nearest.compiled_pass("look", loss, n_clusters, np.zeros((n_clusters, loss.shape[1]))) is None


def test_columns_of_a_larger_table_are_read_as_they_are():
    loss = DATA["curves"](500, 24)
    centroid = start_of(np.ascontiguousarray(loss[:, ::2]), 9)
    check_known(compiled.look(loss[:, ::2], centroid), loss[:, ::2], centroid)


@pytest.mark.parametrize(
    ("rows", "before"), [(1000, "0"), (nearest.COMPILED_ROWS, "sys.modules.update(numba=None)")], ids=["few", "without"]
)
def test_few_rows_or_no_numba_are_done_without_it(rows, before):
    code = (
        f"import sys, numpy as np; {before}; from s2l_ray.clustering import nearest; "
        f"found = nearest.assign(np.ones(({rows}, 12), np.float32), np.eye(12)); "
        "print(found.labels.max(), found.sq_distance.max(), bool(sys.modules.get('numba')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["0", "11.0", "False"], ran.stderr


def test_constants_are_those_of_numpys_passes():
    ours = (compiled.WIDER, compiled.NARROWER, compiled.APART)
    assert ours == (nearest.WIDER, nearest.NARROWER, nearest.APART)


def test_a_pass_that_fails_is_numpys_from_then_on(monkeypatch, caplog):
    def fails(*_):
        raise ValueError("size mismatch for tuple")  # as where two processes wrote numba's cache at once

    monkeypatch.setattr(compiled, "look", fails)
    loss = DATA["curves"](500, 12)
    centroid = start_of(loss, 9)
    for _ in range(2):
        np.testing.assert_array_equal(nearest.assign(loss, centroid).labels, by_numpy(loss, centroid)[0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "size mismatch" in caplog.text
    nearest._failed.clear()


def test_sums_of_a_pass_are_those_of_its_labels():
    loss = DATA["skewed"](2000, 12)
    centroid = start_of(loss, 20)
    near, sums = bounds.first_pass(loss, centroid, np.zeros(12))
    moved = centroid + 0.2
    now, change = bounds.next_pass(loss, near, moved, bounds.Moves.between(centroid, moved))
    nothing = np.zeros(len(loss))
    whole = partials.partial_sums(loss, nearest.Assignment(now.labels, nothing), 20)
    merged = partials.merge([sums, change])
    assert merged.sum_KT.tobytes() == whole.sum_KT.tobytes()
    np.testing.assert_array_equal(merged.count_K, whole.count_K)
