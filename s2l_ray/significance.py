"""What several seeds say about two ways to select: paired differences, their intervals, and the verdict in words.

A seed is a repetition: everything else is equal, so scores are compared in pairs, and what both sides share (an easy
corpus, a lucky split) cancels. One seed proves nothing; the verdict then says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.judging.metrics import METRICS

CONFIDENCE = 0.95
SAME = 1e-9
"""Differences that are closer to one another than this share of them are the same number."""

Verdict = Literal["better", "worse", "not distinguishable", "too few seeds"]
Scores = Mapping[str, float]
"""Seed, as text -> score."""

LOWER_IS_BETTER = ("macro_loss", "micro_loss", "wrong_share")
HIGHER_IS_BETTER = (*(f"{mean}_{name}" for name in METRICS for mean in ("macro", "micro")), "tail_share")


def higher_is_better(metric: str) -> bool:
    """Return which way a metric is good.

    Raises:
        ConfigError: an unknown metric.
    """
    if metric not in LOWER_IS_BETTER + HIGHER_IS_BETTER:
        known = ", ".join(LOWER_IS_BETTER + HIGHER_IS_BETTER)
        raise ConfigError(f"found the metric {metric!r}, expected one of {known}.")
    return metric in HIGHER_IS_BETTER


def metric_title(metric: str) -> str:
    """Return a metric as a table heads it, with its unit."""
    return metric.replace("_", " ") + (" [nats/token]" if metric.endswith("loss") else "")


@dataclass(frozen=True)
class Comparison:
    """Two settings over the same seeds.

    Attributes:
        effect: mean of the paired differences, in the metric's unit; above 0 is better, also for losses.
        low, high: interval of the effect; None with fewer than two pairs, or where all differ alike.
        p_value: two-sided, of no difference; None likewise.
        p_adjusted: corrected for the number of comparisons of a family; None before that.
    """

    name: str
    baseline: str
    metric: str
    pairs: int
    mean: float
    baseline_mean: float
    effect: float
    low: float | None
    high: float | None
    p_value: float | None
    p_adjusted: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What may be claimed: by the corrected p-value where there is one, else by the interval."""
        if self.low is None or self.high is None or self.p_value is None:
            return "too few seeds"
        p_value = self.p_value if self.p_adjusted is None else self.p_adjusted
        clear = p_value < 1 - CONFIDENCE if self.p_adjusted is not None else self.low > 0 or self.high < 0
        if not clear:
            return "not distinguishable"
        return "better" if self.effect > 0 else "worse"

    @property
    def sentence(self) -> str:
        """The comparison as a report prints it."""
        unit = " nats/token" if self.metric.endswith("loss") else ""
        what = f"{self.name}: {self.metric.replace('_', ' ')} {self.mean:.3f} against {self.baseline_mean:.3f}{unit}"
        seeds = f"{self.pairs} paired seed{'s' if self.pairs != 1 else ''}"
        if self.low is None or self.high is None:
            why = "one seed proves nothing" if self.pairs == 1 else "all differ alike, which tells nothing of chance"
            return f"{what} over {seeds}: {why}."
        gain = f"gain {self.effect:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        ending = {
            "better": f"better than {self.baseline}",
            "worse": f"worse than {self.baseline}",
            "not distinguishable": f"not distinguishable from {self.baseline}",
        }[self.verdict]
        return f"{what}, {gain} over {seeds}: {ending}."


def compare_paired(scores: Scores, baseline_scores: Scores, *, name: str, baseline: str, metric: str) -> Comparison:
    """Compare two settings over the seeds that both have.

    Args:
        scores: seed -> score of the one.
        baseline_scores: seed -> score of the other.

    Raises:
        ConfigError: no seed in common, or an unknown metric.
        DataError: a score that is NaN or infinite.
    """
    seeds = [seed for seed in scores if seed in baseline_scores]
    if not seeds:
        raise ConfigError(f"{name} and {baseline} have no seed in common; expected at least one. Sweep the same seeds.")
    ours = np.array([scores[seed] for seed in seeds], np.float64)
    theirs = np.array([baseline_scores[seed] for seed in seeds], np.float64)
    if not np.isfinite([ours, theirs]).all():
        raise DataError(f"{metric} of {name} or {baseline} is NaN or infinite for some seed; it cannot be compared.")
    difference = (ours - theirs) * (1 if higher_is_better(metric) else -1)
    low, high, p_value = _interval(difference)
    if len(seeds) > 1 and difference.any() and _are_alike(difference):
        # One measurement, again and again: a seed that decides nothing, or scores in coarse steps. No chance was seen.
        low = high = p_value = None
    return Comparison(
        name, baseline, metric, len(seeds), float(ours.mean()), float(theirs.mean()), float(difference.mean()),
        low, high, p_value,
    )  # fmt: skip


