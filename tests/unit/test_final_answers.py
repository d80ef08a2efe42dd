"""What a text's final answer is, and whether two are equal: a table of tricky ones, and real evaluation sets."""

import json
import random

import pytest

from s2l_ray.judging.equivalence import are_equal
from s2l_ray.judging.final_answers import before_next_question, final_answer
from s2l_ray.judging.math_answers import choices_of, chosen, is_right
from s2l_ray.judging.symbolic import MathVerify

OPTIONS = "Which?\nAnswer Choices: A)$61 B)$65 C)$67.40 D)$70 E)none of these"
SPACED = "which ?\nAnswer Choices: a ) a ) 1055 , b ) b ) 1215 , c ) c ) 1065 , d ) 24 days , e ) none"

EQUAL = [
    # reference, answer, whether they are equal
    ("18", "18", True),
    ("18", " 18 ", True),
    ("18", "18.", True),
    ("18", "18.0", True),
    ("18", "18.00", True),
    ("18", "$18", True),
    ("18", "$18.00", True),
    ("18", "18 dollars", True),
    ("18", "$18$", True),
    ("18", "\\$18", True),
    ("18", "€18", True),
    ("18", "Rs. 18", True),
    ("18", "+18", True),
    ("18", "-18", False),
    ("18", "81", False),
    ("18", "180", False),
    ("18", "1.8", False),
    ("18", "18.5", False),
    ("18", "17.9999", False),
    ("18", "", False),
    ("18", "  ", False),
    ("18", "eighteen apples", False),
    ("5", "five", True),
    ("5", "Five.", True),
    ("5", "5th", True),
    ("5", "Tom has 5 apples", True),
    ("5", "5 apples and 3 pears", False),
    ("70000", "70,000", True),
    ("70000", "$70,000", True),
    ("70000", "70 000", True),
    ("70000", "70\\,000", True),
    ("70000", "70{,}000", True),
    ("70000", "70,\\!000", True),
    ("70000", "70\u202f000", True),
    ("70000", "70.000", False),
    ("70000", "70,00", False),
    ("1234567", "1,234,567", True),
    ("1234567", "1 234 567", True),
    ("11,\\! 111,\\! 111,\\! 100", "11111111100", True),
    ("5000000", "5 million", True),
    ("1.2 billion", "1200000000", True),
    ("-5", "\u22125", True),
    ("-5", "\u20135", True),
    ("-5", "-$5", True),
    ("-5", "$-5", True),
    ("-5", "- 5", True),
    ("-5", "5", False),
    ("-5", "(-5)", True),
    ("0.5", ".5", True),
    ("0.5", "1/2", True),
    ("0.5", "\\frac{1}{2}", True),
    ("0.5", "\\frac12", True),
    ("0.5", "\\dfrac{1}{2}", True),
    ("0.5", "\\tfrac 1 2", True),
    ("0.5", "½", True),
    ("0.5", "2/4", True),
    ("0.5", "50%", True),
    ("0.5", "0.5%", True),
    ("0.5", "1/3", False),
    ("0.5", "2", False),
    ("\\frac{1}{3}", "0.3333", True),
    ("\\frac{1}{3}", "0.333", False),
    ("\\frac{1}{3}", "0.33", False),
    ("\\frac{1}{3}", "0.3334", False),
    ("\\frac{1}{3}", "3", False),
    ("\\frac{1}{3}", "1/0", False),
    ("66.67", "200/3", True),
    ("10000", "10000.5", False),
    ("1000000", "1000001", False),
    ("0.3", "0.30000000000000004", True),
    ("13.3542", "13.354", True),
    ("0.0001", "0", False),
    (".0000672", "6.72e-5", True),
    (".0000672", "6.72 \\times 10^{-5}", True),
    ("1500", "1.5e3", True),
    ("1500", "1.5 x 10^3", True),
    ("1500", "1.5*10**3", True),
    ("1500", "15 \\cdot 10^2", True),
    ("1500", "1.5e4", False),
    ("1", "1e999999999", False),
    ("1\\frac{4}{5}", "1 4/5", True),
    ("1\\frac{4}{5}", "9/5", True),
    ("1\\frac{4}{5}", "1.8", True),
    ("1\\frac{4}{5}", "14/5", False),
    ("137 \\frac{1}{2}", "137.5", True),
    ("3.5", "3½", True),
    ("-1 1/2", "-1.5", True),
    ("25\\%", "25", True),
    ("25\\%", "25%", True),
    ("25\\%", "25 percent", True),
    ("25\\%", "0.25", True),
    ("25\\%", "1/4", True),
    ("25\\%", "2500%", False),
    ("25\\%", "0.0025", False),
    ("25", "25%", True),
    ("25", "0.25", False),
    ("15\\mbox{ cm}^2", "15", True),
    ("15\\mbox{ cm}^2", "15 cm²", True),
    ("15\\mbox{ cm}^2", "15 square centimeters", True),
    ("864 \\mbox{ inches}^2", "864 \\text{ in}^2", True),
    ("5.4 \\text{ cents}", "5.4", True),
    ("106^\\circ", "106", True),
    ("106^\\circ", "106°", True),
    ("106^\\circ", "106 degrees", True),
    ("106^\\circ", "106^{\\circ}", True),
    ("\\frac{270}7\\text{ degrees}", "270/7", True),
    ("30", "30 miles per hour", True),
    ("30", "30 km/h", True),
    ("30", "30mph", True),
    ("2k", "2", False),
    ("2k", "2k", True),
    ("2k", "2 k", True),
    ("3R^2", "3r^2", False),
    ("\\text{Evelyn}", "Evelyn", True),
    ("\\text{Evelyn}", "evelyn.", True),
    ("\\text{Evelyn}", "Evelynn", False),
    ("\\text{even}", "odd", False),
    ("\\text{east}", "the east", True),
    ("\\text{(B)}", "B", True),
    ("\\text{(B)}", "(B)", True),
    ("\\text{(B)}", "(C)", False),
    ("7:30", "7:30 PM", True),
    ("7:30 am", "7:30 p.m.", False),
    ("7:30", "7:45", False),
    ("7 pm", "7:00 PM", True),
    ("7 am", "7 pm", False),
    ("3:2", "3:2", True),
    ("3:2", "2:3", False),
    ("10-20", "10 to 20", True),
    ("10-20", "10 \u2013 20", True),
    ("10-20", "-10", False),
    ("10-20", "10", False),
    ("(3,4]", "(3, 4]", True),
    ("(3,4]", "[3,4]", False),
    ("(2,4)", "(2.0, 4)", True),
    ("(2,4)", "(4,2)", False),
    ("(2,4)", "2,4", False),
    ("(1,234)", "(1, 234)", True),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\frac{\\pi}{2})", True),
    ("3, 5, 7", "7,3,5", True),
    ("3, 5, 7", "3, 5 and 7", True),
    ("3, 5, 7", "\\{3, 5, 7\\}", True),
    ("3, 5, 7", "3, 5", False),
    ("3, 3, 7", "3, 7, 7", False),
    ("58,500", "58, 500", False),
    ("x=5", "5", True),
    ("5", "x = 5", True),
    ("5", "$x=5$", True),
    ("y = 2x + 3", "2x+3", True),
    ("x \\in [-2,7]", "[-2,7]", True),
    ("204_5", "204_{5}", True),
    ("204_5", "204", False),
    ("no solution", "No solution.", True),
    ("5", "no answer", False),
    ("5", "\\text{undefined}", False),
]
"""What needs no symbolic judge."""

