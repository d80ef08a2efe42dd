"""How much of the held-out data stands in the training data.

Three grades: prompts equal after normalising, equal up to their numbers, and sharing 13 words in a row up to numbers.
The last finds a question that was reworded at one end or had a sentence added.

Source: 13 words in a row are the measure of Brown et al. 2020 (arXiv 2005.14165, appendix C).
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SPACE = re.compile(r"\s+")
NGRAM_WORDS = 13

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class PromptKeys:
    """Hashes of a prompt; comparable within one process."""

    exact: int
    """Of the prompt in lower case with single spaces."""
    digit_blind: int
    """Of the same with every number replaced: the same question with other figures has the same one."""
    ngrams: frozenset[int]
    """Of every `NGRAM_WORDS` words in a row, numbers replaced."""


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
    words = _WORD.findall(blind)
    ngrams = (tuple(words[i : i + NGRAM_WORDS]) for i in range(len(words) - NGRAM_WORDS + 1))
    return PromptKeys(_hash(text), _hash(blind), frozenset(map(hash, ngrams)))


def count_overlap(training: Iterable[PromptKeys], held_out: Sequence[PromptKeys]) -> dict[str, int]:
    """Count the held-out prompts that occur in the training data.

    Returns:
        `rows` held-out rows; of them `exact`, `digit_blind` and `ngram`, each including the one before.
    """
    # Only what is asked for is remembered: the training data may be thousands of times larger.
    wanted_exact, wanted_blind = {keys.exact for keys in held_out}, {keys.digit_blind for keys in held_out}
    wanted_ngrams = frozenset[int]().union(*(keys.ngrams for keys in held_out))
    exact: set[int] = set()
    blind: set[int] = set()
    ngrams: set[int] = set()
    for keys in training:
        if keys.exact in wanted_exact:
            exact.add(keys.exact)
        if keys.digit_blind in wanted_blind:
            blind.add(keys.digit_blind)
        ngrams |= keys.ngrams & wanted_ngrams
    return {
        "rows": len(held_out),
        "exact": sum(keys.exact in exact for keys in held_out),
        "digit_blind": sum(keys.digit_blind in blind for keys in held_out),
        "ngram": sum(keys.digit_blind in blind or not ngrams.isdisjoint(keys.ngrams) for keys in held_out),
    }


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
