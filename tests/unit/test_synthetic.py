"""The embedded corpus: counts, truth, held-out cells, vocabulary."""

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.errors import ConfigError
from s2l_ray.synthetic import PHRASINGS, SyntheticSpec, generate_eval_rows, generate_rows, skill_counts

SPEC = SyntheticSpec()
PHRASING_WORDS = {word for phrasing in PHRASINGS for word in phrasing.split() if "{" not in word}
FIELDS = {"id", "instruction", "input", "output", "source", "skill", "is_wrong"}


@pytest.fixture(scope="module")
def rows():
    return generate_rows(SPEC, seed=0)


@pytest.fixture(scope="module")
def eval_rows():
    return generate_eval_rows(SPEC, seed=0)


def parse(row):
    """(table, row key, column key), told from each other by the last letter, as a reader of the language would."""
    by_ending = {word[-1]: word for word in row["instruction"].split() if word not in PHRASING_WORDS}
    return by_ending["r"], by_ending["n"], by_ending["s"]


def learn_tables(rows):
    """The value of each (skill, key), from the rows that are right."""
    value = {}
    for row in rows:
        if not row["is_wrong"]:
            for key, word in zip(parse(row)[1:], row["output"].split(), strict=True):
                assert value.setdefault((row["skill"], key), word) == word
    return value


def test_generate_same_seed_is_identical_and_other_seed_has_other_tables(rows, eval_rows):
    assert generate_rows(SPEC, seed=0) == rows
    assert generate_eval_rows(SPEC, seed=0) == eval_rows
    known, other = learn_tables(rows), learn_tables(generate_rows(SPEC, seed=1))
    shared = known.keys() & other.keys()
    assert shared
    assert sum(known[key] == other[key] for key in shared) < 0.2 * len(shared)


def test_generate_rows_wrong_share_changed_keeps_questions_and_tables(rows):
    clean = generate_rows(SyntheticSpec(wrong=0.0), seed=0)
    assert [row["instruction"] for row in clean] == [row["instruction"] for row in rows]
    assert all(row["is_wrong"] or row["output"] == right["output"] for row, right in zip(rows, clean, strict=True))


def test_generate_rows_fields_and_ids_are_plain_and_unique(rows, eval_rows):
    for row in rows + eval_rows:
        assert row.keys() == FIELDS
        assert {type(row[field]) for field in FIELDS - {"is_wrong"}} == {str}
        assert type(row["is_wrong"]) is bool
        assert row["input"] == ""
    assert len({row["id"] for row in rows + eval_rows}) == len(rows) + len(eval_rows)


def test_generate_rows_default_counts_follow_zipf(rows):
    counts = Counter(row["skill"] for row in rows)
    assert len(rows) == SPEC.rows
    assert len(counts) == SPEC.skills
    in_order = [counts[f"skill-{skill:02d}"] for skill in range(SPEC.skills)]
    assert in_order == skill_counts(SPEC).tolist()
    assert all(common >= rare for common, rare in pairwise(in_order))
    assert in_order[0] / in_order[-1] == pytest.approx(SPEC.skills**SPEC.zipf, rel=0.02)


