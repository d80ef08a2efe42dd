"""How much of the held-out data stands in the training data.

Three grades, the strongest first: prompts equal after normalising, equal up to their numbers, and sharing 13 words in
a row up to numbers. The last finds a question that was reworded at one end or had a sentence added.

Shape suffixes: M different keys of one grade in all held-out prompts.

Source: 13 words in a row are the measure of Brown et al. 2020 (arXiv 2005.14165, appendix C).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Grade = Literal["exact", "digit_blind", "ngram"]
GRADES: tuple[Grade, ...] = ("exact", "digit_blind", "ngram")
NGRAM_WORDS = 13

_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no word of a row is lost modulo 2**64


@dataclass(frozen=True)
class PromptKeys:
    """Hashes of a prompt, the same in every process."""

    exact: int
    """Of the prompt in lower case with single spaces."""
    digit_blind: int
    """Of the same with every number replaced: the same question with other figures has the same one."""
    ngrams: bytes
    """Of every `NGRAM_WORDS` words in a row, numbers replaced; uint64, ascending."""

    def of(self, grade: Grade) -> NDArray[np.uint64]:
        """Return the hashes of a grade."""
        if grade == "ngram":
            return np.frombuffer(self.ngrams, dtype=np.uint64)
        return np.array([self.exact if grade == "exact" else self.digit_blind], dtype=np.uint64)


def prompt_keys(turns: Iterable[tuple[str, str]]) -> PromptKeys:
    """Return the hashes of what is asked: the user's turns, without system texts and answers.

    Where nothing is asked, as in plain text to be continued, the answer stands for the question: two examples are
    not the same for having no prompt.
    """
    said = list(turns)
    prompt = " ".join(content for role, content in said if role in ("user", "input"))
    if not prompt.strip():
        prompt = " ".join(content for _, content in said)
    text = _SPACE.sub(" ", prompt).strip().lower()
    blind = _NUMBER.sub("0", text)
    return PromptKeys(_hash(text), _hash(blind), _ngrams(_WORD.findall(blind)).tobytes())


class HeldOutPrompts:
    """The held-out prompts, and what of them the training data was seen to hold."""

    def __init__(self, prompts: Iterable[PromptKeys]) -> None:
        """Remember the prompts; nothing was seen yet."""
        self._prompts = list(prompts)
        none = np.empty(0, dtype=np.uint64)
        self._key_M = {
            grade: np.unique(np.concatenate([none, *(prompt.of(grade) for prompt in self._prompts)]))
            for grade in GRADES
        }
        self._seen_M = {grade: np.zeros(len(key_M), dtype=bool) for grade, key_M in self._key_M.items()}

    def meet(self, prompt: PromptKeys) -> Grade | None:
        """Take note of a training prompt; return the strongest grade in which it is like a held-out one."""
        found: list[Grade] = []
        for grade in GRADES:
            key_M, keys = self._key_M[grade], prompt.of(grade)
            place = np.searchsorted(key_M, keys)
            place = place[key_M.take(place, mode="clip") == keys] if len(key_M) else place[:0]
            if len(place):
                self._seen_M[grade][place] = True
                found.append(grade)
        return found[0] if found else None

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
        return [next((g for g in GRADES if self._is_seen(prompt, g)), None) for prompt in self._prompts]

    def _is_seen(self, prompt: PromptKeys, grade: Grade) -> bool:
        place = np.searchsorted(self._key_M[grade], prompt.of(grade))
        return bool(self._seen_M[grade][place].any())


def count_grades(grades: Iterable[Grade | None]) -> dict[Grade, int]:
    """Count how many are of each grade; every grade includes the stronger ones."""
    found = list(grades)
    return {grade: sum(g in GRADES[: i + 1] for g in found) for i, grade in enumerate(GRADES)}


def _ngrams(words: Sequence[str]) -> NDArray[np.uint64]:
    if len(words) < NGRAM_WORDS:
        return np.empty(0, dtype=np.uint64)
    word_hash = np.array([_word_hash(word) for word in words], dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(word_hash, NGRAM_WORDS)
    powers = np.array([pow(_FACTOR, i, 1 << 64) for i in range(NGRAM_WORDS)], dtype=np.uint64)
    return np.unique((windows * powers).sum(axis=1, dtype=np.uint64))


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return _hash(word)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
