"""Overlap of held-out and training prompts: what counts as the same question."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.overlap import GRADES, HeldOutPrompts, count_grades, prompt_keys


def count_overlap(training, held_out):
    prompts = HeldOutPrompts(keys_of(held_out))
    prompts.meet(keys_of(training))
    return {"rows": len(held_out), **count_grades(prompts.grades())}


def keys_of(prompts):
    return prompt_keys([("user", prompt), ("assistant", "42")] for prompt in prompts)


def hashes(turns):
    """Return all that is known of one prompt, to be compared."""
    found = prompt_keys([turns])
    return {grade: found.of(grade).key_W.tolist() for grade in GRADES}


def keys(prompt: str, answer: str = "42"):
    return hashes([("user", prompt), ("assistant", answer)])


@pytest.mark.parametrize(
    "other", ["what is 2 + 2?", "  What  is\t2 +\n2?  ", "WHAT IS 2 + 2?", "What\u00a0is 2\u2003+ 2?"]
)
def test_case_and_space_make_no_other_question(other):
    assert keys("What is 2 + 2?") == keys(other)


@pytest.mark.parametrize(
    "other", ["What is 3 + 2?", "What is 12 + 34?", "What is 1,000 + 2.5?", "What is 2024.12.1 + 2?"]
)
def test_other_figures_are_the_same_question_up_to_digits(other):
    one, two = keys("What is 2 + 2?"), keys(other)
    assert one["exact"] != two["exact"]
    assert one["digit_blind"] == two["digit_blind"]


@pytest.mark.parametrize(
    "other", ["What is 2 - 2?", "What is 2 + two?", "What is 2 + 2", "Was ist 2 + 2?", "What is 2 2?"]
)
def test_other_words_are_another_question(other):
    one, two = keys("What is 2 + 2?"), keys(other)
    assert one["exact"] != two["exact"]
    assert one["digit_blind"] != two["digit_blind"]


def test_answer_and_system_text_play_no_part():
    assert keys("q", "one") == keys("q", "two")
    assert hashes([("system", "be brief"), ("user", "q"), ("assistant", "a")]) == keys("q")


def test_both_halves_of_an_alpaca_prompt_count():
    assert hashes([("user", "sum"), ("input", "1 2"), ("assistant", "3")]) == keys("sum 1 2")
    assert hashes([("user", "sum"), ("input", "a b"), ("assistant", "3")]) != keys("sum")


def test_all_questions_of_a_conversation_count():
    talk = [("user", "q"), ("assistant", "a"), ("user", "and then?"), ("assistant", "b")]
    assert hashes(talk) != keys("q")
    assert hashes(iter(talk)) == keys("q and then?")


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_examples_without_a_prompt_are_the_same_only_with_the_same_answer(blank):
    assert keys(blank, "a story") != keys(blank, "another")
    assert keys(blank, "a story") == keys(blank, "A  story")


def test_keys_do_not_depend_on_the_process():
    code = (
        "from s2l_ray.overlap import prompt_keys as k; x = k([[('user', 'What is 2 and 3? ' * 9)]]); "
        "print(*(x.of(g).key_W.tobytes().hex() for g in ('exact', 'digit_blind', 'ngram')))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = keys_of(["What is 2 and 3? " * 9])
    assert out.stdout.split() == [here.of(grade).key_W.tobytes().hex() for grade in GRADES]


def test_count_says_how_many_held_out_rows_occur():
    training = ["What is 2 + 2?", "Name a colour."]
    held_out = ["what is 2 + 2?", "What is 5 + 7?", "Name a bird.", "Name a colour."]
    assert count_overlap(training, held_out) == {"rows": 4, "exact": 2, "digit_blind": 3, "ngram": 3}


def test_count_of_a_repeated_held_out_row_counts_each():
    assert count_overlap(["q"], ["q", "q"])["exact"] == 2


def test_count_of_nothing_is_nothing():
    assert count_overlap([], ["q"]) == {"rows": 1, "exact": 0, "digit_blind": 0, "ngram": 0}
    assert count_overlap(["q"], []) == {"rows": 0, "exact": 0, "digit_blind": 0, "ngram": 0}


prompts = st.lists(st.text("ab12 .", min_size=1, max_size=5), max_size=8)


@given(training=prompts, held_out=prompts)
@settings(deadline=None)
def test_exact_is_never_more_than_digit_blind(training, held_out):
    found = count_overlap(training, held_out)
    assert 0 <= found["exact"] <= found["digit_blind"] <= found["rows"] == len(held_out)
    whole = count_overlap([*training, *held_out], held_out)
    assert whole["exact"] == len(held_out)


LONG = "a robe takes 2 bolts of blue fiber and half that much white fiber how many bolts in total does it take"


def test_count_finds_a_question_with_other_numbers_and_a_sentence_added():
    training = [LONG.replace("2", "2287720") + " ? Write a Python program."]
    assert count_overlap(training, [LONG + "?"]) == {"rows": 1, "exact": 0, "digit_blind": 0, "ngram": 1}


def test_count_of_twelve_words_in_a_row_is_no_overlap():
    shared = " ".join(LONG.split()[:12])
    assert count_overlap([shared + " x y z"], [shared + " u v w"])["ngram"] == 0


def test_count_on_real_data_finds_the_repeated_test_questions(data_folder):
    def prompts(name, column):
        lines = (data_folder / name).read_text(encoding="utf-8").split("\n")
        return [json.loads(line)[column] for line in lines if line]

    overlap = count_overlap(prompts("math_train.jsonl", "instruction"), prompts("eval_gsm8k.jsonl", "question"))
    assert overlap["exact"] == 0
    assert overlap["ngram"] >= 1245


def test_meeting_prompts_says_the_strongest_grade_of_each():
    prompts = HeldOutPrompts(keys_of(["What is 2 + 2?", LONG]))
    training = ["what is 2 + 2?", "What is 3 + 2?", LONG + " and why", "What is that?"]
    assert prompts.meet(keys_of(training)) == ["exact", "digit_blind", "ngram", None]
    assert prompts.grades() == ["exact", "ngram"]


def test_words_in_a_row_are_those_of_one_prompt():
    words = LONG.split()
    halves = [" ".join(words[:12]), " ".join(words[12:])]
    assert count_overlap(halves, [LONG])["ngram"] == 0
    assert len(keys_of(halves).ngram.key_W) == 0
    assert keys_of([halves[0], LONG, halves[1]]).ngram.row_W.tolist() == [1] * (len(words) - 12)


@given(st.lists(st.text("ab ", max_size=60), max_size=5))
@settings(deadline=None)
def test_windows_of_many_prompts_are_those_of_each_alone(texts):
    together = keys_of(texts).ngram
    for row, text in enumerate(texts):
        assert together.key_W[together.row_W == row].tolist() == keys_of([text]).ngram.key_W.tolist()


@given(training=prompts, held_out=prompts, cut=st.integers(0, 8))
@settings(deadline=None)
def test_what_two_workers_saw_is_what_one_sees(training, held_out, cut):
    parts = [HeldOutPrompts(keys_of(held_out)) for _ in range(2)]
    for part, prompts_of in zip(parts, (training[:cut], training[cut:]), strict=True):
        part.meet(keys_of(prompts_of))
    merged, whole = HeldOutPrompts(keys_of(held_out)), HeldOutPrompts(keys_of(held_out))
    for part in parts:
        merged.merge(json.loads(json.dumps(part.seen)))
    whole.meet(keys_of(training))
    assert merged.grades() == whole.grades()