SYMBOLIC = [
    ("2\\sqrt{5}", "2√5", True),
    ("2\\sqrt{5}", "2*sqrt(5)", True),
    ("2\\sqrt{5}", "\\sqrt{20}", True),
    ("2\\sqrt{5}", "\\sqrt{5}", False),
    ("\\sqrt{4}", "2", True),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}", True),
    ("11\\sqrt2", "\\sqrt{242}", True),
    ("12\\pi", "12 π", True),
    ("12\\pi", "12", False),
    ("12\\pi", "12pi", True),
    ("18+2\\pi", "2\\pi + 18", True),
    ("p - q", "-q + p", True),
    ("p - q", "q - p", False),
    ("6 - 5i", "-5i + 6", True),
    ("x^3+3x-6", "x**3 + 3*x - 6", True),
    ("x^8 + x^{10}", "x^10 + x^8", True),
    ("(a+5)(b+2)", "ab + 2a + 5b + 10", True),
    ("(-\\infty, 0]", "(-infinity, 0]", True),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty,2)\\cup(3,\\infty)", True),
    ("1 \\pm \\sqrt{19}", "1 + \\sqrt{19}, 1 - \\sqrt{19}", True),
    ("\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}", "\\begin{pmatrix} 0.2 \\\\ -3.6 \\end{pmatrix}", True),
    ("\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ -18/5 \\end{pmatrix}", False),
    ("5x - 7y + 11z + 4 = 0", "5x-7y+11z = -4", True),
    ("\\frac{11+9a}{20}", "(9a+11)/20", True),
    ("\\cot x", "\\frac{1}{\\tan x}", True),
    ("2k+2", "2(k+1)", True),
    ("(\\sqrt{4}, 1)", "(2, 1)", True),
    ("\\frac{20000}{\\pi}", "20000", False),
    ("20", "5 cars for $20", False),
    ("20", "to sell 5 cars for $20 each", False),
]

