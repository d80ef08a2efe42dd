"""The page of a run: what was selected and why, whether it was worth it, and what speaks against believing it.

`RunFacts` is what the stage has read; nothing here reads a file. Every sentence that judges says by how much.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s2l_ray.clustering.guard import NOT_LEARNED, SUSPICIOUS_SHARE
from s2l_ray.costs import Ledger, Work
from s2l_ray.log import duration
from s2l_ray.overlap import NGRAM_WORDS
from s2l_ray.report.blocks import (
    Bar,
    Bars,
    Block,
    Code,
    ExampleRow,
    ExampleRows,
    Facts,
    Interval,
    Intervals,
    Lines,
    Number,
    Page,
    Section,
    Series,
    Table,
    Text,
    Value,
    Warnings,
)
from s2l_ray.significance import HIGHER_IS_BETTER, LOWER_IS_BETTER, metric_title

WEAK_CORRELATION = 0.3
"""A rank correlation between proxy and target below this is warned about: the method's known way to fail."""
CHANCE = 0.05
ENOUGH = 0.9
"""Share of the best agreement that can be had, from which fewer checkpoints would have done."""


@dataclass(frozen=True)
class Composition:
    """How a property is spread before and after.

    Attributes:
        groups: label, share of the pool, share of the subset.
    """

    name: str
    groups: Sequence[tuple[str, float, float]]


@dataclass(frozen=True)
class Centroid:
    """One cluster."""

    name: str
    size: int
    taken: int
    losses: Sequence[float]


@dataclass(frozen=True)
class ClusterFacts:
    """A clustering, of one arm or of several that share it.

    Attributes:
        steps: the checkpoints that were clustered; empty where hidden states were.
        inertia: per iteration, over all strata.
        set_aside: what the guard found, by reason; empty without one.
    """

    arms: Sequence[str]
    steps: Sequence[int]
    centroids: Sequence[Centroid]
    inertia: Sequence[float]
    set_aside: Mapping[str, int]
    rows: int
    diagnostics: Mapping[str, Any]


@dataclass(frozen=True)
class ArmFacts:
    """One arm.

    Attributes:
        metrics: metric -> value and its interval over held-out rows.
        reason: why its rows were taken, in words.
    """

    name: str
    method: str
    budget: str
    reason: str
    rows: int
    rows_pool: int
    rows_set_aside: int
    metrics: Mapping[str, tuple[Number, Number, Number]]
    composition: Sequence[Composition]
    ledger: Ledger


@dataclass(frozen=True)
class RunFacts:
    """A run, read.

    Attributes:
        overlap: grade -> held-out rows that are like a training row; of `rows_held_out`.
        examples: rows of the data, none where the config keeps them out.
        provenance: what -> digest or version.
    """

    name: str
    arms: Sequence[ArmFacts]
    clusterings: Sequence[ClusterFacts]
    overlap: Mapping[str, int]
    rows_held_out: int
    examples: Sequence[ExampleRow]
    text: str
    provenance: Sequence[tuple[str, Value]] = field(default_factory=tuple)


def run_page(facts: RunFacts) -> Page:
    """Lay out the report of a run."""
    sections = [
        _outcome(facts),
        Section("Warnings", "What to know before believing the rest.", [Warnings(_warnings(facts))]),
    ]
    sections += [_selection(facts), _composition(facts), _costs(facts)]
    for clustering in facts.clusterings:
        sections += _clustering(clustering, many=len(facts.clusterings) > 1)
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
    lead = (
        "Intervals say how sure each model's score is. How sure the selector is takes several seeds: one run "
        "proves nothing about a method, whether these intervals overlap or not; `s2l sweep` compares over seeds."
    )
    return Section("Outcome", lead, blocks)


def _shown(metric: str, value: Number) -> Value:
    if value is None:
        return None
    return int(value) if metric in ("rows", "response_tokens") else f"{value:.3f}"


def _warnings(facts: RunFacts) -> list[str]:
    found = [*_warnings_of_data(facts)]
    for arm in facts.arms:
        found += _warnings_of_arm(arm)
    for clustering in facts.clusterings:
        found += _warnings_of_clustering(clustering)
    return found


