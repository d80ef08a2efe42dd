"""How the proxy learned, the clusters that came of it, and whether the method's theory shows in them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s2l_ray.report.blocks import Bar, Bars, Block, Facts, Interval, Intervals, Lines, Section, Series, Table, Value
from s2l_ray.report.run_facts import ClusterFacts

CHANCE = 0.05
"""Differences with a p-value above this are not told from chance."""
ENOUGH = 0.9
"""Share of the best agreement that can be had, from which fewer checkpoints would have done."""


def sections_of(clustering: ClusterFacts, many: bool) -> Iterator[Section]:
    """Return the sections of a clustering; where there are many, their titles name its arms."""
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