EXTRACTED = [
    # text, its final answer
    ("18", "18"),
    ("The answer is 18", "18"),
    ("The answer is 18.", "18"),
    ("The answer is: 18", "18"),
    ("The answer is $18.", "$18"),
    ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "$\\frac{1}{2}$"),
    ("Answer: 18", "18"),
    ("Answer:\n18", "18"),
    ("**Answer:** 18", "18"),
    ("So the answer is 3.5 because 7/2 = 3.5.", "3.5"),
    ("The answer is 1,234.", "1,234"),
    ("The answer is 5. Wait, that is wrong. The answer is 6.", "6"),
    ("Natalia sold 48/2 = 24 clips.\n#### 72", "72"),
    ("#### -1,200", "-1,200"),
    ("#### 72\nThat is all.", "72"),
    ("#### Step 1\nAdd 9 and 9.\n\nThe answer is 18.", "18"),
    ("#### Step 1\nAdd 9 and 9.\n\n#### 18", "18"),
    ("##### 18\nThe answer is 19.", "19"),
    ("#### St. Paul", "St. Paul"),
    ("so $x = \\boxed{7}$, to the nearest integer.", "7"),
    ("\\boxed{\\frac{3}{\\sqrt{2}}}", "\\frac{3}{\\sqrt{2}}"),
    ("\\boxed{\\boxed{5}}", "5"),
    ("\\boxed 5", "5"),
    ("\\fbox{5}", "5"),
    ("first \\boxed{4}, no: \\boxed{5}.", "5"),
    ("It is \\boxed{5}. The answer is 6.", "5"),
    ("\\boxed{5} and then \\boxed{\\frac{1", "5"),
    ("the result is \\boxed{\\frac{1", None),
    ("\\boxed{}", None),
    ("", None),
    ("   \n", None),
    ("The answer is", None),
    ("Let me think about it.", None),
    ("She has 16 - 3 = 13, then 13 - 4 = 9. She makes 9 * 2 = 18 dollars.", "18"),
    ("He gave 2 away. It costs $1,200.50 in all.", "$1,200.50"),
    ("It falls to -7 degrees at night.", "-7"),
    ("He has 2 left. He needs 3/4 of it today.", "3/4"),
    ("It was 8. That is 25% more than before.", "25%"),
    ("He needs 3/4 of it today.", "He needs 3/4 of it today."),
    ("The answer is 72\n\nQuestion: Tom has 3 pens.\nThe answer is 3", "72"),
    ("The answer is 72\n### Instruction:\nWhat is 1+1?\n### Response:\nThe answer is 2", "72"),
    ("18 dollars\nQ: and 5?\nA: 99", "18 dollars"),
    ("First we add. so we get x = 5 + 3 = 8", "8"),
    ("Add them: we get y = 2x + 3", "y = 2x + 3"),
    ("Subtract: we get x + y = 1", "x + y = 1"),
    ("def solution():\n    return 5", None),
    ("[asy] draw((0,0)--(3,4)); [/asy]", None),
    ("The area is [asy] draw((0,0)--(3,4)); [/asy] and so it comes to 12 in all, said he.", "12"),
    ("The answer is 20 students (that is all).", "20 students (that is all)"),
    ("The answer is 5!", "5"),
    ("The answer is 25 * 4 = 100.", "100"),
    ("The answer is $25 \\times 4 + 1 = 101$.", "101"),
    ("The answer is $\\frac{1}{2} + 1 = \\frac{3}{2}$", "\\frac{3}{2}"),
    ("The answer is 100 = 25 * 4", "100 = 25 * 4"),
    ("The answer is x = 5, y = 3", "x = 5, y = 3"),
    ("The answer is x + 2 = 5", "x + 2 = 5"),
    ("The best option is to sell 5 of them. Then he has 15.", "15"),
    ("The answer is 10,\\!080.", "10,\\!080"),
]

