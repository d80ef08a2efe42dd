"""Whether a text answers a question as its reference does: the judge of `math_answer`.

Of a question with options the letters are compared; an answer that names none stands for the option that it is equal
to. A letter that contradicts the value beside it counts as the letter.
"""

import re
from collections.abc import Mapping

from s2l_ray.judging.equivalence import Symbolic, are_equal, is_same_text
from s2l_ray.judging.final_answers import before_next_question, final_answer
from s2l_ray.judging.plain_math import plain

JUDGE = "math-3"
"""Name and version of this judge, with math-verify 0.9; raised whenever a verdict may differ."""

_LIST_HEAD = re.compile(r"(?:answer )?(?:choices|options)\s*:", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Ha-h])(?:\s*\)|\s*[.:]\s|\s*$)")


def is_right(question: str, reference: str, answer: str, symbolic: Symbolic | None = None) -> bool | None:
    """Return whether the final answer of a text is that of the reference.

    Args:
        question: for the options that it may list.
        reference: the expected answer, bare or as a whole solution.
        answer: what a model said.
        symbolic: see `are_equal`.

    Returns:
        None where the reference has no final answer, so that there is nothing to judge by.
    """
    choices = choices_of(question)
    expected = final_answer(reference, has_choices=bool(choices))
    if expected is None:
        return None
    found = final_answer(before_next_question(answer), has_choices=bool(choices))
    if found is None:
        return False
    letters = chosen(expected, choices, symbolic)
    return bool(letters & chosen(found, choices, symbolic)) if letters else are_equal(expected, found, symbolic)


def has_answer(question: str, reference: str) -> bool:
    """Return whether a reference has a final answer to judge by."""
    return final_answer(reference, has_choices=bool(choices_of(question))) is not None


def choices_of(question: str) -> dict[str, str]:
    """Return the options of a question that lists them (`Answer Choices: A) 1 B) 2`), by letter."""
    heads = list(_LIST_HEAD.finditer(question))
    if not heads:
        return {}
    marks: list[re.Match[str]] = []
    for letter in "ABCDEFGH":
        mark = re.compile(rf"(?<![A-Z0-9])\(?({letter})\s?\)\s*(?:{letter}\s?\))?", re.IGNORECASE)
        found = mark.search(question, marks[-1].end() if marks else heads[-1].end())
        if found is None:
            break
        marks.append(found)
    stops = [*(mark.start() for mark in marks[1:]), len(question)][: len(marks)]
    return {m[1].upper(): question[m.end() : stop].strip(" ,;\n") for m, stop in zip(marks, stops, strict=True)}


def chosen(answer: str, choices: Mapping[str, str], symbolic: Symbolic | None = None) -> set[str]:
    """Return the letters that an answer stands for; several where options are equal, none where it fits different ones.

    Args:
        answer: a letter, a letter with its option, or an option.
        choices: letter -> option.
        symbolic: see `are_equal`.
    """
    mark = _LETTER.match(plain(answer))
    if mark and mark[1].upper() in choices:
        return {mark[1].upper()}
    # From strict to loose: units are what tells some options apart, and most need no symbolic judge.
    for judge in (is_same_text, are_equal, lambda one, other: are_equal(one, other, symbolic)):
        found = {letter: option for letter, option in choices.items() if option and judge(option, answer)}
        if found:
            alike = all(is_same_text(option, next(iter(found.values()))) for option in found.values())
            return set(found) if alike else set()
    return set()
