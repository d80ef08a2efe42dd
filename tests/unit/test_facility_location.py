"""Greedy facility location against the plain rule."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray import facility_location
from s2l_ray.errors import DataError
from s2l_ray.facility_location import facility_location_rank
from s2l_ray.sampling import order_of


def similarity(hidden_ND):
    unit = hidden_ND / np.linalg.norm(hidden_ND, axis=1, keepdims=True)
    return np.maximum(unit @ unit.T, 0)


def value(sim_NN, chosen):
    return sim_NN[:, list(chosen)].max(axis=1).sum()


def gains_of(sim_NN, taken):
    """What each row would add to the rows taken, -1 for those."""
    covered = sim_NN[:, list(taken)].max(axis=1, initial=0)
    gain = np.maximum(sim_NN - covered[:, None], 0).sum(axis=0)
    gain[list(taken)] = -1
    return gain


def ranked(hidden_ND, n, tie_N=None):
    tie_N = np.arange(len(hidden_ND)) if tie_N is None else tie_N
    draw_N = np.random.default_rng(7).permutation(len(hidden_ND)).astype(np.uint64)
    return facility_location_rank(hidden_ND, draw_N, tie_N, n)


@pytest.mark.parametrize("candidates", [1, 3, 64])
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 6))
@settings(max_examples=40)
def test_facility_location_takes_what_plain_greedy_takes(candidates, seed, n_rows, n_dims):
    generator = np.random.default_rng(seed)
    hidden_ND = generator.normal(size=(n_rows, n_dims)).astype(np.float32)
    hidden_ND[generator.integers(n_rows, size=n_rows // 3)] = hidden_ND[0]  # copies, whose gains are equal
    n = int(generator.integers(1, n_rows + 1))
    before, facility_location.CANDIDATES = facility_location.CANDIDATES, candidates
    try:
        rank_N = ranked(hidden_ND, n)
    finally:
        facility_location.CANDIDATES = before
    assert np.array_equal(np.sort(rank_N), np.arange(n_rows))
    sim_NN = similarity(hidden_ND.astype(np.float64))
    found = order_of(rank_N)[:n].tolist()
    # The rule word for word, at every step. Gains that differ by rounding alone may be taken either way, and what
    # follows differs then, so each step is judged after the rows that were taken.
    for step, chosen in enumerate(found):
        gain = gains_of(sim_NN, found[:step])
        assert gain[chosen] >= gain.max() * (1 - 1e-5) - 1e-5


def test_facility_location_of_three_groups_takes_one_of_each_first_the_largest():
    # Directions x (4 rows), y (3 rows), z (2 rows): gains 4, 3, 2, and nothing after that.
    hidden_ND = np.repeat(np.eye(3), [4, 3, 2], axis=0)[[0, 8, 4, 1, 5, 2, 7, 3, 6]]
    assert order_of(ranked(hidden_ND, 3)).tolist()[:3] == [0, 2, 1]


def test_facility_location_is_within_the_bound_of_the_best_subset():
    generator = np.random.default_rng(3)
    for _ in range(10):
        hidden_ND = generator.normal(size=(10, 3))
        sim_NN = similarity(hidden_ND)
        best = max(value(sim_NN, chosen) for chosen in itertools.combinations(range(10), 3))
        found = value(sim_NN, order_of(ranked(hidden_ND, 3))[:3])
        assert (1 - 1 / math.e) * best <= found <= best * (1 + 1e-9)


def test_facility_location_of_fewer_rows_is_a_prefix():
    hidden_ND = np.random.default_rng(5).normal(size=(50, 4))
    many, few = order_of(ranked(hidden_ND, 20)), order_of(ranked(hidden_ND, 8))
    assert many[:8].tolist() == few[:8].tolist()


def test_facility_location_does_not_depend_on_the_order_of_rows():
    generator = np.random.default_rng(5)
    hidden_ND, tie_N = generator.normal(size=(60, 4)), np.arange(60)
    hidden_ND[30:] = hidden_ND[:30]
    order = generator.permutation(60)
    here = facility_location_rank(hidden_ND, tie_N.astype(np.uint64), tie_N, 25)
    there = facility_location_rank(hidden_ND[order], tie_N[order].astype(np.uint64), tie_N[order], 25)
    assert here[order].tolist() == there.tolist()


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_facility_location_of_a_row_without_direction_is_refused_with_its_id(bad):
    hidden_ND = np.ones((4, 2))
    hidden_ND[2] = bad
    with pytest.raises(DataError) as found:
        facility_location_rank(hidden_ND, np.arange(4), np.arange(4) + 10, 2)
    assert list(found.value.example_ids) == [12]