OPTION_ANSWERS = [
    # question, reference, answer, whether it is right
    (OPTIONS, "B", "B", True),
    (OPTIONS, "B", "(B)", True),
    (OPTIONS, "B", "B)", True),
    (OPTIONS, "B", "B.", True),
    (OPTIONS, "B", "b", True),
    (OPTIONS, "B", "B) $65", True),
    (OPTIONS, "B", "The answer is B", True),
    (OPTIONS, "B", "The answer is (B).", True),
    (OPTIONS, "B", "The answer is B) 65", True),
    (OPTIONS, "B", "The answer is 65", True),
    (OPTIONS, "B", "The answer is $65.00.", True),
    (OPTIONS, "B", "The answer is \\boxed{B}", True),
    (OPTIONS, "B", "\\boxed{\\text{(B)}}", True),
    (OPTIONS, "B", "the correct option is B", True),
    (OPTIONS, "B", "the correct option is B because 130 / 2 = 65 .", True),
    (OPTIONS, "B", "x = 130 / 2 = 65 . option b", True),
    (OPTIONS, "B", "so it costs 65. Answer B", True),
    (OPTIONS, "B", "CORRECT OPTION:OPTION B", True),
    (OPTIONS, "B", "I take (B)", True),
    (OPTIONS, "B", "It costs 130 / 2 = 65.", True),
    (OPTIONS, "B", "C", False),
    (OPTIONS, "B", "The answer is C) 65", False),
    (OPTIONS, "B", "66", False),
    (OPTIONS, "B", "A or B", False),
    (OPTIONS, "B", "", False),
    (OPTIONS, "65", "B", True),
    (OPTIONS, "E", "None of these.", True),
    (SPACED, "The answer is B", "1215", True),
    (SPACED, "The answer is B", "cost = 720 + 495 = 1215 . b )\nThe answer is B", True),
    (SPACED, "solution : x . answer d\nThe answer is D", "24 days", True),
    (SPACED, "The answer is D", "24", True),
    (SPACED, "The answer is D", "1055", False),
]


@pytest.fixture(scope="module")
def symbolic():
    pytest.importorskip("math_verify")
    with MathVerify() as judge:
        yield judge
        assert judge.unsettled == 0


@pytest.mark.parametrize(("reference", "answer", "equal"), EQUAL)
def test_answers_that_are_numbers_or_words_are_equal_as_people_would_say(reference, answer, equal):
    assert are_equal(reference, answer) is equal


