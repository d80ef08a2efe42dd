"""Which arm another one is held against: the same training and the same judging, but rows drawn at random."""

from collections.abc import Mapping

from s2l_ray.budgets import Budget, parse_budget
from s2l_ray.config import Config


def baselines(arms: Mapping[str, Config]) -> dict[str, str]:
    """Return arm -> its baseline, of those that have one.

    Candidates are the arms that draw at random, or the first of all where none does; they have none themselves. A
    baseline trains and is judged as the arm is, but for seeds, for the order of the rows and for what else is measured;
    of several, one of the same data and budget comes before one of the same data, that before one of the same budget,
    and then the first.
    """
    random = [arm for arm, config in arms.items() if config.select.method == "random"]
    candidates = dict.fromkeys(random or list(arms)[:1])
    # A sweep lays out thousands of trials as arms: each is looked up, not held against every other.
    first: dict[tuple[str, str | None, Budget | None], str] = {}
    for arm in candidates:
        for key in _keys(arms[arm]):
            first.setdefault(key, arm)
    found = {}
    for arm in (arm for arm in arms if arm not in candidates):
        baseline = next((first[key] for key in _keys(arms[arm]) if key in first), None)
        if baseline is not None:
            found[arm] = baseline
    return found


def _keys(config: Config) -> list[tuple[str, str | None, Budget | None]]:
    """Return what a baseline has to have in common with an arm, the most first."""
    target = config.target.model_copy(update={"order": "shuffled", "seed": None})
    evaluate = config.evaluate.model_copy(update={"metrics": (), "batch_tokens": 1})
    same, data = repr((target, config.tokens, evaluate)), repr(config.examples)
    budget = parse_budget(config.select.budget)
    return [(same, data, budget), (same, data, None), (same, None, budget), (same, None, None)]
