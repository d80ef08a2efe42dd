"""The guard: hand-worked ratios, copies, limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.clustering.guard import DUPLICATE, NOT_LEARNED, learning_ratio, set_aside
from s2l_ray.errors import ConfigError


def test_ratio_is_as_worked_by_hand():
    # Mean initial loss 5, so the floor is 0.1.
    loss_NT = np.array([[4.0, 2.0, 0.9], [4.0, 4.0, 4.0], [0.0, 0.0, 0.0], [1.9, 3.0, 3.9]], np.float32)
    ratio_N = learning_ratio(loss_NT, 5.0)
    assert ratio_N == pytest.approx([1.0 / 4.1, 1.0, 1.0, 4.0 / 2.0], rel=1e-6)


def test_set_aside_takes_rows_at_and_above_the_threshold():
    # Floor 0.02 * 5 = 0.1; last losses chosen for ratios .79, .8 and .81 of 4.0.
    loss_NT = np.array([[3.9, 0.79 * 4.0 - 0.1], [3.9, 0.8 * 4.0 - 0.1 + 1e-9], [3.9, 0.81 * 4.0 - 0.1]])
    found = set_aside(loss_NT, np.zeros(3, int), 5.0)
    assert found.not_learned_N.tolist() == [False, True, True]
    assert found.reason_N.tolist() == [None, NOT_LEARNED, NOT_LEARNED]


def test_set_aside_keeps_the_first_of_equal_rows_and_counts_copies_in_nothing_else():
    loss_NT = np.array([[3.0, 0.1], [3.0, 0.1], [3.0, 3.0], [3.0, 3.0]])
    found = set_aside(loss_NT, np.array([0, 1, 0, 1]), 5.0)
    assert found.kept_N.tolist() == [True, False, False, False]
    assert found.reason_N.tolist() == [None, DUPLICATE, NOT_LEARNED, DUPLICATE]
    assert found.ratio_N[0] == pytest.approx(0.2 / 3.1)
    assert found.not_learned_N.tolist() == [False, False, True, False]


def test_set_aside_with_one_checkpoint_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"proxy\.checkpoints"):
        set_aside(np.ones((3, 1)), np.zeros(3, int), 1.0)


@given(st.permutations(range(12)), st.integers(0, 2**32 - 1))
def test_set_aside_does_not_depend_on_the_order_of_rows(order, seed):
    generator = np.random.default_rng(seed)
    loss_NT = generator.uniform(0, 5, (12, 4))
    occurrence_N = generator.integers(0, 2, 12)
    occurrence_N[0] = 0
    order = np.array(order)
    here, there = (
        set_aside(loss_NT, occurrence_N, 5.0),
        set_aside(loss_NT[order], occurrence_N[order], 5.0),
    )
    assert here.ratio_N[order].tolist() == there.ratio_N.tolist()
    assert here.reason_N[order].tolist() == there.reason_N.tolist()
