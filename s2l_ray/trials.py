"""What the trials of a sweep came to: a table, the best setting, comparisons with the baseline, a budget to take."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from s2l_ray.significance import (
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    BudgetAdvice,
    Comparison,
    compare_paired,
    corrected,
    higher_is_better,
    interval_of_mean,
    recommend_budget,
)
from s2l_ray.sweep import ARM, Parameter, Sweep, Trial, setting_label

BUDGET = "select.budget"
CHOOSING = (ARM, "select.method", BUDGET)
"""Parameters that decide which rows are taken, and nothing of what full data would score."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        metrics: metric -> score; empty where it did not finish.
        digests: artifact -> digest of what it made.
        seconds: part of the work -> seconds.
        error: why it failed; None where it finished, or was stopped for being among the worse.
    """

    trial: Trial
    metrics: Mapping[str, float] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def status(self) -> str:
        """`finished`, `failed`, or `stopped` by the search before it began."""
        return "finished" if self.metrics else "failed" if self.error else "stopped"


@dataclass(frozen=True)
class Setting:
    """The finished repetitions of one setting.

    Attributes:
        values: parameter -> value.
        scores: seeds, as text -> score in the sweep's metric.
        different: results that are not the same to the last bit; fewer than seeds where a seed decides nothing.
    """

    label: str
    values: Mapping[str, Any]
    scores: Mapping[str, float]
    different: int

    def without(self, *names: str) -> dict[str, Any]:
        """Return the values of the other parameters."""
        return {name: value for name, value in self.values.items() if name not in names}

    @property
    def mean(self) -> tuple[float, float | None, float | None]:
        """Mean score over seeds, with its 95 % interval."""
        return interval_of_mean(list(self.scores.values()))


@dataclass(frozen=True)
class SweepResult:
    """The end of a sweep."""

    sweep: Sweep
    outcomes: tuple[Outcome, ...]

    @cached_property
    def settings(self) -> list[Setting]:
        """Settings with at least one finished trial, in order, scored in the sweep's metric."""
        return _settings(self.outcomes, self.sweep.config.metric)

    @property
    def best(self) -> Setting | None:
        """The setting with the best mean score among those with the most finished seeds."""
        settings = self.settings
        if not settings:
            return None
        most = max(len(setting.scores) for setting in settings)
        sign = 1 if higher_is_better(self.sweep.config.metric) else -1
        return max((s for s in settings if len(s.scores) == most), key=lambda setting: sign * setting.mean[0])

    def comparisons(self, metric: str | None = None) -> list[Comparison]:
        """Return every setting against the baseline that is equal in all else, corrected for their number.

        Args:
            metric: the sweep's own unless given.
        """
        baseline, metric = self.sweep.config.baseline, metric or self.sweep.config.metric
        settings = _settings(self.outcomes, metric)
        by_label = {setting.label: setting for setting in settings}
        found = []
        for setting in settings if baseline else ():
            other = by_label.get(setting_label({**setting.values, **baseline}))
            if other is not None and other.label != setting.label and set(other.scores) & set(setting.scores):
                name, against = setting.label, setting_label(baseline)
                found.append(compare_paired(setting.scores, other.scores, name=name, baseline=against, metric=metric))
        return corrected(found)

    def all_comparisons(self) -> list[Comparison]:
        """Return the comparisons in every metric that has a better and a worse."""
        measured = {metric for outcome in self.outcomes for metric in outcome.metrics}
        judged = (metric for metric in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if metric in measured)
        return [comparison for metric in judged for comparison in self.comparisons(metric)]

    def budgets(self) -> dict[str, BudgetAdvice]:
        """Return the recommended budget for every combination of the other parameters, where budgets were swept."""
        if not any(parameter.name == BUDGET for parameter in self.sweep.parameters):
            return {}
        takes_all = {setting_label(t.setting) for t in self.sweep.trials if t.config.select.method == "full"}
        # By all that does not choose rows: what full data scores beside a group.
        full: dict[str, Mapping[str, float]] = {}
        groups: dict[str, list[Setting]] = {}
        for setting in self.settings:
            if setting.label in takes_all:
                full.setdefault(setting_label(setting.without(*CHOOSING)), setting.scores)
            else:
                groups.setdefault(setting_label(setting.without(BUDGET)), []).append(setting)
        # What a budget came to, however it is written.
        taken = {setting.label: min(setting.scores.values()) for setting in _settings(self.outcomes, "rows")}
        for group in groups.values():
            group.sort(key=lambda setting: taken.get(setting.label, 0.0))
        return {
            label: recommend_budget(
                {setting.values[BUDGET]: setting.scores for setting in group},
                metric=self.sweep.config.metric,
                full=full.get(setting_label(group[0].without(*CHOOSING))),
            )
            for label, group in groups.items()
            if len(group) > 1
        }

    def table(self) -> pa.Table:
        """Return a row per trial: swept values, seeds, status, scores, cost, digests."""
        # A column has one type: where not all values are numbers, all are texts.
        texts = {
            p.name for p in self.sweep.parameters if any(not _is_number(o.trial.values[p.name]) for o in self.outcomes)
        }
        rows = [_row(outcome, self.sweep.parameters, texts) for outcome in self.outcomes]
        # All columns of any row: a trial that failed has no scores.
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})