def test_generate_rows_order_is_shuffled(rows):
    first_half = Counter(row["skill"] for row in rows[: SPEC.rows // 2])
    assert 0.45 < first_half["skill-00"] / skill_counts(SPEC)[0] < 0.55


def test_skill_counts_flat_zipf_is_even():
    assert set(skill_counts(SyntheticSpec(rows=2801, zipf=0.0)).tolist()) == {100, 101}


def test_generate_rows_sources_are_uneven_groups_of_whole_skills(rows):
    skills = defaultdict(set)
    for row in rows:
        skills[row["source"]].add(row["skill"])
    assert sorted(skills) == ["tables-a", "tables-b", "tables-c", "tables-d", "tables-e"]
    assert sum(len(group) for group in skills.values()) == SPEC.skills
    sizes = [len(skills[source]) for source in sorted(skills)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 3 * sizes[-1]


def test_generate_rows_wrong_rows_have_other_values_of_the_same_table(rows):
    value = learn_tables(generate_rows(SyntheticSpec(rows=60_000), seed=0))
    values_of_skill = defaultdict(set)
    for (skill, key), word in value.items():
        values_of_skill[skill, key[-1]].add(word)
    wrong = [row for row in rows if row["is_wrong"]]
    assert len(wrong) == round(SPEC.wrong * SPEC.rows)
    for row in wrong:
        for key, word in zip(parse(row)[1:], row["output"].split(), strict=True):
            assert word != value[row["skill"], key]
            assert word in values_of_skill[row["skill"], key[-1]]


def test_generate_rows_wrong_rows_fall_on_common_and_rare_skills(rows):
    wrong = Counter(row["skill"] for row in rows if row["is_wrong"])
    assert 20 <= wrong["skill-00"] <= 60
    assert len(wrong) >= 10


def test_generate_rows_default_has_no_duplicate_question(rows):
    assert len({row["instruction"] for row in rows}) == len(rows)


def test_generate_rows_more_rows_than_questions_repeats_evenly():
    spec = SyntheticSpec(rows=1000, skills=1, sources=1, keys=4, values=2, askers=2, eval_rows_per_skill=4)
    repeats = Counter(row["instruction"] for row in generate_rows(spec, seed=0))
    assert len(repeats) == 12 * 4 * 2
    assert max(repeats.values()) - min(repeats.values()) <= 1


def test_generate_rows_uses_every_phrasing_evenly(rows):
    counts = Counter(frozenset(set(row["instruction"].split()) & PHRASING_WORDS) for row in rows)
    assert len(counts) == len(PHRASINGS)
    assert min(counts.values()) > 0.9 * SPEC.rows / len(PHRASINGS)


def test_generate_rows_one_phrasing_uses_only_the_first():
    rows = generate_rows(SyntheticSpec(rows=300, phrasings=1), seed=0)
    assert {row["instruction"].split()[0] for row in rows} == {"in"}


def test_generate_eval_rows_is_balanced_and_never_wrong(eval_rows):
    assert set(Counter(row["skill"] for row in eval_rows).values()) == {SPEC.eval_rows_per_skill}
    assert len(eval_rows) == SPEC.skills * SPEC.eval_rows_per_skill
    assert not any(row["is_wrong"] for row in eval_rows)


def test_generate_eval_rows_asks_for_cells_that_no_training_row_asks_for(rows, eval_rows):
    trained, held_out = {parse(row) for row in rows}, [parse(row) for row in eval_rows]
    assert not trained & set(held_out)
    assert len(set(held_out)) == len(held_out)


def test_generate_eval_rows_can_be_answered_from_training_rows(rows, eval_rows):
    value = learn_tables(rows)
    known = 0
    for row in eval_rows:
        right = [value.get((row["skill"], key)) for key in parse(row)[1:]]
        if None not in right:
            assert row["output"].split() == right
            known += 1
    assert known > 0.95 * len(eval_rows)


def test_generate_eval_rows_agree_with_training_rows_on_source(rows, eval_rows):
    source = {row["skill"]: row["source"] for row in rows}
    assert all(row["source"] == source[row["skill"]] for row in eval_rows)


def test_vocabulary_is_closed_small_and_splits_at_whitespace(rows, eval_rows):
    words = {word for row in rows + eval_rows for word in f"{row['instruction']} {row['output']}".split(" ")}
    limit = len(PHRASING_WORDS) + SPEC.skills + SPEC.askers + 2 * SPEC.key_words + 2 * SPEC.value_words
    assert "" not in words
    assert len(words) <= limit
    assert words >= PHRASING_WORDS
    assert all(len(row["instruction"].split()) <= 8 and len(row["output"].split()) == 2 for row in rows)


def test_vocabulary_parts_of_speech_share_no_word(rows):
    made = {word for row in rows for word in f"{row['instruction']} {row['output']}".split()} - PHRASING_WORDS
    assert {word[-1] for word in made} == set("rmnslt")
    assert all(len(word) == 5 for word in made)


def test_vocabulary_beyond_two_syllables_stays_unique():
    spec = SyntheticSpec(rows=4000, skills=4000, zipf=0.0, eval_rows_per_skill=1)
    assert len({parse(row)[0] for row in generate_rows(spec, seed=0)}) == 4000


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 700),
    skills=st.integers(1, 40),
    phrasings=st.integers(1, 4),
    wrong=st.floats(0, 1),
    zipf=st.floats(0, 2),
    keys=st.integers(2, 12),
    seed=st.integers(0, 2**32),
)
def test_generate_any_spec_keeps_its_counts_and_its_cells_apart(rows, skills, phrasings, wrong, zipf, keys, seed):
    spec = SyntheticSpec(
        rows=rows,
        skills=skills,
        phrasings=phrasings,
        sources=min(5, skills),
        wrong=wrong,
        zipf=zipf,
        keys=keys,
        values=min(8, keys),
        eval_rows_per_skill=min(24, keys**2 // 2),
    )
    made, held_out = generate_rows(spec, seed), generate_eval_rows(spec, seed)
    assert len(made) == rows
    assert sum(row["is_wrong"] for row in made) == round(wrong * rows)
    assert len(held_out) == skills * spec.eval_rows_per_skill
    assert not {parse(row) for row in made} & {parse(row) for row in held_out}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 0),
        ("phrasings", 5),
        ("sources", 29),
        ("wrong", 1.5),
        ("wrong", float("nan")),
        ("eval_rows_per_skill", 73),
        ("key_words", 11),
        ("values", 13),
        ("zipf", -1.0),
    ],
)
def test_spec_out_of_range_is_a_config_error_that_names_the_field(field, value):
    with pytest.raises(ConfigError, match=rf"SyntheticSpec\.{field} is {value}"):
        SyntheticSpec(**{field: value})


def test_consistent_mistakes_are_alike_for_each_key_and_never_the_truth():
    spec = SyntheticSpec(wrong=0.3, mistakes="consistent")
    rows = generate_rows(spec, seed=0)
    truth, mistake = learn_tables(rows), {}
    wrong = [row for row in rows if row["is_wrong"]]
    assert len(wrong) == round(0.3 * spec.rows)
    for row in wrong:
        for key, word in zip(parse(row)[1:], row["output"].split(), strict=True):
            assert mistake.setdefault((row["skill"], key), word) == word
            assert word != truth.get((row["skill"], key))
    assert generate_rows(SyntheticSpec(wrong=0.3), seed=0)[0]["instruction"] == rows[0]["instruction"]


def test_copied_rows_stand_as_often_as_asked_on_top_of_the_others():
    spec = SyntheticSpec(copied=7, copies=5)
    rows = generate_rows(spec, seed=0)
    assert len(rows) == spec.rows + 7 * 4
    assert len({row["id"] for row in rows}) == len(rows)
    plain = Counter(row["instruction"] for row in generate_rows(SPEC, seed=0))
    more = Counter(row["instruction"] for row in rows) - plain
    assert sum(more.values()) == 7 * 4
    assert all(count % 4 == 0 for count in more.values())
