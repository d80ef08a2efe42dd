"""Budgets: what is read as which, and how many rows of a ranking each takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.budgets import Budget, parse_budget, rows_in_budget
from s2l_ray.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("value", "kind", "amount"),
    [
        (1, "rows", 1),
        (5000, "rows", 5000),
        (np.int64(7), "rows", 7),
        (1.0, "fraction", 1.0),
        (0.1, "fraction", 0.1),
        (1e-9, "fraction", 1e-9),
        (np.float32(0.5), "fraction", 0.5),
        ("10%", "fraction", 0.1),
        ("100 %", "fraction", 1.0),
        ("0.5%", "fraction", 0.005),
        ("29%", "fraction", 0.29),
        ("0.1", "fraction", 0.1),
        ("1.0", "fraction", 1.0),
        ("1", "rows", 1),
        (" 5000 ", "rows", 5000),
        ("5k", "rows", 5000),
        ("5K rows", "rows", 5000),
        ("1.5M", "rows", 1_500_000),
        ("0.3k", "rows", 300),
        ("300 rows", "rows", 300),
        ("1 row", "rows", 1),
        ("2M tokens", "tokens", 2_000_000),
        ("2Mtokens", "tokens", 2_000_000),
        ("1.1b tokens", "tokens", 1_100_000_000),
        ("1 token", "tokens", 1),
    ],
)
def test_parse_budget_reads(value, kind, amount):
    budget = parse_budget(value)
    assert budget == Budget(kind, amount)
    assert type(budget.amount) is (float if kind == "fraction" else int)


NOT_A_BUDGET = [0, -1, 1.5, 0.0, -0.1, 2.0, math.nan, math.inf, -math.inf, True, False, np.True_, None, [1], 1j]
NOT_A_BUDGET += ["", " ", "0", "-5", "0%", "101%", "-10%", "1.5", "0.0", "0 rows", "0.5 rows", "1.2345k", "ten"]
NOT_A_BUDGET += ["nan", "inf", "1e6", "1,000", "1_000", "k", "%", "10% tokens", "10% rows", "5k 5k", "5kk", "5 kg"]
NOT_A_BUDGET += ["\u0665", "tokens 5"]


@pytest.mark.parametrize("value", NOT_A_BUDGET)
def test_parse_budget_refuses_and_says_what_to_write(value):
    with pytest.raises(ConfigError) as raised:
        parse_budget(value)
    message = str(raised.value)
    assert repr(value) in message
    assert "expected" in message
    assert '"2M tokens"' in message


@pytest.mark.parametrize(
    ("budget", "n_rows", "rows"),
    [
        (Budget("rows", 1), 1, 1),
        (Budget("rows", 30), 30, 30),
        (Budget("fraction", 0.1), 30, 3),
        (Budget("fraction", 0.29), 100, 29),
        (Budget("fraction", 7 / 9), 9, 7),
        (Budget("fraction", 0.1), 39, 3),
        (Budget("fraction", 1e-9), 30, 1),
        (Budget("fraction", 1.0), 30, 30),
        (Budget("fraction", 0.5), 1, 1),
    ],
)
def test_rows_in_budget_of_rows_and_fractions(budget, n_rows, rows):
    assert rows_in_budget(budget, n_rows) == rows


@given(st.integers(1, 10**9), st.integers(1, 100))
def test_rows_in_budget_of_whole_percentages_is_exact_floor(n_rows, percent):
    budget = parse_budget(f"{percent}%")
    assert rows_in_budget(budget, n_rows) == max(1, n_rows * percent // 100)


def test_rows_in_budget_more_rows_than_there_are_is_a_config_error():
    with pytest.raises(ConfigError, match="31 rows but only 30"):
        rows_in_budget(Budget("rows", 31), 30)


def test_rows_in_budget_no_rows_is_a_data_error():
    with pytest.raises(DataError, match="no row"):
        rows_in_budget(Budget("fraction", 0.5), 0)


@pytest.mark.parametrize(("amount", "rows"), [(5, 1), (14, 1), (15, 2), (17, 2), (18, 3), (10**12, 3)])
def test_rows_in_budget_of_tokens_is_the_longest_prefix_that_fits(amount, rows):
    tokens = np.array([5, 10, 3], dtype=np.int32)
    assert rows_in_budget(Budget("tokens", amount), 3, tokens) == rows


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 600))
def test_rows_in_budget_of_tokens_fits_and_one_more_row_would_not(tokens, amount):
    if tokens[0] > amount:
        return
    rows = rows_in_budget(Budget("tokens", amount), len(tokens), np.array(tokens))
    assert sum(tokens[:rows]) <= amount
    assert rows == len(tokens) or sum(tokens[: rows + 1]) > amount


def test_rows_in_budget_of_tokens_nothing_fits_says_why():
    tokens = np.array([9, 4, 6])
    with pytest.raises(ConfigError, match="smallest example has 4"):
        rows_in_budget(Budget("tokens", 3), 3, tokens)
    with pytest.raises(ConfigError, match=r"first example of the ranking has 9.*9 tokens or more"):
        rows_in_budget(Budget("tokens", 5), 3, tokens)


def test_rows_in_budget_of_tokens_without_them_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="tokens of every row"):
        rows_in_budget(Budget("tokens", 3), 3)
