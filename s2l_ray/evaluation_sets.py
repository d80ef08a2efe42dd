r"""Sets of questions that models of mathematics are judged on, as their authors publish them: row -> question, answer.

    gsm8k        question, answer: a solution that ends in `#### 18`
    math         problem, solution: one that holds `\boxed{18}`; MATH, a file of JSON per problem, and MATH-500
    svamp        Body, Question, Answer: a number
    aqua         question, options: `A)21` and so on, correct: the option's letter
    numglue      answer, and by the kind of task question, passage, Option1 and Option2, or statement1, statement2 and
                 options; the answer is a number, text, or {number, date, spans}
    simuleq      sQuestion, lSolutions: a list of numbers, as in DRAW and ALG-514; or question, answer
    mathematics  question, answer; or text files of a question and its answer by turns

A number is the number as written; where a file holds it as floating point, `18.0` is 18. Several numbers are a list,
`3, 5`, whose order is free. Spans and dates stand behind `####`, so that they count as a whole.

Source: Cobbe et al. 2021, Hendrycks et al. 2021, Patel et al. 2021, Ling et al. 2017, Mishra et al. 2022, Upadhyay and
Chang 2017, Saxton et al. 2019, for what they ask and how they name it. How a question is put together from several
columns is as in MAmmoTH (Yue et al. 2023), which the six sets of S2L's experiments come from.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from s2l_ray.formats.row import Row, UnusableRowError, bad_type, missing_column, text_of

SetName = Literal["gsm8k", "math", "svamp", "aqua", "numglue", "simuleq", "mathematics"]

_OPTION = re.compile(r"\s*\(?([A-H])\s*\)\s*(.*)", re.DOTALL)
_NUMBERED = re.compile(r"\s*option\s*([12])\s*", re.IGNORECASE)


@dataclass(frozen=True)
class EvaluationSet:
    """How the rows of a set are read.

    Attributes:
        read: takes a row by the set's own names, and returns question and answer; raises `UnusableRowError`.
        required: the columns that every row has.
        optional: those that some have.
        told_by: the columns that no other set has, so that it need not be named; empty where there are none.
    """

    read: Callable[[Row], tuple[str, str]]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    told_by: tuple[str, ...] = ()


def _gsm8k(row: Row) -> tuple[str, str]:
    return text_of(row, "question"), text_of(row, "answer")


def _math(row: Row) -> tuple[str, str]:
    return text_of(row, "problem"), text_of(row, "solution")


def _svamp(row: Row) -> tuple[str, str]:
    return f"{text_of(row, 'Body').strip()} {text_of(row, 'Question').strip()}", _answer(row, "Answer")


def _aqua(row: Row) -> tuple[str, str]:
    question, correct, options = text_of(row, "question"), text_of(row, "correct").strip(), row.get("options")
    if not isinstance(options, list):
        raise bad_type("options", options, "a list of options, `A)21` and so on")
    found = [_OPTION.fullmatch(option) if isinstance(option, str) else None for option in options]
    choices = {option[1]: option[2].strip() for option in found if option}
    if len(choices) < len(options) or not choices:
        raise UnusableRowError("bad_options: column `options` holds what has no letter of its own, as in `A)21`")
    if correct not in choices:
        raise UnusableRowError(f"bad_options: `correct` is none of the options' letters {', '.join(choices)}")
    return _with_choices(question, choices), correct


def _numglue(row: Row) -> tuple[str, str]:
    if row.get("statement1"):  # a cell of CSV that is empty is a text
        first, second, asked = (text_of(row, name).strip() for name in ("statement1", "statement2", "options"))
        return f"Statement 1: {first}\nStatement 2: {second}\nQuestion: {asked}", _numglue_answer(row)
    question = text_of(row, "question")
    if row.get("passage"):
        return f"Passage: {text_of(row, 'passage').strip()} Question: {question.strip()}", _numglue_answer(row)
    if row.get("Option1") not in (None, ""):
        chosen = _NUMBERED.fullmatch(text_of(row, "answer"))
        if chosen is None:
            raise UnusableRowError("bad_options: `answer` is neither `Option 1` nor `Option 2`")
        choices = {letter: _answer(row, name) for letter, name in (("A", "Option1"), ("B", "Option2"))}
        return _with_choices(question, choices), "AB"[int(chosen[1]) - 1]
    return question, _numglue_answer(row)


def _numglue_answer(row: Row) -> str:
    value = row.get("answer")
    if not isinstance(value, dict):
        return _answer(row, "answer")
    if value.get("number") not in (None, ""):
        return _answer(value, "number")
    spans, date = value.get("spans") or [], value.get("date") or {}
    if isinstance(spans, list) and spans and all(isinstance(span, str) for span in spans):
        return f"#### {', '.join(spans)}"
    parts = [str(date[name]) for name in ("day", "month", "year") if date.get(name)] if isinstance(date, dict) else []
    if not parts:
        raise UnusableRowError("no_answer: column `answer` holds an object without a number, spans or a date")
    return f"#### {' '.join(parts)}"


def _simuleq(row: Row) -> tuple[str, str]:
    if row.get("sQuestion") is None and row.get("question") is None:
        raise UnusableRowError(
            f"{missing_column(row, 'sQuestion')}, and neither is `question`; expected sQuestion + lSolutions, or "
            "question + answer"
        )
    asked, solved = ("sQuestion", "lSolutions") if row.get("sQuestion") is not None else ("question", "answer")
    solutions = row.get(solved)
    if not isinstance(solutions, list):
        return text_of(row, asked), _answer(row, solved)
    return text_of(row, asked), ", ".join(_answer({solved: solution}, solved) for solution in solutions)


def _mathematics(row: Row) -> tuple[str, str]:
    return text_of(row, "question"), _answer(row, "answer")


def _with_choices(question: str, choices: Mapping[str, str]) -> str:
    """Return a question with its options, as the judge finds them."""
    listed = " ".join(f"({letter}) {option}" for letter, option in choices.items())
    return f"{question.strip()}\nAnswer Choices: {listed}"


def _answer(row: Row, column: str) -> str:
    """Return a column's text, or its number as one writes it."""
    value: Any = row.get(column)
    if isinstance(value, str):
        return value
    if column not in row:
        raise missing_column(row, column)
    is_whole = isinstance(value, int) and not isinstance(value, bool)  # however many digits: no float holds them all
    if not is_whole and not (isinstance(value, float) and math.isfinite(value)):
        raise bad_type(column, value, "a number or text")
    return str(int(value)) if value == int(value) else repr(value)


SETS: Mapping[str, EvaluationSet] = {
    "gsm8k": EvaluationSet(_gsm8k, ("question", "answer")),
    "math": EvaluationSet(_math, ("problem", "solution"), told_by=("problem", "solution", "level")),
    "svamp": EvaluationSet(
        _svamp, ("Body", "Question", "Answer"), told_by=("Body", "Question", "Answer", "Equation", "Type")
    ),
    "aqua": EvaluationSet(
        _aqua, ("question", "options", "correct"), told_by=("question", "options", "correct", "rationale")
    ),
    "numglue": EvaluationSet(
        _numglue,
        ("answer",),
        ("question", "passage", "Option1", "Option2", "statement1", "statement2", "options"),
    ),
    "simuleq": EvaluationSet(_simuleq, optional=("sQuestion", "lSolutions", "question", "answer")),
    "mathematics": EvaluationSet(_mathematics, ("question", "answer")),
}
"""By name, which is also the source of rows that carry none."""
