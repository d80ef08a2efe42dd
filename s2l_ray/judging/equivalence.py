r"""Whether two final answers are the same: as text, as numbers, as times, part by part, and else as mathematics.

What is beyond that (roots, polynomials, matrices, sets in other words) is asked of a `Symbolic`, the worker of
`symbolic`. Letters' case counts in mathematics (`x`, `X`) and not in words.
"""

import re
from collections.abc import Callable, Sequence

from s2l_ray.judging.plain_math import plain
from s2l_ray.judging.quantities import quantity_of

Symbolic = Callable[[str, str], bool]
"""Reference, answer -> whether they are equal as mathematics."""
LONGEST = 500
"""Characters of an answer that are judged; what is longer answers nothing."""
MOST_PARTS = 16
UNORDERED = ("", "{}", "\\{\\}")
"""Brackets of a set."""

_TIME = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*(?:([ap])\.?\s?m)?", re.IGNORECASE)
_RANGE = re.compile(r"(\(?[$€£]?[\d.,]+\)?)\s*(?:-|to)\s*(\(?[$€£]?[\d.,]+\)?)")
_NAMED = re.compile(r"[A-Za-z](?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))\s*(?=\S)")
_PROSE = re.compile(r"(?:the |an? )?([A-Za-z'\u2019]{2,}(?:(?:[.,]? |[.-])[A-Za-z'\u2019]+)*)", re.IGNORECASE)
_OPTION = re.compile(r"\(([A-H])\)")
_BRACKETED = re.compile(r"(\\\{|[(\[{])(.*?)(\\\}|[)\]}])")


def are_equal(reference: str, answer: str, symbolic: Symbolic | None = None) -> bool:
    """Return whether an answer says what the reference says.

    Args:
        reference: the expected final answer.
        answer: the one to judge.
        symbolic: asked last, where neither side is a number or words; without it, what is left is not equal.
    """
    ours, theirs = _bare(reference), _bare(answer)
    if not ours or not theirs or max(len(reference), len(answer)) > LONGEST:
        return False
    if _squeezed(ours) == _squeezed(theirs):
        return True
    ours, theirs = _value(ours), _value(theirs)
    for compare in (_as_text, _as_numbers, _as_times, _as_ranges, _as_words):
        verdict = compare(ours, theirs)
        if verdict is not None:
            return verdict
    verdict = _as_parts(ours, theirs, symbolic)
    return verdict if verdict is not None else symbolic is not None and symbolic(reference, answer)


def is_same_text(one: str, other: str) -> bool:
    """Return whether two answers are written alike, but for spacing, dress and the case of words."""
    return _squeezed(_bare(one)) == _squeezed(_bare(other))


def _bare(text: str) -> str:
    found = plain(text)
    option = _OPTION.fullmatch(found)
    return option[1] if option else found


def _value(text: str) -> str:
    """Return what stands behind `x =`, without brackets that enclose one thing."""
    named = _NAMED.match(text)
    text = text[named.end() :] if named and "=" not in text[named.end() :] else text
    inner = text[1:-1].strip()
    encloses_one = text.startswith("(") and text.endswith(")") and "," not in inner
    return inner if encloses_one and quantity_of(inner) else text


def _squeezed(text: str) -> str:
    """Return a text by which spelling alone is left out: spaces, braces around one thing, the case of words."""
    prose = _PROSE.fullmatch(text)
    if prose:
        return " ".join(re.sub(r"[.,]", " ", prose[1]).casefold().split())
    # What `58,500` and `58, 500` differ in is no spelling.
    text = re.sub(r"(?<=\d),\s+(?=\d{3}(?!\d))", ";", re.sub(r"\{(\w)\}", r"\1", text))
    # Nor is what `1 1/2` and `11/2` do.
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", text)
    return re.sub(r"\s", "", text)


def _as_text(ours: str, theirs: str) -> bool | None:
    return True if _squeezed(ours) == _squeezed(theirs) else None


def _as_numbers(ours: str, theirs: str) -> bool | None:
    number, their_number = quantity_of(ours), quantity_of(theirs)
    return number.equals(their_number) if number and their_number else None


def _as_times(ours: str, theirs: str) -> bool | None:
    """Compare times of day; where one side does not say which half of the day, either will do."""
    time, their_time = _TIME.fullmatch(ours), _TIME.fullmatch(theirs)
    if time is None or their_time is None:
        return None
    (hour, minute, half), (their_hour, their_minute, their_half) = time.groups(), their_time.groups()
    same = (int(hour), int(minute or 0)) == (int(their_hour), int(their_minute or 0))
    return same and (not half or not their_half or half.casefold() == their_half.casefold())


def _as_ranges(ours: str, theirs: str) -> bool | None:
    """Compare `10-20` with `10 to 20`; a range is no difference, so it is equal to nothing else."""
    ends, their_ends = _RANGE.fullmatch(ours), _RANGE.fullmatch(theirs)
    if ends and their_ends:
        return all(are_equal(one, other) for one, other in zip(ends.groups(), their_ends.groups(), strict=True))
    return False if ends or their_ends else None


def _as_words(ours: str, theirs: str) -> bool | None:
    """Words are equal to the same words alone, and `_as_text` has not found them so."""
    return False if _PROSE.fullmatch(ours) or _PROSE.fullmatch(theirs) else None


def _as_parts(ours: str, theirs: str, symbolic: Symbolic | None) -> bool | None:
    """Compare tuples, intervals, sets and lists; without brackets, and in a set, the order is free."""
    parts, their_parts = _parts(ours), _parts(theirs)
    if parts is None or their_parts is None:
        is_number = quantity_of(ours) or quantity_of(theirs)
        return False if is_number and (parts or their_parts) else None
    (brackets, items), (their_brackets, their_items) = parts, their_parts
    in_order = brackets not in UNORDERED
    if in_order is (their_brackets in UNORDERED) or (in_order and brackets != their_brackets):
        return False
    if len(items) != len(their_items):
        return None if any("\\pm" in item for item in (*items, *their_items)) else False
    if in_order:
        return all(are_equal(one, other, symbolic) for one, other in zip(items, their_items, strict=True))
    return _are_matched(items, their_items, symbolic)


def _are_matched(items: Sequence[str], others: Sequence[str], symbolic: Symbolic | None) -> bool:
    """Return whether every item has another for itself that is equal to it."""
    left = list(others)
    for item in items:
        found = next((n for n, other in enumerate(left) if are_equal(item, other, symbolic)), None)
        if found is None:
            return False
        del left[found]
    return True


def _parts(text: str) -> tuple[str, list[str]] | None:
    """Return the brackets and what commas separate between them; None where there is but one thing."""
    if quantity_of(text):
        return None
    found = _BRACKETED.fullmatch(text)
    items = _split(found[2]) if found else None
    if found is None or items is None:
        brackets, items = "", _split(re.sub(r",?\s+(?:and|or)\s+", ", ", text))
    else:
        brackets = found[1] + found[3]
    is_several = items is not None and 1 < len(items) <= MOST_PARTS
    return (brackets, items) if items is not None and (is_several or brackets == "\\{\\}") else None


def _split(text: str) -> list[str] | None:
    """Split at the commas outside of brackets; None where brackets do not pair."""
    items, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character == "," and not depth:
            items.append(text[start:position].strip())
            start = position + 1
    return [*items, text[start:].strip()] if not depth else None
