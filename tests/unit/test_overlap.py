"""Overlap of held-out and training prompts: what counts as the same question."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.overlap import HeldOutPrompts, count_grades, prompt_keys


def count_overlap(training, held_out):
    prompts = HeldOutPrompts(held_out)
    for keys in training:
        prompts.meet(keys)
    return {"rows": len(held_out), **count_grades(prompts.grades())}


def keys(prompt: str, answer: str = "42"):
    return prompt_keys([("user", prompt), ("assistant", answer)])


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
    assert one.exact != two.exact
    assert one.digit_blind == two.digit_blind


@pytest.mark.parametrize(
    "other", ["What is 2 - 2?", "What is 2 + two?", "What is 2 + 2", "Was ist 2 + 2?", "What is 2 2?"]
)
def test_other_words_are_another_question(other):
    one, two = keys("What is 2 + 2?"), keys(other)
    assert one.exact != two.exact
    assert one.digit_blind != two.digit_blind


def test_answer_and_system_text_play_no_part():
    assert keys("q", "one") == keys("q", "two")
    assert prompt_keys([("system", "be brief"), ("user", "q"), ("assistant", "a")]) == keys("q")


def test_both_halves_of_an_alpaca_prompt_count():
    assert prompt_keys([("user", "sum"), ("input", "1 2"), ("assistant", "3")]) == keys("sum 1 2")
    assert prompt_keys([("user", "sum"), ("input", "a b"), ("assistant", "3")]) != keys("sum")


def test_all_questions_of_a_conversation_count():
    talk = [("user", "q"), ("assistant", "a"), ("user", "and then?"), ("assistant", "b")]
    assert prompt_keys(talk) != keys("q")
    assert prompt_keys(iter(talk)) == keys("q and then?")


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_examples_without_a_prompt_are_the_same_only_with_the_same_answer(blank):
    assert keys(blank, "a story") != keys(blank, "another")
    assert keys(blank, "a story") == keys(blank, "A  story")


def test_keys_do_not_depend_on_the_process():
    code = (
        "from s2l_ray.overlap import prompt_keys as k; x = k([('user', 'What is 2 and 3? ' * 9)]); "
        "print(x.exact, x.digit_blind, x.ngrams.hex())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = keys("What is 2 and 3? " * 9)
    assert out.stdout.split() == [str(here.exact), str(here.digit_blind), here.ngrams.hex()]


def test_count_says_how_many_held_out_rows_occur():
    training = [keys("What is 2 + 2?"), keys("Name a colour.")]
    held_out = [keys("what is 2 + 2?"), keys("What is 5 + 7?"), keys("Name a bird."), keys("Name a colour.")]
    assert count_overlap(training, held_out) == {"rows": 4, "exact": 2, "digit_blind": 3, "ngram": 3}


def test_count_of_a_repeated_held_out_row_counts_each():
    assert count_overlap([keys("q")], [keys("q"), keys("q")])["exact"] == 2


def test_count_of_nothing_is_nothing():
    assert count_overlap([], [keys("q")]) == {"rows": 1, "exact": 0, "digit_blind": 0, "ngram": 0}
    assert count_overlap(iter([keys("q")]), []) == {"rows": 0, "exact": 0, "digit_blind": 0, "ngram": 0}


prompts = st.lists(st.text("ab12 .", min_size=1, max_size=5), max_size=8)


@given(training=prompts, held_out=prompts)
@settings(deadline=None)
def test_exact_is_never_more_than_digit_blind(training, held_out):
    found = count_overlap(map(keys, training), [keys(p) for p in held_out])
    assert 0 <= found["exact"] <= found["digit_blind"] <= found["rows"] == len(held_out)
    whole = count_overlap(map(keys, [*training, *held_out]), [keys(p) for p in held_out])
    assert whole["exact"] == len(held_out)


LONG = "a robe takes 2 bolts of blue fiber and half that much white fiber how many bolts in total does it take"


def test_count_finds_a_question_with_other_numbers_and_a_sentence_added():
    training = [keys(LONG.replace("2", "2287720") + " ? Write a Python program.")]
    assert count_overlap(training, [keys(LONG + "?")]) == {"rows": 1, "exact": 0, "digit_blind": 0, "ngram": 1}


def test_count_of_twelve_words_in_a_row_is_no_overlap():
    shared = " ".join(LONG.split()[:12])
    assert count_overlap([keys(shared + " x y z")], [keys(shared + " u v w")])["ngram"] == 0


def test_count_on_real_data_finds_the_repeated_test_questions(data_folder):
    def prompts(name, column):
        lines = (data_folder / name).read_text(encoding="utf-8").split("\n")
        return [keys(json.loads(line)[column]) for line in lines if line]

    overlap = count_overlap(prompts("math_train.jsonl", "instruction"), prompts("eval_gsm8k.jsonl", "question"))
    assert overlap["exact"] == 0
    assert overlap["ngram"] >= 1245


def test_meeting_a_prompt_says_its_strongest_grade():
    prompts = HeldOutPrompts([keys("What is 2 + 2?"), keys(LONG)])
    assert prompts.meet(keys("what is 2 + 2?")) == "exact"
    assert prompts.meet(keys("What is 3 + 2?")) == "digit_blind"
    assert prompts.meet(keys(LONG + " and why")) == "ngram"
    assert prompts.meet(keys("What is that?")) is None
    assert prompts.grades() == ["exact", "ngram"]


@given(training=prompts, held_out=prompts, cut=st.integers(0, 8))
@settings(deadline=None)
def test_what_two_workers_saw_is_what_one_sees(training, held_out, cut):
    parts = [HeldOutPrompts(map(keys, held_out)) for _ in range(2)]
    for part, prompts_of in zip(parts, (training[:cut], training[cut:]), strict=True):
        for prompt in prompts_of:
            part.meet(keys(prompt))
    merged, whole = HeldOutPrompts(map(keys, held_out)), HeldOutPrompts(map(keys, held_out))
    for part in parts:
        merged.merge(json.loads(json.dumps(part.seen)))
    for prompt in training:
        whole.meet(keys(prompt))
    assert merged.grades() == whole.grades()