def _settings(outcomes: Sequence[Outcome], metric: str) -> list[Setting]:
    found: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        if metric in outcome.metrics:
            by_seed = found.setdefault(setting_label(outcome.trial.setting), {})
            by_seed[setting_label(outcome.trial.seeds)] = outcome
    return [
        Setting(
            label,
            next(iter(by_seed.values())).trial.setting,
            {seed: outcome.metrics[metric] for seed, outcome in by_seed.items()},
            len({outcome.digests["scores"] for outcome in by_seed.values()}),
        )
        for label, by_seed in found.items()
    ]


def _row(outcome: Outcome, parameters: Sequence[Parameter], texts: Collection[str]) -> dict[str, Any]:
    values = outcome.trial.values
    return {
        "trial": outcome.trial.name,
        **{name: str(values[name]) if name in texts else values[name] for name in (p.name for p in parameters)},
        "status": outcome.status,
        "error": outcome.error,
        **{name: value if math.isfinite(value) else None for name, value in outcome.metrics.items()},
        **{f"{name}_seconds": value for name, value in outcome.seconds.items()},
        **{f"{name}_digest": value for name, value in outcome.digests.items()},
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lines(result: SweepResult) -> Iterator[str]:
    """Yield what a sweep has to say, a sentence a line."""
    best = result.best
    metric = result.sweep.config.metric.replace("_", " ")
    if best is not None:
        value, low, high = best.mean
        alike = "one seed" if len(best.scores) == 1 else f"all {len(best.scores)} seeds alike"
        interval = f" [{low:.3f}, {high:.3f}]" if low is not None else f" ({alike})"
        yield f"best: {best.label}: {metric} {value:.3f}{interval}"
    for comparison in result.comparisons():
        yield comparison.sentence
    yield from same_results(result)
    for label, advice in result.budgets().items():
        chosen = "no recommendation" if advice.recommended is None else f"recommended budget {advice.recommended}"
        yield f"{label}: {chosen}; {advice.reason}"


def same_results(result: SweepResult) -> Iterator[str]:
    """Yield a warning for every setting in which some seeds decide nothing: its spread is too small to judge by."""
    for setting in result.settings:
        if setting.different < (seeds := len(setting.scores)):
            yield (
                f"{setting.label}: {seeds} seeds, but only {setting.different} distinct result"
                f"{'s' * (setting.different > 1)}. Its spread, and every "
                "interval and p-value with it, shows less chance than there is: also sweep a seed that it depends on "
                "(target.seed always does)."
            )
