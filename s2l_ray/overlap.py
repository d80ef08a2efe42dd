"""How much of the held-out data stands in the training data: prompts equal after normalising, and up to digits."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class PromptKeys:
    """Two hashes of a prompt."""

    exact: int
    """Of the prompt in lower case with single spaces."""
    digit_blind: int
    """Of the same with every number replaced: the same question with other figures has the same one."""


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
    return PromptKeys(_hash(text), _hash(_NUMBER.sub("0", text)))


def count_overlap(training: Iterable[PromptKeys], held_out: Sequence[PromptKeys]) -> dict[str, int]:
    """Count the held-out prompts that occur in the training data.

    Returns:
        `rows` held-out rows, `exact` and `digit_blind` rows among them that occur; the second includes the first.
    """
    # Only what is asked for is remembered: the training data may be thousands of times larger.
    wanted_exact, wanted_blind = {keys.exact for keys in held_out}, {keys.digit_blind for keys in held_out}
    exact: set[int] = set()
    blind: set[int] = set()
    for keys in training:
        if keys.exact in wanted_exact:
            exact.add(keys.exact)
        if keys.digit_blind in wanted_blind:
            blind.add(keys.digit_blind)
    return {
        "rows": len(held_out),
        "exact": sum(keys.exact in exact for keys in held_out),
        "digit_blind": sum(keys.digit_blind in blind for keys in held_out),
    }


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