def _warnings_of_data(facts: RunFacts) -> Iterator[str]:
    if facts.overlap.get("ngram"):
        exact, digits, ngram = (facts.overlap.get(grade, 0) for grade in ("exact", "digit_blind", "ngram"))
        yield (
            f"Of {facts.rows_held_out:,} held-out prompts {exact} stand in the training data word for word, {digits} "
            f"up to their numbers, and {ngram} share {NGRAM_WORDS} words in a row with it. Scores on them say little."
        )
    if len(facts.arms) > 1 and not any(arm.method == "random" for arm in facts.arms):
        yield (
            "No arm draws at random, so nothing says whether selecting did any good. "
            "Add `random: {select.method: random}`."
        )


def _warnings_of_arm(arm: ArmFacts) -> Iterator[str]:
    ledger = arm.ledger
    if ledger.break_even is not None and ledger.break_even > 1:
        yield (
            f"{arm.name}: selecting took {duration(ledger.selecting_seconds)} and saves "
            f"{duration(ledger.saved_seconds)} on one fine-tuning: it costs more than "
            f"it saves until {ledger.break_even:.1f} of them."
        )
    elif len(ledger.selecting) > 1 and ledger.break_even is None:
        yield (
            f"{arm.name}: selecting took {duration(ledger.selecting_seconds)} and saves no time, as the target takes "
            "the same steps on any subset. What it can gain is a better target."
        )
    for part in arm.composition:
        for label, pool, subset in part.groups:
            if part.name == "labelled wrong" and label == "wrong" and subset > 1.5 * pool:
                yield f"{arm.name}: {subset:.1%} of its rows are wrong, {pool:.1%} of the pool: it amplifies noise."


def _warnings_of_clustering(clustering: ClusterFacts) -> Iterator[str]:
    where, found = ", ".join(clustering.arms), clustering.diagnostics
    not_learned = clustering.set_aside.get(NOT_LEARNED, 0)
    share = not_learned / max(1, clustering.rows + not_learned)  # copies left out, as the guard does
    if share > SUSPICIOUS_SHARE:
        yield (
            f"{where}: the guard set {share:.0%} of the rows aside; the proxy was trained too little, or the data is "
            "hard."
        )
    health = found.get("health", {})
    if health.get("rising", 0) > 0.5 * max(1, sum(health.values())):
        yield f"{where}: the loss of more than half of the rows rose; the proxy's training went wrong. Lower its rate."
    correlation = (found.get("correlation") or {}).get("unseen")
    if correlation is not None and correlation < WEAK_CORRELATION:
        yield (
            f"{where}: proxy and target find different rows hard (rank correlation {correlation:.2f}); a proxy too "
            "unlike the target is the method's known way to fail."
        )
    for check in found.get("gradients", ()):
        if check["p_value"] is not None and check["p_value"] > CHANCE:
            yield (
                f"{where}: gradients of the {check['model']} at step {check['step']} are no more alike within clusters "
                "than between them; what the method rests on does not show here."
            )


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


def _clustering(clustering: ClusterFacts, many: bool) -> Iterator[Section]:
    of = f" ({', '.join(clustering.arms)})" if many else ""
    found = clustering.diagnostics
    yield Section(f"Trajectories{of}", _health_lead(found), _trajectory_blocks(clustering))
    yield Section(f"Clusters{of}", _clusters_lead(found), _cluster_blocks(clustering))
    if found.get("gradients"):
        yield Section(f"The theory, tried{of}", _theory_lead(found["gradients"]), _theory_blocks(found["gradients"]))
    if found.get("correlation"):
        yield Section(f"Proxy against target{of}", _correlation_lead(found["correlation"]), [])


def _health_lead(found: Mapping[str, Any]) -> str:
    roughness = found.get("roughness")
    rough = "" if roughness is None else f" The median trajectory goes {roughness:.2f} times its net way (1: straight)."
    return f"The loss of each cluster's centre over the proxy's training.{rough}"


def _trajectory_blocks(clustering: ClusterFacts) -> list[Block]:
    blocks: list[Block] = []
    if clustering.steps:
        series = [Series(c.name, clustering.steps, c.losses, weight=c.size) for c in clustering.centroids]
        blocks.append(
            Lines(series, "step", "loss [nats/token]", weight_label="rows", caption="Centroids, thick where large")
        )
    health = clustering.diagnostics.get("health")
    if health:
        total = max(1, sum(health.values()))
        rows = [Bar(name, [count / total]) for name, count in health.items()]
        blocks.append(Bars(["rows"], rows, "share of the rows", caption="How rows were learned"))
    if clustering.set_aside:
        blocks.append(Facts([(f"set aside as {reason}", count) for reason, count in clustering.set_aside.items()]))
    return blocks


