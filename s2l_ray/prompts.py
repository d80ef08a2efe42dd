"""What held-out questions ask for beside their answer: one sentence behind the question, and nothing else.

Source: the evaluation of MAmmoTH (Yue et al., arXiv 2309.05653), as S2L (arXiv 2403.07384) uses it. It puts the bare
question into the prompt of alpaca for chain of thought, and " Let's write a program." behind it for program of thought.
Words for thoughts are those of Kojima et al. (arXiv 2205.11916).
"""

from collections.abc import Mapping, Sequence

from s2l_ray.config import PromptName
from s2l_ray.turns import LEARNED

INSTRUCTIONS: Mapping[PromptName, str] = {
    "plain": "",
    "step_by_step": "Let's think step by step.",
    "program": "Let's write a program.",
}


def with_instruction(turns: Sequence[tuple[str, str]], prompt: PromptName) -> list[tuple[str, str]]:
    """Return the turns of an example with an instruction, after a space, behind what is asked before the last answer.

    An example in which nothing is asked there, such as plain text, stays as it is.
    """
    asked = list(turns)
    answer = max((n for n, (role, _) in enumerate(turns) if role in LEARNED), default=0)
    before = answer - 1
    if prompt != "plain" and before >= 0 and turns[before][0] in ("user", "input"):
        role, content = asked[before]
        asked[before] = (role, f"{content} {INSTRUCTIONS[prompt]}")
    return asked
