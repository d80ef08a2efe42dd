"""How near a summary comes to its reference, by the words they share: BLEU and ROUGE-L.

BLEU belongs to a whole corpus: n-gram counts are added over rows, and the score follows from the sums. A row therefore
keeps its counts, so that every group of rows has a BLEU of its own.

Sources:
    BLEU: Papineni et al. 2002, in the form of sacrebleu (Post 2018, arXiv 1804.08771).
    ROUGE-L: Lin 2004, in the form of the package rouge-score, without its stemmer.
    The longest common subsequence by bit vectors: Hyyro 2004.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ray.judging.packages import check_package
from s2l_ray.scoring import Mean

PACKAGE = "sacrebleu"
BLEU_JUDGE = "sacrebleu-2 13a exp"
"""Name, tokenizer and smoothing of BLEU; raised whenever a score may differ."""
ROUGE_JUDGE = "rouge-l-1"

ORDERS = 4
"""Longest n-gram that BLEU counts."""
COUNTS = 2 + 2 * ORDERS
"""Length of a row's counts: tokens of the answer and of the reference, n-grams that match, n-grams of the answer."""

_WORD = re.compile(r"[a-z0-9]+")


def check_installed() -> None:
    """Refuse to begin without sacrebleu.

    Raises:
        ConfigError: it is not installed.
    """
    check_package(PACKAGE, name="sacrebleu", extra="summaries", asked="bleu")


def bleu_counts(reference: str, answer: str) -> list[int]:
    """Return what BLEU needs of a row, as sacrebleu counts it.

    Returns:
        `COUNTS` numbers: tokens of the answer, tokens of the reference, matching 1- to 4-grams, 1- to 4-grams of the
        answer.
    """
    from sacrebleu import sentence_bleu

    found = sentence_bleu(answer, [reference])
    return [found.sys_len, found.ref_len, *found.counts, *found.totals]


def bleu(counts: Sequence[int] | NDArray[Any]) -> float:
    """Return BLEU, 0 to 1, of counts that were added over rows."""
    from sacrebleu import BLEU

    answer, reference, *grams = (int(count) for count in counts)
    return float(BLEU.compute_bleu(grams[:ORDERS], grams[ORDERS:], answer, reference, smooth_method="exp").score) / 100


def corpus_bleu(counts_NC: NDArray[Any]) -> Mean:
    """Return BLEU of some rows together, with the jackknife's standard error: each row left out once.

    Args:
        counts_NC: the rows' counts, C = `COUNTS`.
    """
    total_C, n = counts_NC.sum(axis=0), len(counts_NC)
    if n == 1:
        return Mean(bleu(total_C), None, 1)
    without_N = np.array([bleu(total_C - counts_C) for counts_C in counts_NC])
    error = math.sqrt((n - 1) / n * float(np.square(without_N - without_N.mean()).sum()))
    return Mean(bleu(total_C), error, n)


def has_words(text: str) -> bool:
    """Return whether ROUGE sees anything in a text: it knows the letters a to z and the digits, and no others."""
    return _WORD.search(text.lower()) is not None


def rouge_l(reference: str, answer: str) -> float:
    """Return the F1 of the longest common subsequence of words, 0 to 1."""
    expected, found = (_WORD.findall(text.lower()) for text in (reference, answer))
    common = _longest_common(expected, found)
    return 2 * common / (len(expected) + len(found)) if common else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(one)) - 1
    row = everywhere
    for word in other:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(one) - row.bit_count()
