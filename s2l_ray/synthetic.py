"""The embedded corpus: table skills, a world small enough to run S2L from end to end in a minute.

A skill is a hidden table with named rows and columns. Every row key and every column key stands for a value, drawn
at random for this table, and the cell where they meet holds both values. An example asks for one cell in one of
four phrasings, in words that split at whitespace:

    instruction  "in dofer what stands at gilan and wuzes ?"
    output       "hapil temol"

All tables share their words, so that a key means something only together with the name of its table: nothing learned
about one skill answers another. How well a skill is known is therefore a matter of how many of *its* examples were
seen, and the counts fall by Zipf's law: most skills are rare. A few answers are wrong on purpose.

What the eval rows measure: the same number of questions for every skill, each for a cell that no training row asks
for, in any phrasing. Such a cell can be answered by someone who has met its row key and its column key in other cells
of the same table, so the score is the share of the tables that was understood, not of the rows that were memorised.

Everything is a pure function of `(SyntheticSpec, seed)`; the tables and the split into sources belong to the seed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ray.errors import ConfigError

PHRASINGS = (
    "in {table} what stands at {row} and {column} ?",
    "look up {row} and {column} in {table}",
    "{table} : give the entry for {row} , {column}",
    "tell me where {column} meets {row} in {table}",
)
"""The ways to ask for a cell. None of their words can be built by `_words`."""

_TABLES, _SPLIT, _ROWS, _EVAL = range(4)
"""One random stream per purpose, so that a change in one draw does not move the others."""

Row = dict[str, Any]


@dataclass(frozen=True)
class SyntheticSpec:
    """The size and the shape of a corpus."""

    rows: int = 6000
    """Training rows."""
    skills: int = 28
    """Tables; skill 0 is the most common one."""
    phrasings: int = 4
    """Ways to ask for a cell, 1 to 4."""
    sources: int = 5
    """Groups of skills, of uneven sizes; at most `skills`."""
    zipf: float = 1.2
    """The k-th skill has a share of rows proportional to k ** -zipf; 0 is flat."""
    wrong: float = 0.02
    """Share of training rows whose answer is wrong, over all skills alike."""
    eval_rows_per_skill: int = 24
    """Held-out cells per skill; at most half of a table."""
    keys: int = 24
    """Rows of a table, and columns of a table."""
    key_words: int = 48
    """Words that row keys are taken from; as many others for column keys. At least `keys`."""
    values: int = 8
    """Distinct values that may stand behind the row keys of one table, and behind its column keys. At least 2."""
    value_words: int = 32
    """Words that values are taken from. At least `values`."""
    answer_tokens: int = 2
