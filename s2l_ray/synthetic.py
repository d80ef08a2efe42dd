"""The embedded corpus: table skills, a world small enough to run S2L from end to end in a minute.

A skill is a hidden table with named rows and columns. Every row key and every column key stands for a value, drawn at
random for this table, and the cell where they meet holds both values. An example asks for one cell, for somebody, in
one of four phrasings; all words split at whitespace:

    instruction  "lufom wants mofen and rebas of diner"
    output       "turil sidet"

Tables share their words in part, so nothing learned about one skill answers another, and a key met in two tables means
something only together with the table's name. How well a skill is known is therefore a matter of how many of *its*
examples were seen, and the counts fall by Zipf's law: most skills are rare. A few answers are wrong on purpose. The
asker changes nothing; it lets a common skill have many rows without exact duplicates.

What the eval rows measure: the same number of questions for every skill, each for a cell that no training row asks
for, in any phrasing. Whoever met its row key and its column key in other cells of the same table can answer, so the
score tells how much of each table was understood, not how many rows were memorised. Eval answers are never wrong.

Everything is a pure function of `(SyntheticSpec, seed)`; the tables and the split into sources belong to the seed.

Shape suffixes: N rows of the corpus or of one skill, S skills, A the two axes of a table (0 rows, 1 columns), K keys
of an axis, E held-out cells of a skill, C the other cells.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2l_ray.errors import ConfigError

PHRASINGS = (
    "in {table} tell {asker} what {row} {column} is",
    "{asker} wants {row} and {column} of {table}",
    "{table} : give {asker} {row} and {column}",
    "{column} by {row} in {table} asks {asker}",
)
"""The ways to ask for a cell. None of their own words has the form that `_word` makes."""

_SYLLABLES = [consonant + vowel for consonant in "bdfklmnrstvz" for vowel in "aeiou"]
_STRIDE = 1867
"""Prime and no divisor of a power of 60: walks through all words of one length, neighbours looking unlike."""

_TABLES_STREAM, _SOURCES_STREAM, _TRAIN_STREAM, _EVAL_STREAM, _MISTAKES_STREAM, _COPIES_STREAM = range(6)
"""One random stream for each purpose, so that a draw added to one does not move the others."""


@dataclass(frozen=True)
class SyntheticSpec:
    """The size and the shape of a corpus.

    Raises:
        ConfigError: a field is outside the range that its docstring names.
    """

    rows: int = 6000
    """Training rows, at least 1. Below about 300, the rarest of 28 skills can have none."""
    skills: int = 28
    """Tables, at least 1; skill 0 is the most common one."""
    phrasings: int = 4
    """Ways to ask for a cell, 1 to 4."""
    sources: int = 5
    """Groups of skills, unevenly sized; 1 to 26 and at most `skills`."""
    zipf: float = 1.2
    """The k-th skill's share of the rows is proportional to k ** -zipf; 0 is flat."""
    wrong: float = 0.02
    """Share of training rows with a wrong answer, drawn from all rows alike; 0 to 1."""
    mistakes: Literal["random", "consistent"] = "random"
    """`random`: every wrong row has a mistake of its own. `consistent`: whoever is wrong about a key is wrong alike."""
    copied: int = 0
    """Rows, drawn from all alike, that stand several times; 0 to `rows`."""
    copies: int = 1
    """How often each of the `copied` rows stands, at least 1. What is more than once comes on top of `rows`."""
    eval_rows_per_skill: int = 24
    """Cells of each table held out for evaluation, at most half of the table (keys ** 2 / 2)."""
    keys: int = 12
    """Row keys of a table, and as many column keys; at least 2."""
    key_words: int = 200
    """Words that row keys are drawn from, and as many for column keys; at least `keys`. Fewer are harder to learn."""
    values: int = 8
    """Different values on each axis of a table; 2 to `keys`."""
    value_words: int = 32
    """Words that the values of the row axis are drawn from, and as many for the column axis; at least `values`."""
    askers: int = 12
    """Words for the one who asks, at least 1. A skill repeats a question only when all have been asked."""

    def __post_init__(self) -> None:
        """Check every field against its range."""
        bounds: dict[str, tuple[float, float]] = {
            "rows": (1, np.inf),
            "skills": (1, np.inf),
            "phrasings": (1, len(PHRASINGS)),
            "sources": (1, min(26, self.skills)),
            "zipf": (0, np.inf),
            "wrong": (0, 1),
            "copied": (0, self.rows),
            "copies": (1, np.inf),
            "eval_rows_per_skill": (0, self.keys**2 // 2),
            "keys": (2, np.inf),
            "key_words": (self.keys, np.inf),
            "values": (2, self.keys),
            "value_words": (self.values, np.inf),
            "askers": (1, np.inf),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"SyntheticSpec.{name} is {value}, expected {low:g} to {high:g}; change it.")


@dataclass(frozen=True)
class _World:
    """The hidden tables of one seed."""

    key_SAK: NDArray[np.int64]
    """Word index of each key."""
    slot_SAK: NDArray[np.int64]
    """Which of the table's `values` values stands behind each key."""
    value_SAV: NDArray[np.int64]
    """Word index of each value."""
    mistake_SAK: NDArray[np.int64]
    """How far from the truth a consistent mistake about a key is, 1 to `values` - 1."""
    eval_cell_SE: NDArray[np.int64]
    """Held-out cells, row * keys + column."""
    train_cell_SC: NDArray[np.int64]
    """All other cells."""
    source_S: list[str]
    """The source of each skill."""


def generate_rows(spec: SyntheticSpec, seed: int) -> list[dict[str, Any]]:
    """Make the training rows, shuffled.

    Args:
        spec: size and shape of the corpus.
        seed: at least 0; draws the tables, the sources and the rows.

    Returns:
        `spec.rows` dicts and the copies, with `id` (unique), `instruction`, `input` (empty), `output` (two words),
        `source`, and the hidden truth `skill` ("skill-00" is the most common) and `is_wrong`. A wrong answer has, on
        both axes, another value of the same table. Exactly `round(wrong * rows)` rows are wrong, copies left out.
    """
    world = _draw_world(spec, seed)
    generator = np.random.default_rng([seed, _TRAIN_STREAM])
    is_wrong_N = np.zeros(spec.rows, dtype=bool)
    is_wrong_N[generator.permutation(spec.rows)[: round(spec.wrong * spec.rows)]] = True
    rows: list[dict[str, Any]] = []
    for skill, count in enumerate(skill_counts(spec)):
        questions_per_cell = spec.phrasings * spec.askers
        question_N = _draw_in_rounds(world.train_cell_SC.shape[1] * questions_per_cell, int(count), generator)
        cell_N = world.train_cell_SC[skill, question_N // questions_per_cell]
        phrasing_N, asker_N = np.divmod(question_N % questions_per_cell, spec.askers)
        wrong_N = is_wrong_N[len(rows) : len(rows) + int(count)]
        shift_NA = generator.integers(1, spec.values, size=(int(count), 2))
        if spec.mistakes == "consistent":
            shift_NA = _of_keys(world.mistake_SAK[skill], cell_N)
        rows += _write_rows(spec, world, skill, cell_N, phrasing_N, asker_N, shift_NA * wrong_N[:, None])
    copied = np.random.default_rng([seed, _COPIES_STREAM]).permutation(len(rows))[: spec.copied]
    rows += [rows[index] for index in copied.tolist() for _ in range(spec.copies - 1)]
    order_N = generator.permutation(len(rows))
    return [{"id": f"train-{position:06d}", **rows[index]} for position, index in enumerate(order_N)]


def generate_eval_rows(spec: SyntheticSpec, seed: int) -> list[dict[str, Any]]:
    """Make the held-out rows: as many for each skill, about cells that no training row asks for, never wrong.

    Args:
        spec: the spec of the training rows.
        seed: the seed of the training rows; another one has other tables.

    Returns:
        `skills * eval_rows_per_skill` dicts with the fields of `generate_rows`, sorted by skill.
    """
    world = _draw_world(spec, seed)
    generator = np.random.default_rng([seed, _EVAL_STREAM])
    count = spec.eval_rows_per_skill
    rows: list[dict[str, Any]] = []
    for skill in range(spec.skills):
        phrasing_N = _draw_in_rounds(spec.phrasings, count, generator)
        asker_N = generator.integers(spec.askers, size=count)
        shift_NA = np.zeros((count, 2), dtype=np.int64)
        rows += _write_rows(spec, world, skill, world.eval_cell_SE[skill], phrasing_N, asker_N, shift_NA)
    return [{"id": f"eval-{position:06d}", **row} for position, row in enumerate(rows)]


def skill_counts(spec: SyntheticSpec) -> NDArray[np.int64]:
    """Count the training rows of each skill: Zipf's law, rounded by largest remainder.

    Returns:
        count_S, not increasing, with sum `spec.rows`.
    """
    weight_S: NDArray[np.float64] = np.arange(1, spec.skills + 1, dtype=np.float64) ** -spec.zipf
    return _apportion(weight_S, spec.rows)


def _apportion(weight_S: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Split `total` in proportion to the weights; the largest remainders round up, the earlier one on a tie."""
    share_S = weight_S / weight_S.sum() * total
    count_S: NDArray[np.int64] = np.floor(share_S).astype(np.int64)
    by_remainder_S = np.argsort(count_S - share_S, kind="stable")
    count_S[by_remainder_S[: total - int(count_S.sum())]] += 1
    return count_S


def _draw_world(spec: SyntheticSpec, seed: int) -> _World:
    """Draw tables, held-out cells and sources."""
    generator = np.random.default_rng([seed, _TABLES_STREAM])
    axes = [(skill, axis) for skill in range(spec.skills) for axis in range(2)]
    shape = (spec.skills, 2, -1)
    # Every value is used by as many keys as the next, give or take one: no axis has an answer worth guessing.
    slot_K = np.arange(spec.keys, dtype=np.int64) % spec.values
    cell_SC = np.stack([generator.permutation(spec.keys**2) for _ in range(spec.skills)])
    return _World(
        key_SAK=np.stack([generator.permutation(spec.key_words)[: spec.keys] for _ in axes]).reshape(shape),
        slot_SAK=np.stack([generator.permutation(slot_K) for _ in axes]).reshape(shape),
        mistake_SAK=np.random.default_rng([seed, _MISTAKES_STREAM]).integers(
            1, spec.values, size=(spec.skills, 2, spec.keys)
        ),
        value_SAV=np.stack([generator.permutation(spec.value_words)[: spec.values] for _ in axes]).reshape(shape),
        eval_cell_SE=cell_SC[:, : spec.eval_rows_per_skill],
        train_cell_SC=cell_SC[:, spec.eval_rows_per_skill :],
        source_S=_draw_sources(spec, seed),
    )


def _draw_sources(spec: SyntheticSpec, seed: int) -> list[str]:
    """Deal the skills to sources whose numbers of skills fall in a straight line, each with at least one."""
    weight = np.arange(spec.sources, 0, -1, dtype=np.float64)
    skills_of_source = 1 + _apportion(weight, spec.skills - spec.sources)
    names = [f"tables-{chr(ord('a') + source)}" for source in range(spec.sources)]
    dealt = np.repeat(np.array(names), skills_of_source)
    return [str(name) for name in np.random.default_rng([seed, _SOURCES_STREAM]).permutation(dealt)]


def _draw_in_rounds(population: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` of range(population) without replacement, starting over whenever all have been drawn."""
    rounds = -(-count // population)
    drawn = [generator.permutation(population) for _ in range(rounds)]
    return np.concatenate([np.empty(0, dtype=np.int64), *drawn])[:count]


def _of_keys(number_AK: NDArray[np.int64], cell_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Look up the numbers of each cell's row key and column key."""
    row_N, column_N = np.divmod(cell_N, number_AK.shape[1])
    return np.stack([number_AK[0, row_N], number_AK[1, column_N]], axis=1)


def _write_rows(
    spec: SyntheticSpec,
    world: _World,
    skill: int,
    cell_N: NDArray[np.int64],
    phrasing_N: NDArray[np.int64],
    asker_N: NDArray[np.int64],
    shift_NA: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """Put the questions of one skill into words; a value is moved by its shift, so 0 is the truth."""
    table = _word(skill, "r")
    askers = [_word(asker, "m") for asker in range(spec.askers)]
    key_words = [
        [_word(int(index), ending) for index in key_K] for key_K, ending in zip(world.key_SAK[skill], "ns", strict=True)
    ]
    value_words = [
        [_word(int(index), ending) for index in value_V]
        for value_V, ending in zip(world.value_SAV[skill], "lt", strict=True)
    ]
    key_NA = np.stack(np.divmod(cell_N, spec.keys), axis=1)
    slot_NA = (_of_keys(world.slot_SAK[skill], cell_N) + shift_NA) % spec.values
    return [
        {
            "instruction": PHRASINGS[phrasing].format(
                table=table, asker=askers[asker], row=key_words[0][row], column=key_words[1][column]
            ),
            "input": "",
            "output": f"{value_words[0][row_slot]} {value_words[1][column_slot]}",
            "source": world.source_S[skill],
            "skill": f"skill-{skill:02d}",
            "is_wrong": is_wrong,
        }
        for phrasing, asker, (row, column), (row_slot, column_slot), is_wrong in zip(
            phrasing_N.tolist(),
            asker_N.tolist(),
            key_NA.tolist(),
            slot_NA.tolist(),
            (shift_NA != 0).any(axis=1).tolist(),
            strict=True,
        )
    ]


def _word(index: int, ending: str) -> str:
    """Make the index-th word with this ending: syllables, then a consonant that tells the part of speech.

    Two syllables for the first 3,600 words, one more for each further power of 60.
    """
    base = len(_SYLLABLES)
    length, words = 2, base**2
    while index >= words:
        index, length, words = index - words, length + 1, words * base
    place = (index + 1) * _STRIDE % words
    syllables = [_SYLLABLES[place // base**position % base] for position in range(length)]
    return "".join(syllables) + ending