@pytest.mark.parametrize(("reference", "answer", "equal"), SYMBOLIC)
def test_answers_that_are_mathematics_are_equal_as_mathematics(symbolic, reference, answer, equal):
    assert are_equal(reference, answer, symbolic) is equal


def test_answers_that_math_verify_takes_are_taken_but_for_what_is_written_otherwise_on_purpose():
    math_verify = pytest.importorskip("math_verify")
    stricter = {(reference, answer) for reference, answer, equal in EQUAL if not equal}
    stricter = {p for p in stricter if math_verify.verify(*(math_verify.parse(f"${text}$") for text in p))}
    assert stricter == {
        ("3R^2", "3r^2"),  # two variables
        ("7 am", "7 pm"),
        ("10-20", "-10"),  # a range
        ("(2,4)", "2,4"),  # an interval or a point against two numbers
        ("3, 3, 7", "3, 7, 7"),
        ("204_5", "204"),  # another base
    }


@pytest.mark.parametrize(("text", "answer"), EXTRACTED)
def test_final_answer_of_a_text(text, answer):
    assert final_answer(before_next_question(text)) == answer


@pytest.mark.parametrize(("question", "reference", "answer", "right"), OPTION_ANSWERS)
def test_answer_to_a_question_with_options_is_a_letter_or_what_it_stands_for(question, reference, answer, right):
    assert is_right(question, reference, answer) is right


# ---------------------------------------------------------------------------------------------- real evaluation sets

WRAPPERS = ("{}", "The answer is {}.", "\\boxed{{{}}}", "First we add things up. so we get {}", "The answer is ${}$.")
SETS = ("eval_gsm8k", "eval_math500", "eval_aqua")


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").strip().split("\n")]


@pytest.mark.parametrize("name", SETS)
def test_every_reference_is_right_bare_and_said_in_other_ways(data_folder, name):
    for row in rows_of(data_folder, name):
        for wrapper in WRAPPERS:
            text = wrapper.format(row["answer"])
            assert is_right(row["question"], row["answer"], text) is True, text


@pytest.mark.parametrize("name", SETS)
def test_references_in_another_order_are_right_only_where_they_are_equal(data_folder, symbolic, name):
    rows = rows_of(data_folder, name)[::3]
    answers = [row["answer"] for row in rows]
    random.Random(0).shuffle(answers)
    for row, answer in zip(rows, answers, strict=True):
        right = is_right(row["question"], row["answer"], answer, symbolic)
        assert right is (row["answer"] == answer), (row["answer"], answer)


def test_option_of_a_real_question_stands_for_its_letter(data_folder):
    rows = rows_of(data_folder, "eval_aqua")
    for row in rows:
        choices = choices_of(row["question"])
        assert tuple(choices) == tuple("ABCDE")
        assert row["answer"] in chosen(choices[row["answer"]], choices)


def test_solutions_of_real_training_data_have_a_final_answer_but_for_programs(data_folder):
    for row in rows_of(data_folder, "math_train"):
        right = is_right(row["instruction"], row["output"], row["output"])
        assert right is (None if row["source"] == "gsm_hard_pot" else True), row["output"][-200:]


@pytest.mark.parametrize("answer", [r"\boxed{\frac{}{}}", r"\frac{}{2}", r"\frac{1}{}"])
def test_fraction_that_a_model_left_empty_is_wrong_and_no_error(answer):
    assert not is_right("What?", r"\boxed{\frac{1}{2}}", answer)


@pytest.mark.parametrize("text", ["I think" + "\n" * 40_000 + ".", " \n" * 20_000 + "x", "#" * 60_000])
@pytest.mark.timeout(60)  # where each newline looks at all that follow it takes minutes
def test_texts_of_a_model_that_fell_apart_are_read(text):
    assert before_next_question(text) == text
    final_answer(text)
