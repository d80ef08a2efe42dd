"""Windows of checkpoints, and clusters shared over strata."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.clustering.partition import share_clusters, window_columns


@pytest.mark.parametrize(
    ("window", "columns"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("early", [0, 1, 2]),
        ("middle", [2, 3, 4]),
        ("late", [4, 5, 6]),
        (1, [0, 1, 2, 3, 4, 5, 6]),
        (2, [0, 2, 4, 6]),
        (3, [0, 3, 6]),
        (4, [2, 6]),
        (100, [6]),
    ],
)
def test_window_of_seven_checkpoints_is_as_worked_by_hand(window, columns):
    assert window_columns(window, 7).tolist() == columns


@given(st.integers(1, 40), st.sampled_from(["all", "early", "middle", "late", 1, 2, 5]))
def test_window_is_never_empty_and_within_the_checkpoints(n, window):
    columns = window_columns(window, n)
    assert len(columns) >= 1
    assert columns[0] >= 0
    assert columns[-1] < n
    assert (np.diff(columns) > 0).all()


@given(st.integers(1, 40), st.integers(1, 50))
def test_every_nth_keeps_the_last_checkpoint(n, every):
    assert window_columns(every, n)[-1] == n - 1


def test_share_clusters_follows_the_square_root_of_the_sizes():
    # Roots 30, 20, 10; 60 clusters: 30, 20, 10.
    assert share_clusters(np.array([900, 400, 100]), 60).tolist() == [30, 20, 10]


def test_share_clusters_gives_at_least_two_and_at_most_a_third_of_the_rows():
    # Roots 100, 3, 1, 1.41: the small ones round to 3, 1 and 1 of 100.
    assert share_clusters(np.array([10_000, 9, 1, 2]), 100).tolist() == [95, 3, 1, 1]
    assert share_clusters(np.array([10_000, 100]), 4).tolist() == [4, 2]
