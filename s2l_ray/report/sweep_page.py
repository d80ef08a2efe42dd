"""The page of a sweep: which setting is best, what may be claimed of the others, and which budget to take."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from s2l_ray.log import duration
from s2l_ray.report.blocks import (
    Block,
    Code,
    Interval,
    Intervals,
    Lines,
    Mark,
    Page,
    Section,
    Series,
    Table,
    Text,
    Value,
    Warnings,
)
from s2l_ray.significance import BudgetAdvice, metric_title
from s2l_ray.sweep import setting_label
from s2l_ray.trials import BUDGET, Setting, SweepResult, lines, same_results

FEW_SEEDS = 3
"""Fewer repetitions than this are warned about."""


def sweep_page(result: SweepResult) -> Page:
    """Lay out the report of a sweep."""
    sweep = result.sweep
    sections = [
        Section("Outcome", "What the trials came to, and what may be claimed.", [Text(_outcome(result))]),
        Section("Warnings", "What to know before believing the rest.", [Warnings(list(_warnings(result)))]),
        _settings(result),
        *_comparisons(result),
        *_budgets(result),
        _costs(result),
        Section(
            "How to reproduce",
            "The sweep as a file.",
            [Code(sweep.text), Code(f"s2l sweep {sweep.name}.yaml")],
        ),
    ]
    finished = sum(outcome.status == "finished" for outcome in result.outcomes)
    subtitle = f"{finished} of {len(result.outcomes)} trials finished, {len(result.settings)} settings"
    return Page(f"Which settings are worth it? {sweep.name}", subtitle, sections)


def _outcome(result: SweepResult) -> list[str]:
    said = [next(lines(result))]
    comparisons = result.comparisons()
    if comparisons:
        verdicts = Counter(comparison.verdict for comparison in comparisons)
        counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        baseline = setting_label(result.sweep.config.baseline)
        said.append(
            f"{len(comparisons)} settings against {baseline} in {metric_title(result.sweep.config.metric)}: {counted}."
        )
    return said


def _warnings(result: SweepResult) -> Iterator[str]:
    fewest = min((len(setting.scores) for setting in result.settings), default=0)
    if fewest < FEW_SEEDS:
        yield (
            f"Some settings have {fewest} seed{'s' * (fewest != 1)}: differences between them may be luck. Three are "
            "the least for a comparison, ten for a claim."
        )
    yield from same_results(result)
    for outcome in result.outcomes:
        if outcome.error:
            yield f"Trial {outcome.trial.name} ({setting_label(outcome.trial.values)}) failed: {outcome.error}"


def _settings(result: SweepResult) -> Section:
    names = [parameter.name for parameter in result.sweep.parameters if not parameter.is_seed]
    best = result.best
    rows: list[list[Value]] = []
    for setting in result.settings:
        value, low, high = setting.mean
        interval = None if low is None or high is None else f"{low:.3f} to {high:.3f}"
        values = [str(setting.values[name]) for name in names]
        rows.append([*values, f"{value:.3f}", interval, len(setting.scores)])
    highlight = [i for i, setting in enumerate(result.settings) if best is not None and setting.label == best.label]
    columns = [*names, metric_title(result.sweep.config.metric), "95 % over seeds", "seeds"]
    table = Table(columns, rows, numeric=columns[len(names) :], highlight=highlight)
    return Section("Settings", "Means over seeds, each with its t interval; the best is marked.", [table])


def _comparisons(result: SweepResult) -> Iterator[Section]:
    baseline = setting_label(result.sweep.config.baseline)
    blocks: list[Block] = []
    for metric in dict.fromkeys(comparison.metric for comparison in result.all_comparisons()):
        found = result.comparisons(metric)
        rows = [Interval(c.name, c.effect, c.low, c.high) for c in found]
        caption = f"{metric.replace('_', ' ')}, gain over {baseline}"
        blocks.append(Intervals(rows, "gain", reference=0.0, reference_label=baseline, caption=caption))
        verdicts: list[list[Value]] = [
            [c.name, c.pairs, None if c.p_adjusted is None else f"{c.p_adjusted:.3f}", c.verdict] for c in found
        ]
        blocks.append(
            Table(["setting", "seeds", "p, corrected", "verdict"], verdicts, numeric=("seeds", "p, corrected"))
        )
    if blocks:
        lead = (
            f"Differences to {baseline}, paired by seed; above 0 is better for every metric. Intervals are those of "
            "each comparison alone, verdicts are corrected for their number (Holm)."
        )
        yield Section(f"Against {baseline}", lead, blocks)


def _budgets(result: SweepResult) -> Iterator[Section]:
    advice = result.budgets()
    if not advice:
        return
    said = [f"{label}: {_said(found)}" for label, found in advice.items()]
    groups: dict[str, list[Setting]] = {}
    for setting in result.settings:
        label = setting_label(setting.without(BUDGET))
        if label in advice and isinstance(setting.values.get(BUDGET), int | float):
            groups.setdefault(label, []).append(setting)
    blocks: list[Block] = [Text(said)]
    if groups:
        blocks.append(_curve(groups, advice, metric_title(result.sweep.config.metric)))
    lead = "The smallest budget whose score is not distinguishable from full data's, or else from the best one's."
    yield Section("Budget", lead, blocks)


def _said(advice: BudgetAdvice) -> str:
    chosen = "no recommendation" if advice.recommended is None else f"take {advice.recommended}"
    return f"{chosen}; {advice.reason}."


def _curve(groups: Mapping[str, Sequence[Setting]], advice: Mapping[str, BudgetAdvice], metric: str) -> Lines:
    series, marks = [], []
    for label, settings in groups.items():
        ordered = sorted(settings, key=lambda setting: float(setting.values[BUDGET]))
        means = [setting.mean for setting in ordered]
        x = [float(setting.values[BUDGET]) for setting in ordered]
        series.append(Series(label, x, [m[0] for m in means], [m[1] for m in means], [m[2] for m in means]))
        for at, (value, _, _) in zip(x, means, strict=True):
            if advice[label].recommended == at:
                marks.append(Mark(at, value, f"recommended: {at:g}"))
    return Lines(series, "budget", metric, marks=marks, caption="Score over budget, with 95 % intervals over seeds")


def _costs(result: SweepResult) -> Section:
    rows: list[list[Value]] = []
    for setting in result.settings:
        mine = [o.seconds for o in result.outcomes if setting_label(o.trial.setting) == setting.label and o.seconds]
        means = [sum(seconds.get(part, 0.0) for seconds in mine) / max(1, len(mine)) for part in ("select", "train")]
        rows.append([setting.label, *(duration(seconds) for seconds in means)])
    lead = (
        "What one trial costs: selecting (proxy, scoring, clustering, shared by trials that need the same), the target."
    )
    return Section("Cost", lead, [Table(["setting", "select", "train"], rows, numeric=("select", "train"))])
