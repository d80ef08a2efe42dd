"""Budgets: how much of a ranking is taken, as rows, as a fraction of the pool, or as tokens.

Shape suffix: N ranked rows.
"""

import math
import numbers
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from s2l_ray.draws import IntArray
from s2l_ray.errors import ConfigError, DataError


@dataclass(frozen=True)
class Budget:
    """How much to select.

    Attributes:
        kind: what the amount counts.
        amount: rows (int, at least 1), a fraction of the kept rows (float, 0 < x <= 1), or tokens (int, at
            least 1).
    """

    kind: Literal["rows", "fraction", "tokens"]
    amount: int | float


_HOW_TO_WRITE = (
    'Write rows as an integer (5000, "5k", "300 rows"), a fraction of the kept rows as a number with a '
    'decimal point (0.1) or a percentage ("10%"), or tokens with their unit ("2M tokens").'
)
_TEXT = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*(%|[kKmMbB])?\s*(rows?|tokens?)?", re.ASCII)
_MULTIPLE = {"k": 10**3, "m": 10**6, "b": 10**9}


def parse_budget(value: int | float | str) -> Budget:
    """Read a budget: 1 is one row, 1.0 is all rows.

    Args:
        value: int = rows; 0 < float <= 1 = fraction of the kept rows; or text: "10%", "5k", "1.5M", "300
            rows", "2M tokens" (k, M and B are 10**3, 10**6 and 10**9, in either case), or a plain number as
            above.

    Returns:
        The budget with its kind.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise _bad_budget(value, "a number or text")
    if isinstance(value, numbers.Integral):
        return _whole("rows", Fraction(int(value)), value)
    return _fraction(float(value), value)


def _parse_text(text: str) -> Budget:
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise _bad_budget(text, "a number with an optional %, k, M or B and an optional unit")
    number, suffix, unit = match.groups()
    if suffix == "%":
        if unit is not None:
            raise _bad_budget(text, "a percentage without a unit; it always counts rows")
        return _fraction(float(Fraction(number) / 100), text)
    if suffix is None and unit is None and "." in number:
        return _fraction(float(number), text)
    amount = Fraction(number) * (_MULTIPLE[suffix.lower()] if suffix else 1)
    return _whole("tokens" if unit is not None and unit.startswith("token") else "rows", amount, text)


def _whole(kind: Literal["rows", "tokens"], amount: Fraction, value: object) -> Budget:
    if amount.denominator != 1 or amount < 1:
        raise _bad_budget(value, f"a whole number of {kind}, at least 1")
    return Budget(kind, int(amount))


def _fraction(fraction: float, value: object) -> Budget:
    if not 0.0 < fraction <= 1.0:  # also NaN
        raise _bad_budget(value, "a fraction above 0 and up to 1 (0 % to 100 %)")
    return Budget("fraction", fraction)


def _bad_budget(value: object, expected: str) -> ConfigError:
    return ConfigError(f"select.budget is {value!r}; expected {expected}. {_HOW_TO_WRITE}")


def rows_in_budget(budget: Budget, n_rows: int, tokens_in_rank_order_N: IntArray | None = None) -> int:
    """Turn a budget into the length of the prefix of a ranking.

    A token budget takes the longest prefix whose tokens fit; it never skips a row that is too long to reach
    shorter ones behind it, since budgets would then not be prefixes. One that is larger than all rows
    together takes all rows.

    Args:
        budget: from `parse_budget`.
        n_rows: N, kept rows that are ranked.
        tokens_in_rank_order_N: tokens of each row, the row of rank 0 first; needed for a token budget only.

    Returns:
        Number of rows, 1 to N. A fraction is rounded down, but to no less than one row.

    Raises:
        DataError: there are no rows.
        ConfigError: more rows than there are, or fewer tokens than the first row of the ranking has.
        ValueError: a token budget without the rows' tokens.
    """
    if n_rows < 1:
        raise DataError("There is no row to select from; expected at least one kept example. Check rejected.parquet.")
    if budget.kind == "rows":
        if budget.amount > n_rows:
            raise ConfigError(
                f"select.budget is {budget.amount} rows but only {n_rows} rows are kept; expected at most "
                f'{n_rows}. Set select.budget lower, or to "100%" for all rows.'
            )
        return int(budget.amount)
    if budget.kind == "fraction":
        # The guard makes 0.29 * 100 = 28.999999999999996 the 29 rows that it means.
        return min(n_rows, max(1, math.floor(budget.amount * n_rows * (1 + 1e-12))))
    if tokens_in_rank_order_N is None or len(tokens_in_rank_order_N) != n_rows:
        raise ValueError("a token budget needs the tokens of every row, in rank order.")
    n_fit = int(np.searchsorted(np.cumsum(tokens_in_rank_order_N, dtype=np.int64), budget.amount, side="right"))
    if n_fit == 0:
        first, smallest = int(tokens_in_rank_order_N[0]), int(tokens_in_rank_order_N.min())
        found = (
            f"the smallest example has {smallest}"
            if smallest > budget.amount
            else f"the first example of the ranking has {first} (the smallest has {smallest})"
        )
        raise ConfigError(
            f"select.budget is {budget.amount} tokens but {found}; expected room for the first example "
            f"of the ranking. Set select.budget to {first} tokens or more."
        )
    return n_fit
