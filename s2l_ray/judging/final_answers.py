r"""The final answer in a text: a model's, or a reference, which may be a bare answer or a whole solution.

The strongest sign wins, and of equals the last: `\boxed{}`, GSM8K's `####`, "the answer is", an option's letter,
"we get", a text that is nothing but an answer, and last its last number.
"""

import re

from s2l_ray.judging.plain_math import plain
from s2l_ray.judging.quantities import quantity_of

LONGEST = 100_000
"""Characters at the end of a text that are read."""
SHORT = 120
"""Characters of a text that may be an answer as a whole."""
FEW_WORDS = 4
MOST_BOXES = 16
"""Boxes at the end of a text that are tried, should they not close."""

_NEXT_QUESTION = re.compile(
    r"(?:^|\n)[ \t]*(?:#{2,}[ \t]*|\*\*)?(?:question|q\d*|problem|instruction|user|human|exercise)\s*(?:\*\*)?:"
    r"|<\|im_start\|>|\nBelow is an instruction",
    re.IGNORECASE,
)
_STATED = re.compile(
    r"\banswer\s*(?:\*\*)?\s*(?:\([^()]{0,40}\)\s*)?(?::|=|is|would be|will be|must be)(?![a-z])"
    r"\s*(?:\*\*)?\s*:?\s*(?:therefore |thus |that |equal to |option |choice )?\s*",
    re.IGNORECASE,
)
_FOUND = re.compile(r"\b(?:we (?:get|have|find|obtain)|is equal to|equals)(?: that)?:?\s+", re.IGNORECASE)
_REASON = re.compile(r",?\s+(?:because|since|which|where|when|so|as|thus|therefore)\s|(?<!\\)[.!?](?:\s|$)|\*\*|;\s")
_LETTERED = re.compile(
    r"\b(?:answer|option|choice)(?: is)?\W{0,4}\(?([A-H])\b|(?:^|\s)\(([A-H])\)"
    r"|(?:^|(?<!or)(?<!and)\s)([A-H])\s?\)?\.?\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_BOXED = re.compile(r"\\f?box(?:ed)?\s*(\{|\w)")
_CALCULATION = re.compile(
    r"(?:[^A-Za-z=\\]|\\(?:times|cdot|div|d?frac)\b)*?[\d)}]\s*(?:[-+*/\u00d7\u00f7^]|\\(?:times|cdot|div)\b)"
    r"(?:[^A-Za-z=\\]|\\(?:times|cdot|div|d?frac)\b)*=\s*([^=]*\d[^=]*)"
)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(.*)")
_NUMBER = re.compile(r"[-+\u2212]?\s?[$€£]?\s?[\d.,/]*\d\s?%?\.?")
_PROGRAM = re.compile(
    r"^[ \t]*(?:def \w+\(|import \w|from \w+ import |print\(|class \w+[:(])|^[ \t]+return\b", re.MULTILINE
)
_LAST_NUMBER = re.compile(
    r"(?<![\w.,/])[-+\u2212]?[$€£]?\s?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+(?![\d.]))?\s?%?(?!\w)"
)
_FORMULA = re.compile(r"\$\$.+?\$\$|\\\(.+?\\\)|\\\[.+?\\\]|\$(?:[^$\\]|\\.)+\$(?!\d)", re.DOTALL)
_ASY = re.compile(r"\[asy\].*?(?:\[/asy\]|$)", re.DOTALL)


def final_answer(text: str, *, has_choices: bool = False) -> str | None:
    """Return the final answer in a text; None where there is none, it was cut off, or the text is a program.

    Args:
        text: an answer or a whole solution.
        has_choices: the question has options, so that a lone letter answers it.
    """
    text = _ASY.sub("", text[-LONGEST:]).strip()
    if _BOXED.search(text):
        return _last_boxed(text)
    signs = (_marked, _program, _stated, *((_lettered,) if has_choices else ()), _bare, _found, _last_number)
    answers = (sign(text) for sign in signs)
    return next((answer for answer in answers if answer is not None), None) or None


def before_next_question(text: str) -> str:
    """Return what a model says before it makes up a question of its own, as models do that find no end."""
    for mark in _NEXT_QUESTION.finditer(text):
        if text[: mark.start()].strip():
            return text[: mark.start()]
    return text


def is_program(text: str) -> bool:
    """Return whether a text is Python and no prose."""
    return _PROGRAM.search(text) is not None


def _last_boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{...}` holds whose braces close."""
    for mark in list(_BOXED.finditer(text))[: -MOST_BOXES - 1 : -1]:
        if mark[1] != "{":
            return mark[1]
        depth = 1
        for position in range(mark.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if not depth:
                return text[mark.end() : position].strip() or None
    return None


# Each sign returns the answer that it points at, "" where it says that there is none, None where it is not there.


def _marked(text: str) -> str | None:
    """Return what GSM8K's mark stands before: on the last line, or a number; other lines are Markdown's headings."""
    marks = list(_HASHES.finditer(text))
    answers = (m[1].strip() for m in reversed(marks) if not text[m.end() :].strip() or _NUMBER.fullmatch(m[1].strip()))
    return next(answers, None)


def _program(text: str) -> str | None:
    return "" if is_program(text) else None


def _stated(text: str) -> str | None:
    marks = list(_STATED.finditer(text))
    return _came_to(_sentence(text[marks[-1].end() :])) if marks else None


def _lettered(text: str) -> str | None:
    marks = list(_LETTERED.finditer(text))
    return next(letter for letter in marks[-1].groups() if letter).upper() if marks else None


def _bare(text: str) -> str | None:
    """Return a text that is nothing but an answer: a number among words, mathematics, or a few words."""
    if "\n" in text or len(text) > SHORT or _FOUND.search(text):
        return None
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    is_short = len(words) <= FEW_WORDS and ("\\" in text or not re.search(r"\d", text))
    return text if not words or is_short or quantity_of(plain(text)) else None


def _found(text: str) -> str | None:
    last = text.splitlines()[-1]
    marks = list(_FOUND.finditer(last))
    return _right_side(_sentence(last[marks[-1].end() :])) if marks else None


def _last_number(text: str) -> str | None:
    numbers = [number[0].strip() for number in _LAST_NUMBER.finditer(text) if number[0].strip()]
    return numbers[-1] if numbers else None


def _sentence(text: str) -> str:
    """Return the start of a text up to the end of its sentence, formula or reason."""
    text = text.lstrip().split("\n\n")[0]
    if formula := _FORMULA.match(text):
        return formula[0]
    text = text.split("\n")[0]
    ends = (mark.start() for mark in _REASON.finditer(text))
    stop = next((end for end in ends if text.count("{", 0, end) == text.count("}", 0, end)), len(text))
    return text[:stop].strip()


def _came_to(text: str) -> str:
    """Return what a calculation in numbers comes to: `2 * 3 = 6` is 6, while what has a name (`x = 5`) stays whole."""
    found = _CALCULATION.fullmatch(text.strip("$ ")) if len(text) <= SHORT else None
    return found[1].strip() if found else text


def _right_side(text: str) -> str:
    """Return what a sum comes to: `2 + 3 = 5` and `x = 2 + 3 = 5` are 5, while `y = 2x` and `x + y = 1` stay."""
    left, equal, right = text.rpartition("=")
    return right.strip() if equal and ("=" in left or not re.search(r"[A-Za-z]", left)) else text
