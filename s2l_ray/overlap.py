"""How much of the held-out data stands in the training data.

Three grades, the strongest first: prompts equal after normalising, equal up to their numbers, and sharing 13 words in
a row up to numbers. The last finds a question that was reworded at one end or had a sentence added.

Shape suffixes: N prompts, W keys of them, M different keys of one grade in all held-out prompts.

Source: 13 words in a row are the measure of Brown et al. 2020 (arXiv 2005.14165, appendix C).
"""

import hashlib
import itertools
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Grade = Literal["exact", "digit_blind", "ngram"]
GRADES: tuple[Grade, ...] = ("exact", "digit_blind", "ngram")
NGRAM_WORDS = 13
AT_ONCE = 1024
"""Prompts whose words are in memory at once; what stays of each window of them is 16 bytes."""

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no word of a row is lost modulo 2**64


class Keys(NamedTuple):
    """Hashes of one grade, the same in every process.

    Attributes:
        key_W: uint64, the hashes.
        row_W: int64, the prompt that each is of.
    """

    key_W: NDArray[np.uint64]
    row_W: NDArray[np.int64]


class PromptKeys(NamedTuple):
    """Hashes of N prompts.

    Attributes:
        rows: N.
        exact: of each prompt in lower case with single spaces.
        digit_blind: of the same with every number replaced: the same question with other figures has the same one.
        ngram: of every `NGRAM_WORDS` words in a row, numbers replaced.
    """

    rows: int
    exact: Keys
    digit_blind: Keys
    ngram: Keys

    def of(self, grade: Grade) -> Keys:
        """Return the hashes of a grade."""
        return {"exact": self.exact, "digit_blind": self.digit_blind, "ngram": self.ngram}[grade]


def prompt_keys(examples: Iterable[Iterable[tuple[str, str]]]) -> PromptKeys:
    """Return the hashes of what is asked in each example: the user's turns, without system texts and answers.

    Where nothing is asked, as in plain text to be continued, the answer stands for the question: two examples are
    not the same for having no prompt.
    """
    remaining = iter(examples)
    parts = [_of_some([])]
    while some := list(itertools.islice(remaining, AT_ONCE)):
        parts.append(_of_some(some))
    first_row = np.cumsum([0, *(part.rows for part in parts)])
    joined = {
        grade: Keys(
            np.concatenate([part.of(grade).key_W for part in parts]),
            np.concatenate([part.of(grade).row_W + row for part, row in zip(parts, first_row, strict=False)]),
        )
        for grade in GRADES
    }
    return PromptKeys(int(first_row[-1]), **joined)


def _of_some(examples: Sequence[Iterable[tuple[str, str]]]) -> PromptKeys:
    exact, blind, word, words = array("Q"), array("Q"), array("Q"), array("q")
    for turns in examples:
        text = _prompt(turns)
        without_figures = _NUMBER.sub("0", text)
        exact.append(_hash(text))
        blind.append(_hash(without_figures))
        found = _WORD.findall(without_figures)
        word.extend(map(_word_hash, found))
        words.append(len(found))
    row_N = np.arange(len(exact))
    return PromptKeys(
        rows=len(exact),
        exact=Keys(np.frombuffer(exact, np.uint64), row_N),
        digit_blind=Keys(np.frombuffer(blind, np.uint64), row_N),
        ngram=_ngrams(np.frombuffer(word, np.uint64), np.frombuffer(words, np.int64)),
    )


def _prompt(turns: Iterable[tuple[str, str]]) -> str:
    said = list(turns)
    prompt = " ".join(content for role, content in said if role in ("user", "input"))
    if not prompt.strip():
        prompt = " ".join(content for _, content in said)
    return " ".join(prompt.split()).lower()


class HeldOutPrompts:
    """The held-out prompts, and what of them the training data was seen to hold."""

    def __init__(self, prompts: PromptKeys) -> None:
        """Remember the prompts; nothing was seen yet."""
        self._prompts = prompts
        self._key_M = {grade: np.unique(prompts.of(grade).key_W) for grade in GRADES}
        self._seen_M = {grade: np.zeros(len(key_M), dtype=bool) for grade, key_M in self._key_M.items()}

    def meet(self, prompts: PromptKeys) -> list[Grade | None]:
        """Take note of training prompts; return the strongest grade in which each is like a held-out one."""
        rows = {}
        for grade in GRADES:
            place_W, row_W = self._known(grade, prompts.of(grade))
            self._seen_M[grade][place_W] = True
            rows[grade] = row_W
        return _strongest(prompts.rows, rows)

    def _known(self, grade: Grade, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Return the place of every key that is also a held-out one, and the prompt that it is of."""
        key_M = self._key_M[grade]
        if not len(key_M):
            return np.empty(0, np.intp), np.empty(0, np.int64)
        place_W = np.searchsorted(key_M, keys.key_W)
        is_known_W = key_M.take(place_W, mode="clip") == keys.key_W
        return place_W[is_known_W], keys.row_W[is_known_W]

    @property
    def seen(self) -> dict[Grade, list[int]]:
        """Which keys of a grade were seen, by their place: plain data for `merge`."""
        return {grade: np.flatnonzero(seen_M).tolist() for grade, seen_M in self._seen_M.items()}

    def merge(self, seen: Mapping[Any, Sequence[int]]) -> None:
        """Add what was seen elsewhere, by prompts that were made from the same ones."""
        for grade in GRADES:
            self._seen_M[grade][list(seen[grade])] = True

    def grades(self) -> list[Grade | None]:
        """Return the strongest grade in which each held-out prompt was seen."""
        rows = {}
        for grade in GRADES:
            place_W, row_W = self._known(grade, self._prompts.of(grade))
            rows[grade] = row_W[self._seen_M[grade][place_W]]
        return _strongest(self._prompts.rows, rows)


def _strongest(n_rows: int, rows: Mapping[Grade, NDArray[np.int64]]) -> list[Grade | None]:
    grade_N = np.full(n_rows, None, dtype=object)
    for grade in reversed(GRADES):
        grade_N[rows[grade]] = grade
    found: list[Grade | None] = grade_N.tolist()
    return found


def count_grades(grades: Iterable[Grade | None]) -> dict[Grade, int]:
    """Count how many are of each grade; every grade includes the stronger ones."""
    found = list(grades)
    return {grade: sum(g in GRADES[: i + 1] for g in found) for i, grade in enumerate(GRADES)}


def _ngrams(word_W: NDArray[np.uint64], words_N: NDArray[np.int64]) -> Keys:
    """Hash every window of words within a prompt: the sum of the words' hashes, each times a power of its own."""
    window = max(0, len(word_W) - NGRAM_WORDS + 1)
    key_W = np.zeros(window, np.uint64)
    for place in range(NGRAM_WORDS):
        key_W += word_W[place : place + window] * np.uint64(pow(_FACTOR, place, 1 << 64))
    row_W = np.repeat(np.arange(len(words_N)), words_N)
    left_W = np.repeat(np.cumsum(words_N), words_N) - np.arange(len(word_W))
    is_whole_W = left_W[:window] >= NGRAM_WORDS
    return Keys(key_W[is_whole_W], row_W[:window][is_whole_W])


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return _hash(word)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
