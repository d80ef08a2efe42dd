"""Draws: known numbers, no collisions, and independence of order and of other rows."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray import draws


def test_draw_hash_known_values_do_not_change():
    # Selections in the world rest on these numbers: a change here is a change of every subset.
    draw = draws.draw_hash(np.array([0, 1, -1, 2**62]), np.array([0, 0, 0, 3]), 0)
    assert draw.dtype == np.uint64
    assert draw.tolist() == [
        scalar_draw(0, 0, 0),
        scalar_draw(1, 0, 0),
        scalar_draw(-1, 0, 0),
        scalar_draw(2**62, 3, 0),
    ]
    assert draw[0] == KNOWN_DRAW


KNOWN_DRAW = 13013912499580732898


def scalar_draw(content, occurrence, seed):
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    state = mix((seed + golden) & mask)
    state = mix(((state ^ (content & mask)) + golden) & mask)
    return mix((state + occurrence * golden) & mask)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.integers(-(2**70), 2**70))
def test_draw_hash_equals_its_definition_in_plain_integers(content, occurrence, seed):
    draw = draws.draw_hash(np.array([content]), np.array([occurrence]), seed)
    assert int(draw[0]) == scalar_draw(content, occurrence, seed)


def test_draw_hash_signed_and_unsigned_content_agree():
    signed = np.array([-1, -(2**63), 5])
    zero = np.zeros(3, np.int64)
    np.testing.assert_array_equal(draws.draw_hash(signed, zero, 1), draws.draw_hash(signed.view(np.uint64), zero, 1))


def test_draw_hash_does_not_collide_for_seeds_contents_and_copies_that_count_up():
    content, copy = (a.ravel() for a in np.meshgrid(np.arange(300), np.arange(20)))
    drawn = np.concatenate([draws.draw_hash(content, copy, seed) for seed in range(20)])
    assert len(np.unique(drawn)) == len(drawn)


def test_draw_hash_floats_are_refused():
    with pytest.raises(TypeError, match="integer"):
        draws.draw_hash(np.array([1.0]), np.array([0]), 0)


def test_occurrences_number_copies_by_id_in_any_order():
    content, ids = np.array([5, -2, 5, 5, -2, 9]), np.array([30, 4, 10, 20, 3, 1])
    assert draws.occurrences(content, ids).tolist() == [2, 1, 0, 1, 0, 0]
    order = np.array([5, 3, 1, 0, 2, 4])
    assert draws.occurrences(content[order], ids[order]).tolist() == [0, 1, 1, 2, 0, 0]
    assert draws.occurrences(content[:0], ids[:0]).tolist() == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 4))
def test_copies_found_in_parts_of_all_contents_number_rows_as_all_at_once(contents, n_parts):
    content, ids = np.array(contents), np.arange(len(contents)) * 3 + 1
    parts = [draws.Copies.among(content[at], ids[at]) for at in (content % n_parts == part for part in range(n_parts))]
    copies = draws.Copies.joined(parts)
    assert copies.occurrence_of(ids).tolist() == draws.occurrences(content, ids).tolist()
    assert copies.occurrence_of(ids + 1).tolist() == [0] * len(ids)
    assert draws.is_ascending(copies.example_id_M)


def test_draw_of_a_row_does_not_change_when_others_are_added():
    content, ids = np.array([5, 6, 7]), np.array([1, 2, 3])
    few = draws.draw_hash(content, draws.occurrences(content, ids), 3)
    more_content, more_ids = np.concatenate([[9, 8], content]), np.concatenate([[10, 11], ids])
    more = draws.draw_hash(more_content, draws.occurrences(more_content, more_ids), 3)
    np.testing.assert_array_equal(more[2:], few)


def test_draws_of_examples_are_found_by_id_whatever_order_the_table_has():
    ids, content = np.array([9, 2, 5, 7]), np.array([1, 3, 1, 4])
    table = pa.table({"example_id": ids, "content_hash": content, "more": list("abcd")})
    found = draws.Draws.of(table, 6)
    assert found.example_id_N.tolist() == [2, 5, 7, 9]
    expected = draws.draw_hash(np.array([3, 1, 4, 1]), np.array([0, 0, 0, 1]), 6)
    np.testing.assert_array_equal(found.draw_N, expected)
    some = found.take(np.array([9, 2]))
    assert some.example_id_N.tolist() == [9, 2]
    assert some.content_hash_N.tolist() == [1, 3]
    np.testing.assert_array_equal(some.draw_N, expected[[3, 0]])