def _clusters_lead(found: Mapping[str, Any]) -> str:
    check = found.get("clusterings") or {}
    parts = []
    if check.get("silhouette") is not None:
        parts.append(f"Mean silhouette {check['silhouette']:.2f} on {check['rows']:,} rows (1: apart, 0: touching).")
    prefixes, ceiling = check.get("prefixes") or (), check.get("ceiling")
    if prefixes and ceiling:
        enough = next((p["checkpoints"] for p in prefixes if p["adjusted_rand"] >= ENOUGH * ceiling), None)
        says = f"the first {enough} would have done" if enough else "none could have been left out"
        parts.append(
            f"Two clusterings of all checkpoints from different starts agree to {ceiling:.2f} (adjusted Rand); "
            f"measured by that, {says}."
        )
    return " ".join(parts) or "Sizes, and how the search went."


def _cluster_blocks(clustering: ClusterFacts) -> list[Block]:
    sizes = sorted(clustering.centroids, key=lambda c: -c.size)
    place = list(range(1, len(sizes) + 1))
    blocks: list[Block] = [
        Lines(
            [Series("rows", place, [c.size for c in sizes]), Series("taken", place, [c.taken for c in sizes])],
            "cluster, by size",
            "rows",
            caption="Rows of each cluster, and how many were taken",
        )
    ]
    if len(clustering.inertia) > 1:
        iterations = list(range(1, len(clustering.inertia) + 1))
        blocks.append(
            Lines(
                [Series("inertia", iterations, clustering.inertia)], "iteration", "inertia [nats^2]", caption="Search"
            )
        )
    check = clustering.diagnostics.get("clusterings") or {}
    if check.get("prefixes"):
        x = [p["checkpoints"] for p in check["prefixes"]]
        agreement = Series("agreement with all", x, [p["adjusted_rand"] for p in check["prefixes"]])
        ceiling = [Series("two starts", x, [check["ceiling"]] * len(x))] if check.get("ceiling") is not None else []
        caption = "Clusters of the first checkpoints alone, against those of all"
        blocks.append(Lines([agreement, *ceiling], "checkpoints", "adjusted Rand", caption=caption))
    return blocks


def _theory_lead(checks: Sequence[Mapping[str, Any]]) -> str:
    clear = [c for c in checks if c["p_value"] is not None and c["p_value"] <= CHANCE]
    says = (
        "it holds here for every model looked at"
        if len(clear) == len(checks)
        else f"it shows for {len(clear)} of {len(checks)} models looked at"
    )
    return (
        f"Rows of one cluster should have alike gradients: {says}. "
        "Random labels would give the same cosine within and between."
    )


def _theory_blocks(checks: Sequence[Mapping[str, Any]]) -> list[Block]:
    rows: list[list[Value]] = [
        [
            f"{c['model']}, step {c['step']}",
            f"{c['within']:.3f}",
            f"{c['between']:.3f}",
            None if c["p_value"] is None else f"{c['p_value']:.3f}",
            c["rows"],
            c["pairs_within"],
            "exact" if c["exact"] else "sketched",
        ]
        for c in checks
    ]
    columns = ["model", "within clusters", "between", "p by chance", "rows", "pairs within", "gradients"]
    gaps = [
        Interval(f"{c['model']}, step {c['step']}", c["within"] - c["between"], c["low"], c["high"]) for c in checks
    ]
    return [
        Table(columns, rows, numeric=columns[1:6], caption="Mean cosine of two rows' gradients"),
        Intervals(gaps, "cosine within minus between", reference=0.0, reference_label="no difference"),
    ]


def _correlation_lead(correlation: Mapping[str, Any]) -> str:
    def said(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.2f}"

    return (
        f"Rank correlation of proxy's and target's losses after training: {said(correlation['all'])} over the sample, "
        f"{said(correlation['unseen'])} over the {correlation['rows_unseen']} rows that the target was not trained on. "
        "Near 1, the proxy finds the same rows hard as the target does."
    )


def _reproduce(facts: RunFacts) -> Section:
    blocks: list[Block] = [Code(facts.text), Code(f"s2l run {facts.name}.yaml"), Facts(facts.provenance)]
    return Section("How to reproduce", "The experiment as a file, and what it was made with.", blocks)


def metric_order(metrics: Sequence[str]) -> list[str]:
    """Return metrics with those that judge first."""
    judged = [metric for metric in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if metric in metrics]
    return [*judged, *(metric for metric in metrics if metric not in judged)]
