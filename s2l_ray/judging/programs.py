"""Answers that are programs: whether one passes the assertions of its question, and what answer one computes.

Programs run by `execution`. A program-of-thought answers with its function `solution`, with a variable `answer`,
`ans` or `result`, or else with the last line that it prints. Several numbers, however Python prints them, may be those
of a reference that lists several in any order.
"""

import re
import secrets

from s2l_ray.judging.equivalence import Symbolic
from s2l_ray.judging.execution import run_program
from s2l_ray.judging.final_answers import before_next_question, is_program
from s2l_ray.judging.math_answers import has_answer, is_right

JUDGE = "programs-2"
"""Name and version of this judge, its limits included; raised whenever a verdict may differ."""

_ASSERTION = re.compile(r"(?:^|(?<=:))[ \t]*(assert\b.+)$", re.MULTILINE)
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_NAME = re.compile(r"['\"]?[A-Za-z]\w*['\"]?\s*[:=]\s*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?:/\d+)?", re.IGNORECASE)
_SAY_ANSWER = """
if callable(globals().get("solution")):
    print("\\n{mark}", solution())
else:
    for _name in ("answer", "ans", "result"):
        if _name in globals():
            print("\\n{mark}", globals()[_name])
            break
"""


def assertions_of(question: str) -> list[str]:
    """Return the assertions that a question says a program should pass (`Your code should pass: assert ...`)."""
    return [found.strip() for found in _ASSERTION.findall(question)]


def source_of(text: str) -> str:
    """Return the program in what a model said: its last fenced block, or all of it."""
    fenced = _FENCED.findall(text)
    return fenced[-1] if fenced else before_next_question(text)


def passes(question: str, text: str) -> bool | None:
    """Return whether a program passes all assertions of its question; None where there are none."""
    assertions = assertions_of(question)
    if not assertions:
        return None
    # A program that ends itself early has passed nothing.
    mark = secrets.token_hex(16)
    outcome = run_program("\n".join([source_of(text), "", *assertions, f"print('\\n{mark}')"]))
    return outcome.succeeded and outcome.output.rstrip().endswith(mark)


def computed_answer(text: str) -> str:
    """Return the answer that a program-of-thought computes; empty where it computes none. Other texts stay."""
    source = source_of(text)
    if source == before_next_question(text) and not is_program(source):
        return text
    mark = secrets.token_hex(16)
    outcome = run_program(source + _SAY_ANSWER.format(mark=mark))
    if not outcome.succeeded:
        return ""
    lines = outcome.output.strip().splitlines()
    said = [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]
    return said[-1] if said else "".join(lines[-1:])


def numbers_in(printed: str) -> str | None:
    """Return what is printed as `5 3`, `[5, 3]`, `{x: 5, y: 3}` and the like as the list `5, 3`; None if it is else."""
    parts = re.split(r",\s+|\s+", _NAME.sub("", printed).strip(" [](){}"))
    return ", ".join(parts) if len(parts) > 1 and all(_NUMBER.fullmatch(part) for part in parts) else None


def can_compute(question: str, reference: str) -> bool:
    """Return whether a reference has a final answer, or is a program that may compute one."""
    return has_answer(question, reference) or is_program(source_of(reference))


def computes_right(question: str, reference: str, text: str, symbolic: Symbolic | None = None) -> bool | None:
    """Return what `is_right` says of the answers that reference and text compute where they are programs."""
    if not can_compute(question, reference):
        return None
    expected, computed = computed_answer(reference), computed_answer(text)
    verdict = is_right(question, expected, computed, symbolic)
    several = numbers_in(computed) if verdict is False and computed != text else None
    return is_right(question, expected, several, symbolic) if several else verdict
