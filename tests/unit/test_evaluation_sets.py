"""Evaluation sets: rows in the shape that their authors gave them, and what is asked and expected of each.

The rows are made up here.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s2l_ray.config import FormatName, InputPath
from s2l_ray.errors import DataError
from s2l_ray.evaluation_sets import SETS
from s2l_ray.examples import Example, RejectedRow, bad_row_error, read_examples
from s2l_ray.formats.row import UnusableRowError
from s2l_ray.inputs import find_inputs
from s2l_ray.judging.final_answers import final_answer
from s2l_ray.judging.math_answers import choices_of, is_right
from s2l_ray.layouts import LayoutName, detect_layouts
from s2l_ray.prompts import with_instruction
from s2l_ray.turns import Turn, last_exchange

DATA = os.environ.get("S2L_TEST_DATA")
GSM8K = {"question": "Ann has 3 apples and buys 15 more. How many?", "answer": "3 + 15 = <<3+15=18>>18\n#### 18"}
MATH = {
    "problem": "What is $\\frac{1}{2} + \\frac{1}{4}$?", "level": "Level 2", "type": "Prealgebra",
    "solution": "Since $\\frac12 = \\frac24$, the sum is $\\boxed{\\frac{3}{4}}$.",
}  # fmt: skip
MATH_500 = {
    "problem": "Find $x$ with $2x = 7$.", "solution": "Half of 7 is $\\boxed{\\frac{7}{2}}$.", "answer": "\\frac{7}{2}",
    "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json",
}  # fmt: skip
SVAMP = {
    "ID": "chal-1", "Body": "A shelf holds 12 books. 4 of them are red", "Question": "How many are not red?",
    "Equation": "( 12.0 - 4.0 )", "Answer": 8.0, "Type": "Subtraction",
}  # fmt: skip
AQUA = {
    "question": "A train goes 60 km in 2 hours. What is its speed?",
    "options": ["A)20 km/h", "B)30 km/h", "C)(60)(2)", "D)40", "E)None of these"],
    "rationale": "60 / 2 = 30, not A.\nAnswer: B", "correct": "B",
}  # fmt: skip
ARITHMETIC = {"question": "A dozen and a half eggs are _____ eggs.", "answer": 18, "type": "Type_4"}
COMPARED = {
    "question": "Which weighs more, a horse or a hen?", "Option1": "a hen", "Option2": "a horse", "answer": "Option 2",
    "type": "Type_3",
}  # fmt: skip
PASSAGE = {
    "passage": "The Bears led 14-3 and won 21-10.", "question": "By how many points did they win? ", "type": "Type_5",
    "answer": {"number": "11", "date": {"day": "", "month": "", "year": ""}, "spans": []},
}  # fmt: skip
SPANS = PASSAGE | {
    "type": "Type_6", "question": "Who won?",
    "answer": {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["St. Paul Bears"]},
}  # fmt: skip
DATE = PASSAGE | {"answer": {"number": "", "date": {"day": "5", "month": "May", "year": "1990"}, "spans": []}}
ENTAILED = {
    "statement1": "Tom has 3 pens.", "statement2": "Tom has more than 5 pens.", "answer": "contradiction",
    "options": " Entailment or contradiction or neutral?", "type": "Type_7",
}  # fmt: skip
DRAW = {
    "sQuestion": "Two numbers add up to 8 and differ by 2 . Find them .", "lEquations": ["x+y=8", "x-y=2"],
    "lSolutions": [5.0, 3.0], "Template": ["m + n = a", "m - n = b"], "iIndex": 300001,
}  # fmt: skip
ONE_UNKNOWN = DRAW | {"sQuestion": "Half of a number is 1.25 . Find it .", "lSolutions": [2.5]}
MAMMOTH = {"question": "Two numbers add up to 8 and differ by 2. What is the larger one?", "answer": 5.0}
LINES = "Solve 2*x + 4 = 0 for x.\n-2\nIs 7 prime?\nTrue\n"
HUGE = 10**400
"""More than a float holds."""

ASKED: list[tuple[LayoutName, dict[str, object], str, str]] = [
    ("gsm8k", GSM8K, GSM8K["question"], GSM8K["answer"]),
    ("math", MATH, MATH["problem"], MATH["solution"]),
    ("math", MATH_500, MATH_500["problem"], MATH_500["solution"]),
    ("svamp", SVAMP, "A shelf holds 12 books. 4 of them are red How many are not red?", "8"),
    ("svamp", SVAMP | {"Answer": 8.0}, "A shelf holds 12 books. 4 of them are red How many are not red?", "8"),
    ("svamp", SVAMP | {"Answer": HUGE}, "A shelf holds 12 books. 4 of them are red How many are not red?", str(HUGE)),
    ("svamp", SVAMP | {"Answer": "8.0"}, "A shelf holds 12 books. 4 of them are red How many are not red?", "8.0"),
    (
        "aqua", AQUA,
        f"{AQUA['question']}\nAnswer Choices: (A) 20 km/h (B) 30 km/h (C) (60)(2) (D) 40 (E) None of these", "B",
    ),
    ("numglue", ARITHMETIC, ARITHMETIC["question"], "18"),
    ("numglue", COMPARED, "Which weighs more, a horse or a hen?\nAnswer Choices: (A) a hen (B) a horse", "B"),
    (
        "numglue", PASSAGE,
        "Passage: The Bears led 14-3 and won 21-10. Question: By how many points did they win?", "11",
    ),
    ("numglue", SPANS, "Passage: The Bears led 14-3 and won 21-10. Question: Who won?", "#### St. Paul Bears"),
    (
        "numglue", ENTAILED,
        "Statement 1: Tom has 3 pens.\nStatement 2: Tom has more than 5 pens.\nQuestion: Entailment or "
        "contradiction or neutral?",
        "contradiction",
    ),
    ("numglue", {"question": "How many?", "answer": "3.5"}, "How many?", "3.5"),
    ("simuleq", DRAW, DRAW["sQuestion"], "5, 3"),
    ("simuleq", ONE_UNKNOWN, ONE_UNKNOWN["sQuestion"], "2.5"),
    ("simuleq", MAMMOTH, MAMMOTH["question"], "5"),
    ("mathematics", {"question": "Is 7 prime?", "answer": "True"}, "Is 7 prime?", "True"),
    ("mathematics", {"question": "What is 1/3 of 1?", "answer": "1/3"}, "What is 1/3 of 1?", "1/3"),
    ("mathematics", {"question": "Solve 4*x = -8.", "answer": -2}, "Solve 4*x = -8.", "-2"),
]  # fmt: skip


def read(path: Path, layout: FormatName | None, columns: dict[str, str] | None = None) -> list[Example | RejectedRow]:
    entry = InputPath(path=str(path), format=layout, columns=columns)
    files = find_inputs((entry,), key="evaluate.path")
    layouts = detect_layouts(files, "auto", {}, key="evaluate.path")
    return [item for file in files for item in read_examples(file, layouts[file.name])]


def written(folder: Path, *rows: object) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(("name", "row", "question", "answer"), ASKED)
def test_row_of_a_set_is_its_question_and_answer_with_the_set_as_source(tmp_path, name, row, question, answer):
    (item,) = read(written(tmp_path, row), name)
    assert item.turns == (Turn("user", question), Turn("assistant", answer))
    assert item.source == name


@pytest.mark.parametrize(
    ("name", "row", "right", "wrong"),
    [
        ("gsm8k", GSM8K, "So she has 18 apples.", "So she has 15 apples."),
        ("math", MATH, "The answer is $0.75$.", "The answer is $\\frac{4}{3}$."),
        ("math", MATH_500, "x = 7/2, so \\boxed{3.5}", "\\boxed{7}"),
        ("svamp", SVAMP, "8 are not red.", "The answer is 8.04"),
        ("aqua", AQUA, "60 / 2 = 30. The answer is (B).", "The answer is A"),
        ("aqua", AQUA, "The answer is 30 km/h", "The answer is 20 km/h"),
        ("aqua", AQUA, "B", "E"),
        ("numglue", COMPARED, "The answer is B", "The answer is A"),
        ("numglue", COMPARED, "The answer is a horse.", "The answer is a hen."),
        ("numglue", PASSAGE, "They won by 21 - 10 = 11 points.", "They won by 21 points."),
        ("numglue", SPANS, "St. Paul Bears", "St. Louis Bears"),
        ("numglue", DATE, "The answer is 5 May 1990.", "The answer is 6 May 1990."),
        ("numglue", ENTAILED, "The answer is Contradiction.", "The answer is neutral."),
        ("simuleq", DRAW, "The answer is 3 and 5.", "The answer is 5"),
        ("simuleq", DRAW, "The answer is x = 5, y = 3", "The answer is 5, 4"),
        ("simuleq", ONE_UNKNOWN, "The number is 2.5", "The number is 2"),
        ("simuleq", MAMMOTH, "The larger one is 5.", "The larger one is 3."),
    ],
)
def test_reference_is_judged_as_the_final_answer_that_it_is(tmp_path, name, row, right, wrong):
    (item,) = read(written(tmp_path, row), name)
    question, reference = last_exchange(item.turns)
    assert is_right(question, reference, right) is True
    assert is_right(question, reference, wrong) is False


def test_options_are_found_again_by_the_judge(tmp_path):
    (item,) = read(written(tmp_path, AQUA), "aqua")
    assert choices_of(item.turns[0].content) == {option[0]: option[2:] for option in AQUA["options"]}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", GSM8K | {"answer": 18}, "wrong_type: column `answer` holds a number, expected text"),
        ("math", MATH | {"solution": " "}, "blank_output: the answer has no text"),
        ("svamp", SVAMP | {"Answer": True}, "column `Answer` holds true or false, expected a number or text"),
        ("svamp", SVAMP | {"Answer": None}, "column `Answer` holds null, expected a number or text"),
        ("aqua", AQUA | {"options": "A)1 B)2"}, "column `options` holds text, expected a list of options, `A\\)21`"),
        ("aqua", AQUA | {"options": ["A)1", "2"]}, "bad_options: column `options` holds what has no letter of its own"),
        ("aqua", AQUA | {"options": ["A)1", "A)2"]}, "bad_options: column `options` holds what has no letter"),
        ("aqua", AQUA | {"options": []}, "bad_options: column `options`"),
        ("aqua", AQUA | {"correct": "F"}, "bad_options: `correct` is none of the options' letters A, B, C, D, E"),
        ("numglue", COMPARED | {"answer": "a horse"}, "`answer` is neither `Option 1` nor `Option 2`"),
        ("numglue", {"passage": "p", "answer": 1}, "missing_column: `question` is not among `answer`, `passage`"),
        ("numglue", PASSAGE | {"answer": {"spans": []}}, "no_answer: column `answer` holds an object without a number"),
        ("numglue", PASSAGE | {"answer": [11]}, "column `answer` holds a list, expected a number or text"),
        ("simuleq", {"text": "x"}, "`sQuestion` is not among `text`, and neither is `question`; expected sQuestion"),
        ("simuleq", DRAW | {"lSolutions": []}, "blank_output: the answer has no text"),
        ("simuleq", DRAW | {"lSolutions": [None]}, "column `lSolutions` holds null, expected a number or text"),
        ("mathematics", {"question": "q", "answer": {}}, "column `answer` holds an object, expected a number or text"),
    ],
)
def test_row_that_is_none_of_its_set_is_one_message_with_file_and_row(tmp_path, name, row, message):
    _, item = read(written(tmp_path, *[row_of for set_, row_of, _, _ in ASKED if set_ == name][:1], row), name)
    assert isinstance(item, RejectedRow)
    with pytest.raises(DataError, match=rf"rows\.json:2: .*{message}"):
        raise bad_row_error(item)


def test_file_of_another_set_is_one_message_with_what_was_found_and_expected(tmp_path):
    with pytest.raises(DataError, match=r"rows\.json: column `Body` is missing. Found `question`, `answer`"):
        read(written(tmp_path, GSM8K), "svamp")


@pytest.mark.parametrize(("row", "name"), [(MATH, "math"), (MATH_500, "math"), (SVAMP, "svamp"), (AQUA, "aqua")])
def test_set_is_told_by_columns_that_no_other_has(tmp_path, row, name):
    assert {item.source for item in read(written(tmp_path, row), None)} == {name}


@pytest.mark.parametrize("row", [GSM8K, {"question": "q", "answer": "a", "type": "Type_1"}])
def test_columns_that_more_than_one_set_has_are_a_question_and_an_answer(tmp_path, row):
    (item,) = read(written(tmp_path, row), None)
    assert (item.source, item.turns[1].content) == (None, row["answer"])


@pytest.mark.parametrize("row", [DRAW, {"problem": "p", "solution": "s"}, ENTAILED])
def test_columns_that_do_not_tell_the_set_are_an_error_that_says_how_to_name_it(tmp_path, row):
    with pytest.raises(DataError, match=r"format: numglue"):
        read(written(tmp_path, row), None)


def test_general_layout_that_fits_goes_before_a_set(tmp_path):
    row = MATH | {"prompt": "p", "completion": "c"}
    (item,) = read(written(tmp_path, row), None)
    assert (item.turns[1].content, item.source) == ("c", None)


def test_other_names_of_columns_are_mapped_from_those_of_the_set(tmp_path):
    row = {"body": "Body.", "q": "How many?", "a": 3, "origin": "mine"}
    columns = {"Body": "body", "Question": "q", "Answer": "a", "source": "origin"}
    (item,) = read(written(tmp_path, row), "svamp", columns)
    assert (item.turns, item.source) == ((Turn("user", "Body. How many?"), Turn("assistant", "3")), "mine")


def test_problems_of_math_lie_in_files_of_their_own_in_folders_by_subject(tmp_path):
    for place in ("test/algebra/1.json", "test/geometry/1.json"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(MATH, indent=4))
    items = read(tmp_path / "test", "math", {"skill": "type"})
    assert [(item.input_file, item.skill) for item in items] == [
        ("algebra/1.json", "Prealgebra"), ("geometry/1.json", "Prealgebra"),
    ]  # fmt: skip
    assert final_answer(items[0].turns[1].content) == "\\frac{3}{4}"


def test_questions_and_answers_by_turns_are_rows_of_mathematics(tmp_path):
    (tmp_path / "algebra__linear_1d.txt").write_text(LINES)
    items = read(tmp_path, "mathematics")
    assert [(item.input_row, item.turns[0].content, item.turns[1].content) for item in items] == [
        (0, "Solve 2*x + 4 = 0 for x.", "-2"), (2, "Is 7 prime?", "True"),
    ]  # fmt: skip


def test_rows_in_parquet_have_null_where_their_kind_has_no_column(tmp_path):
    rows = [row | {"answer": str(row["answer"])} for row in (ARITHMETIC, COMPARED, ENTAILED)]
    schema = pa.schema([(name, pa.string()) for name in {name: None for row in rows for name in row}])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "numglue.parquet")
    assert [item.turns[1].content for item in read(tmp_path, "numglue")] == ["18", "B", "contradiction"]


def test_options_in_parquet_are_a_list(tmp_path):
    pq.write_table(pa.Table.from_pylist([AQUA]), tmp_path / "test-00000-of-00001.parquet")
    (item,) = read(tmp_path, None)
    assert item.turns[1] == Turn("assistant", "B")


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
@example(1e22)
@example(-0.0)
def test_number_is_written_so_that_it_is_the_same_number(value):
    _, answer = SETS["mathematics"].read({"question": "q", "answer": value})
    assert float(answer) == float(value)
    assert not answer.endswith(".0")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_answer(value):
    with pytest.raises(UnusableRowError, match="wrong_type"):
        SETS["mathematics"].read({"question": "q", "answer": value})


@pytest.mark.skipif(DATA is None, reason="S2L_TEST_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("name", "rows", "layout"), [("gsm8k", 1319, "gsm8k"), ("math500", 500, None), ("aqua", 254, None)]
)
def test_sets_with_columns_already_renamed_stay_as_they_are(name, rows, layout):
    path = Path(str(DATA)) / f"eval_{name}.jsonl"
    items = read(path, layout)
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(item.turns[0].content, item.turns[1].content) for item in items] == [
        (row["question"], row["answer"]) for row in raw
    ]
    assert [item.source for item in items] == [row["source"] for row in raw]
    assert len(items) == rows


# What is asked for behind a question


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("plain", "2 + 2?"),
        ("step_by_step", "2 + 2? Let's think step by step."),
        ("program", "2 + 2? Let's write a program."),
    ],
)
def test_instruction_stands_behind_the_question_alone(prompt, asked):
    turns = [("system", "s"), ("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?"), ("assistant", "4")]
    assert with_instruction(turns, prompt) == [*turns[:3], ("user", asked), ("assistant", "4")]


def test_instruction_stands_behind_the_second_half_of_a_prompt():
    turns = [("user", "Add."), ("input", "2 and 2"), ("assistant", "4")]
    assert with_instruction(turns, "program")[:2] == [("user", "Add."), ("input", "2 and 2 Let's write a program.")]


@pytest.mark.parametrize(
    "turns", [[("text", "t")], [("assistant", "a")], [("user", "q"), ("tool", "t"), ("assistant", "a")]]
)
def test_what_answers_no_question_stays_as_it_is(turns):
    assert with_instruction(turns, "program") == turns
