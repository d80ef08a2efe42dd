"""The page of a run: what was selected and why, whether it was worth it, and what speaks against believing it.

Nothing here reads a file. Every sentence that judges says by how much.
"""

from collections.abc import Sequence

from s2l_ray.costs import Work
from s2l_ray.log import duration
from s2l_ray.report.blocks import (
    Bar,
    Bars,
    Block,
    Code,
    ExampleRows,
    Facts,
    Interval,
    Intervals,
    Number,
    Page,
    Section,
    Table,
    Text,
    Value,
    Warnings,
)
from s2l_ray.report.cluster_sections import sections_of
from s2l_ray.report.run_facts import ArmFacts, RunFacts
from s2l_ray.report.run_warnings import warnings_of
from s2l_ray.significance import HIGHER_IS_BETTER, LOWER_IS_BETTER, metric_title


def run_page(facts: RunFacts) -> Page:
    """Lay out the report of a run."""
    sections = [
        _outcome(facts),
        Section("Warnings", "What to know before believing the rest.", [Warnings(warnings_of(facts))]),
    ]
    sections += [_selection(facts), _composition(facts), _costs(facts)]
    for clustering in facts.clusterings:
        sections += sections_of(clustering, many=len(facts.clusterings) > 1)
    if facts.examples:
        sections.append(Section("Rows", "Rows of the data, with why they stand here.", [ExampleRows(facts.examples)]))
    sections.append(_reproduce(facts))
    return Page(f"Which part of this data is worth it? {facts.name}", _subtitle(facts), sections)


def _subtitle(facts: RunFacts) -> str:
    first = facts.arms[0]
    arms = f"{len(facts.arms)} arm{'s' * (len(facts.arms) > 1)}"
    return f"{arms} on {first.rows_pool:,} rows, judged on {facts.rows_held_out:,} held-out rows"


def _outcome(facts: RunFacts) -> Section:
    names = list(dict.fromkeys(name for arm in facts.arms for name in arm.metrics))
    arms = [arm.name for arm in facts.arms]
    texts: list[list[Value]] = [
        [
            metric_title(name),
            *(_shown(name, arm.metrics[name][0] if name in arm.metrics else None) for arm in facts.arms),
        ]
        for name in names
    ]
    blocks: list[Block] = [Table(["", *arms], texts, numeric=arms)]
    for metric in (name for name in names if name.startswith("macro_")):
        blocks.append(
            Intervals(
                [Interval(arm.name, *arm.metrics[metric]) for arm in facts.arms if metric in arm.metrics],
                metric_title(metric),
                caption=f"{metric_title(metric)}, with 95 % intervals over held-out rows",
            )
        )
        of_rows = metric.removeprefix("macro_")
        gained = [
            Interval(f"{mean}: {arm.name} over {arm.baseline}", *arm.gains[f"{mean}_{of_rows}"])
            for arm in facts.arms
            for mean in ("macro", "micro")
            if f"{mean}_{of_rows}" in arm.gains
        ]
        if gained:
            title = metric_title(of_rows)
            caption = f"Gain in {title}, row by row, with 95 % intervals; above 0 is better"
            blocks.append(Intervals(gained, f"gain in {title}", 0.0, "no gain", caption))
    lead = (
        "Intervals say how sure each model's score is and, where two models are compared row by row, how sure their "
        "difference is, each by itself. How sure the selector is takes several seeds: one run proves nothing about a "
        "method, whatever these intervals leave out; `s2l sweep` compares over seeds."
    )
    return Section("Outcome", lead, blocks)


def _shown(metric: str, value: Number) -> Value:
    if value is None:
        return None
    return int(value) if metric in ("rows", "response_tokens") else f"{value:.3f}"


def _selection(facts: RunFacts) -> Section:
    columns = ["arm", "method", "budget", "rows", "of the pool", "set aside", "why its rows"]
    rows: list[list[Value]] = [
        [arm.name, arm.method, arm.budget, arm.rows, f"{arm.rows / arm.rows_pool:.1%}", arm.rows_set_aside, arm.reason]
        for arm in facts.arms
    ]
    table = Table(columns, rows, numeric=("rows", "of the pool", "set aside"))
    return Section("Selection", "What each arm took, and by which rule.", [table])


def _composition(facts: RunFacts) -> Section:
    blocks: list[Block] = []
    for name in dict.fromkeys(part.name for arm in facts.arms for part in arm.composition):
        parts = [(arm, p) for arm in facts.arms for p in arm.composition if p.name == name and arm.rows < arm.rows_pool]
        if not parts or len(parts[0][1].groups) < 2:
            continue
        labels = [label for label, _, _ in parts[0][1].groups]
        pool = {label: share for label, share, _ in parts[0][1].groups}
        taken = [{label: share for label, _, share in part.groups} for _, part in parts]
        bars = [Bar(label, [pool[label], *(shares.get(label, 0.0) for shares in taken)]) for label in labels]
        names = ["pool", *(arm.name for arm, _ in parts)]
        blocks.append(Bars(names, bars, "share of the rows", caption=f"By {name}"))
    return Section("Composition", "What the pool is made of, and what the subsets are made of.", blocks)


def _costs(facts: RunFacts) -> Section:
    rows: list[list[Value]] = []
    for arm in facts.arms:
        for work in (*arm.ledger.selecting, arm.ledger.target):
            rows.append([arm.name, work.name, *_amounts(work)])
        basis = "measured" if arm.ledger.full_is_measured else "estimated"
        rows.append([arm.name, f"the target on all rows ({basis})", *_amounts(arm.ledger.full)])
    table = Table(["arm", "work", "time", "tokens", "FLOPs"], rows, numeric=("time", "tokens", "FLOPs"))
    lead = (
        "Seconds as measured where each piece ran, parts that arms share counted in every one of them; FLOPs are "
        "estimates, 6 per parameter and token in training and 2 in a forward pass."
    )
    return Section(
        "Cost", lead, [table, Text([_break_even(arm) for arm in facts.arms if len(arm.ledger.selecting) > 1])]
    )


def _amounts(work: Work) -> list[Value]:
    return [duration(work.seconds), *(None if x is None else f"{x:.3g}" for x in (work.tokens, work.flops))]


def _break_even(arm: ArmFacts) -> str:
    ledger = arm.ledger
    if ledger.break_even is None:
        return (
            f"{arm.name}: selecting took {duration(ledger.selecting_seconds)}; a fine-tuning takes as long on the "
            "subset as on all rows, so there is no break-even."
        )
    ratio = ledger.break_even_ratio
    at = "" if ratio is None else f", or after one whose target costs {ratio:.1f} times the proxy's FLOPs per token"
    return (
        f"{arm.name}: selecting took {duration(ledger.selecting_seconds)}, a fine-tuning on the subset saves "
        f"{duration(ledger.saved_seconds)}: it has paid after {ledger.break_even:.1f} fine-tunings{at}."
    )


def _reproduce(facts: RunFacts) -> Section:
    blocks: list[Block] = [Code(facts.text), Code(f"s2l run {facts.name}.yaml"), Facts(facts.provenance)]
    return Section("How to reproduce", "The experiment as a file, and what it was made with.", blocks)


def metric_order(metrics: Sequence[str]) -> list[str]:
    """Return metrics with those that judge first."""
    judged = [metric for metric in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if metric in metrics]
    return [*judged, *(metric for metric in metrics if metric not in judged)]