def _are_alike(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= SAME * abs(values.mean()))


def _interval(values: NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
    """Return the mean's t interval, and the p-value of a mean of 0."""
    from scipy import stats

    n, mean = len(values), float(values.mean())
    if n < 2:
        return None, None, None
    error = float(values.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean / error), n - 1))


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct a family of comparisons for their number; intervals stay those of each alone.

    Who tries ten settings finds one that looks better by chance. Comparisons without a p-value are left as they are.

    Source:
        Holm 1979.
    """
    known = [index for index, comparison in enumerate(comparisons) if comparison.p_value is not None]
    adjusted = dict(zip(known, holm([comparisons[index].p_value or 0.0 for index in known]), strict=True))
    return [replace(comparison, p_adjusted=adjusted.get(index)) for index, comparison in enumerate(comparisons)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down rule, in the order given."""
    order = np.argsort(p_values, kind="stable")
    stepped = [(len(p_values) - place) * p_values[index] for place, index in enumerate(order)]
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped)) if len(p_values) else []
    return [float(p) for p in adjusted]


@dataclass(frozen=True)
class BudgetAdvice:
    """The smallest budget that will do.

    Attributes:
        recommended: the budget; None where nothing can be said.
        best: the budget with the best mean score.
        against: the recommended budget compared with what it was measured against.
        reason: why, for the reader, with how large a loss could hide.
    """

    recommended: Any
    best: Any
    against: Comparison | None
    reason: str


def recommend_budget(scores: Mapping[Any, Scores], *, metric: str, full: Scores | None = None) -> BudgetAdvice:
    """Recommend the smallest budget whose score is not distinguishable from full data's, or else from the best one's.

    Args:
        scores: budget -> seed -> score, the smallest budget first.
        full: seed -> score of full data, where it was tried.
    """
    sign = 1 if higher_is_better(metric) else -1
    most = max(len(by_seed) for by_seed in scores.values())
    with_most = (budget for budget, by_seed in scores.items() if len(by_seed) == most)
    best = max(with_most, key=lambda budget: sign * float(np.mean(list(scores[budget].values()))))
    if all(len(by_seed) < 2 for by_seed in scores.values()):
        return BudgetAdvice(
            None, best, None, f"{best} has the best {metric.replace('_', ' ')}, but one seed cannot tell budgets apart"
        )
    if len({score for by_seed in scores.values() for score in by_seed.values()}) == 1:
        said = f"every budget has the same {metric.replace('_', ' ')} with every seed, which tells nothing of budgets"
        return BudgetAdvice(None, best, None, said)
    references = [("full data", full)] if full else []
    references.append((f"budget {best}", scores[best]))
    for label, reference in references:
        unknown: list[Any] = []
        for budget, by_seed in scores.items():
            if label == f"budget {budget}":
                return BudgetAdvice(
                    budget, best, None, f"the best of all, and {_smaller(list(scores), budget, unknown)}"
                )
            if not set(by_seed) & set(reference):
                unknown.append(budget)  # trials that failed have left them nothing to be compared by
                continue
            found = compare_paired(by_seed, reference, name=f"budget {budget}", baseline=label, metric=metric)
            if found.verdict in ("not distinguishable", "better"):
                return BudgetAdvice(budget, best, found, _hiding(found))
            if found.verdict == "too few seeds":
                unknown.append(budget)
    raise AssertionError("the best budget is not distinguishable from itself")


def _smaller(budgets: Sequence[Any], budget: Any, unknown: Sequence[Any]) -> str:
    """Say what is known of the budgets below one that no smaller one comes up to."""
    if budget == budgets[0]:
        return "no smaller budget was tried"
    if unknown:
        named = ", ".join(map(str, unknown))
        return f"{named} could not be compared with it, for want of seeds in common that differ"
    return "every smaller one is worse"


def _hiding(found: Comparison) -> str:
    what = found.metric.replace("_", " ")
    if found.verdict == "better":
        return f"the smallest budget that is not worse than {found.baseline}; it is better ({what} {found.effect:+.3f})"
    if found.low == found.high == 0:
        return f"the smallest budget that scores what {found.baseline} does, with every one of {found.pairs} seeds"
    return (
        f"the smallest budget not distinguishable from {found.baseline} over {found.pairs} seeds; "
        f"a loss of up to {max(0.0, -(found.low or 0.0)):.3f} in {what} could hide behind that"
    )


def interval_of_mean(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean over seeds with its t interval; none for fewer than two, or where no chance was seen."""
    array = np.asarray(values, np.float64)
    if _are_alike(array):
        return float(array.mean()), None, None
    low, high, _ = _interval(array)
    return float(array.mean()), low, high
