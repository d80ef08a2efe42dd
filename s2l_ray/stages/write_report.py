"""Everything about every arm -> `report`: `report.html`, one page that needs nothing else.

What an arm cost is measured, so two reports of the same run differ where it ran twice.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.clustering.guard import DUPLICATE, NOT_LEARNED
from s2l_ray.clustering.partition import window_columns
from s2l_ray.config import Config, ResourcesConfig
from s2l_ray.costs import ledger
from s2l_ray.diagnostics import HEALTH
from s2l_ray.labels import counted
from s2l_ray.log import without_user_info
from s2l_ray.report.blocks import ExampleRow, Value
from s2l_ray.report.html import render
from s2l_ray.report.run_facts import ArmFacts, Centroid, ClusterFacts, Composition, RunFacts, Scored
from s2l_ray.report.run_page import metric_order, run_page
from s2l_ray.stage_settings import ReportSettings
from s2l_ray.staged_output import StagedOutput

MOST_GROUPS = 20
"""Groups that a composition names; the rest is `other`."""
LONGEST_TEXT = 4_000
"""Characters of a row's text."""
IntArray = NDArray[np.int64]
Label = tuple[str, Callable[[pa.ChunkedArray], Any]]
"""A column, and what makes labels of it."""


@dataclass(frozen=True)
class Inputs:
    """The comparison, and of every arm what it is made of, by the names of the plan."""

    comparison: Artifact
    arms: Mapping[str, Mapping[str, Artifact]]

    @classmethod
    def from_named(cls, named: Mapping[str, Artifact]) -> "Inputs":
        """Take `NAME/ARM` apart."""
        arms: dict[str, dict[str, Artifact]] = {}
        for name, artifact in named.items():
            part, _, arm = name.partition("/")
            if arm:
                arms.setdefault(arm, {})[part] = artifact
        return cls(named["comparison"], arms)


def write_report(
    inputs: Inputs, config: ReportSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Read what there is and write the page."""
    facts = read_facts(inputs, config)
    record = output.write_bytes(schemas.REPORT, render(run_page(facts)).encode())
    return StageResult([record], {"arms": list(inputs.arms), "examples": len(facts.examples)})


def read_facts(inputs: Inputs, config: ReportSettings) -> RunFacts:
    """Read what the page says."""
    outcomes = _outcomes(inputs.comparison)
    full = next((made for arm, made in inputs.arms.items() if config.arms[arm].select.method == "full"), None)
    arms = [_arm(arm, made, full, config.arms[arm], outcomes[arm]) for arm, made in inputs.arms.items()]
    clustered: dict[str, list[str]] = {}
    for arm, made in inputs.arms.items():
        if "clusters" in made:
            clustered.setdefault(made["clusters"].uri + made["subset"].uri, []).append(arm)
    clusterings = [_clustering(names, inputs.arms[names[0]], config.arms[names[0]]) for names in clustered.values()]
    first = next(iter(inputs.arms.values()))
    return RunFacts(
        name=config.name,
        arms=arms,
        clusterings=clusterings,
        overlap=first["overlap"].summary["held_out"],
        rows_held_out=first["scores"].summary["rows"],
        examples=_examples(inputs.arms, config.report.examples),
        text=config.text,
        provenance=_provenance(inputs),
    )


@dataclass
class _Outcome:
    """What the comparison says of an arm, as `ArmFacts` has it."""

    metrics: dict[str, Scored] = field(default_factory=dict)
    baseline: str | None = None
    gains: dict[str, Scored] = field(default_factory=dict)


def _outcomes(comparison: Artifact) -> dict[str, _Outcome]:
    found: dict[str, _Outcome] = {arm: _Outcome() for arm in comparison.summary["arms"]}
    for row in comparison.read_table("arms.parquet").to_pylist():
        found[row["arm"]].metrics[row["metric"]] = (row["value"], row["low"], row["high"])
    for row in comparison.read_table("gains.parquet").to_pylist():
        found[row["arm"]].baseline = row["baseline"]
        found[row["arm"]].gains[row["metric"]] = (row["gain"], row["low"], row["high"])
    for outcome in found.values():
        outcome.metrics = {name: outcome.metrics[name] for name in metric_order(list(outcome.metrics))}
    return found


def _arm(
    arm: str,
    made: Mapping[str, Artifact],
    full: Mapping[str, Artifact] | None,
    config: Config,
    outcome: _Outcome,
) -> ArmFacts:
    summary, target = made["subset"].summary, config.target
    reason = made["subset"].read_table("subset.parquet", ["reason"]).column(0)[0].as_py()
    return ArmFacts(
        name=arm,
        method=config.select.method,
        budget="all" if config.select.method == "full" else str(config.select.budget),
        reason=reason,
        rows=summary["rows"],
        rows_pool=summary["rows_pool"],
        rows_set_aside=summary["rows_set_aside"],
        metrics=outcome.metrics,
        baseline=outcome.baseline,
        gains=outcome.gains,
        composition=_compositions(made),
        ledger=ledger(made, full, by_epochs=target.match == "epochs" and target.steps is None),
    )


class _Tally:
    """Rows by label, of the pool and of those that were taken, counted file by file: a pool has millions of rows."""

    def __init__(self, subset: Artifact) -> None:
        self._taken = np.sort(_taken(subset).to_numpy())
        self._counts: dict[str, tuple[Counter[str | None], Counter[str | None]]] = {}

    def count(
        self, artifact: Artifact, prefix: str, columns: Mapping[str, Label], among: IntArray | None = None
    ) -> None:
        """Count the rows of an artifact.

        Args:
            columns: what a label is called -> its column, and what makes the label of it.
            among: int64, ascending: the ids that count; all unless given.
        """
        for record in artifact.files(prefix):
            table = artifact.read_rows(record, columns=["example_id", *{column for column, _ in columns.values()}])
            id_N = table.column("example_id").to_numpy()
            counts_N = np.ones(len(id_N), np.bool_) if among is None else _is_among(id_N, among)
            both = (counts_N, counts_N & _is_among(id_N, self._taken))
            for name, (column, labelled) in columns.items():
                label = labelled(table.column(column))
                for counter, mask in zip(self._counts.setdefault(name, (Counter(), Counter())), both, strict=True):
                    counter.update(counted(label.filter(pa.array(mask))))

    def compositions(self) -> list[Composition]:
        """Return what was counted, but for labels that no row has."""
        return [_composition(name, *counts) for name, counts in self._counts.items() if counts[0].keys() - {None}]


def _compositions(made: Mapping[str, Artifact]) -> list[Composition]:
    tally, tokens = _Tally(made["subset"]), made["target_tokens"]
    pool = np.sort(tokens.read_table("tokens-", ["example_id"]).column(0).to_numpy())
    labels = {
        "source": ("source", _as_it_is),
        "skill": ("skill", _as_it_is),
        "labelled wrong": ("is_wrong", lambda wrong: pc.if_else(wrong, "wrong", "right")),
    }
    tally.count(made["examples"], "examples-", labels, among=pool)
    tally.count(tokens, "tokens-", {"response tokens": ("num_response_tokens", _length_classes)})
    if "diagnostics" in made:
        tally.count(made["diagnostics"], "health-", {"how the proxy learned it": ("health", _as_it_is)})
    return tally.compositions()


def _as_it_is(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column


def _taken(subset: Artifact) -> pa.Array:
    return subset.read_table("subset.parquet", ["example_id"]).column(0).combine_chunks()


def _is_among(id_N: IntArray, sorted_ids: IntArray) -> NDArray[np.bool_]:
    place_N = np.minimum(np.searchsorted(sorted_ids, id_N), max(0, len(sorted_ids) - 1))
    return sorted_ids[place_N] == id_N if len(sorted_ids) else np.zeros(len(id_N), np.bool_)


def _length_classes(lengths: pa.ChunkedArray) -> pa.DictionaryArray:
    """Name for each length the power of two below it."""
    power_N = np.floor(np.log2(np.maximum(lengths.to_numpy(), 1))).astype(np.int8)
    powers, class_N = np.unique(power_N, return_inverse=True)
    names = ["1" if power == 0 else f"{2**power} to {2 ** (power + 1) - 1}" for power in powers.tolist()]
    return pa.DictionaryArray.from_arrays(pa.array(class_N.astype(np.int32)), names)


def _composition(name: str, pool_counts: Counter[str | None], taken_counts: Counter[str | None]) -> Composition:
    pool, taken = _shares(pool_counts), _shares(taken_counts)
    order = sorted(
        pool, key=lambda group: (int(group.split()[0]) if name == "response tokens" else -pool[group], group)
    )
    shown = order[:MOST_GROUPS]
    groups = [(group, pool[group], taken.get(group, 0.0)) for group in shown]
    if rest := order[MOST_GROUPS:]:
        groups.append(("other", sum(pool[g] for g in rest), sum(taken.get(g, 0.0) for g in rest)))
    return Composition(name, groups)


def _shares(counts: Counter[str | None]) -> dict[str, float]:
    total = max(1, counts.total())
    return {"(none)" if label is None else label: count / total for label, count in counts.items()}


def _clustering(arms: Sequence[str], made: Mapping[str, Artifact], config: Config) -> ClusterFacts:
    clusters, subset = made["clusters"], made["subset"].read_table("subset.parquet", ["stratum", "cluster_id"])
    taken: dict[tuple[str, int], int] = {}
    for stratum, cluster in zip(*(subset.column(i).to_pylist() for i in range(2)), strict=True):
        taken[stratum, cluster] = taken.get((stratum, cluster), 0) + 1
    centroids = [
        Centroid(
            f"{row['stratum']} {row['cluster_id']}",
            row["size"],
            taken.get((row["stratum"], row["cluster_id"]), 0),
            row["centroid"],
        )
        for row in clusters.read_table("centroids.parquet").to_pylist()
    ]
    steps = np.array(made["trajectories"].summary["checkpoint_steps"])
    columns = window_columns(config.cluster.window, len(steps))
    reasons = (DUPLICATE, NOT_LEARNED)
    aside = {reason: clusters.summary.get(f"rows_{reason.replace(' ', '_')}") for reason in reasons}
    return ClusterFacts(
        arms=arms,
        steps=steps[columns].tolist() if config.cluster.features == "loss" else (),
        centroids=centroids,
        inertia=_inertia(clusters),
        set_aside={reason: count for reason, count in aside.items() if count is not None},
        rows=clusters.summary["rows"],
        diagnostics=made["diagnostics"].summary if "diagnostics" in made else {},
    )


def _inertia(clusters: Artifact) -> list[float]:
    """Return the inertia over all strata after each iteration; a stratum that has converged keeps its own."""
    by_stratum: dict[str, list[float]] = {}
    for row in clusters.read_table("iterations.parquet", ["stratum", "iteration", "inertia"]).to_pylist():
        by_stratum.setdefault(row["stratum"], []).append(row["inertia"])
    most = max(map(len, by_stratum.values()), default=0)
    return [sum(found[min(i, len(found) - 1)] for found in by_stratum.values()) for i in range(most)]


def _examples(arms: Mapping[str, Mapping[str, Artifact]], count: int) -> list[ExampleRow]:
    """Return rows of every health class where there are diagnostics, else the first rows that an arm took."""
    if not count:
        return []
    made = next((m for m in arms.values() if "diagnostics" in m), next(iter(arms.values())))
    chosen = _by_health(made, count) if "diagnostics" in made else _by_rank(made, count)
    # An arm that takes every row says nothing of this one.
    choosy = [name for name, m in arms.items() if m["subset"].summary["rows"] < m["subset"].summary["rows_pool"]]
    taken = {name: set(_taken(arms[name]["subset"]).to_pylist()) for name in choosy}
    rows = {row["example_id"]: row for row in made["examples"].read_examples("examples-", list(chosen)).to_pylist()}
    found = []
    for example_id, why in chosen.items():
        by = [name for name, ids in taken.items() if example_id in ids]
        title = f"{why}; {'taken by ' + ', '.join(by) if by else 'taken by no arm'}"
        found.append(ExampleRow(title, list(_fields(rows[example_id]))))
    return found


def _by_health(made: Mapping[str, Artifact], count: int) -> dict[int, str]:
    table = made["diagnostics"].read_in_order("health-", ["example_id", "health"])
    by_name = {name: table.filter(pc.equal(table.column("health"), name)).column("example_id") for name in HEALTH}
    found = [name for name in HEALTH if len(by_name[name])]
    chosen: dict[int, str] = {}
    for place, name in enumerate(found):
        ids = by_name[name]
        share = count // len(found) + (place < count % len(found))
        for index in np.linspace(0, len(ids) - 1, min(share, len(ids))).astype(int).tolist():
            chosen[ids[index].as_py()] = name
    return chosen


def _by_rank(made: Mapping[str, Artifact], count: int) -> dict[int, str]:
    table = made["subset"].read_table("subset.parquet", ["example_id", "rank"]).sort_by("rank").slice(0, count)
    ranks = zip(table.column("example_id").to_pylist(), table.column("rank").to_pylist(), strict=True)
    return {example_id: f"rank {rank}" for example_id, rank in ranks}


def _fields(row: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    yield "where", f"{row['input_file']}:{row['input_row'] + 1}"
    if row["source"] is not None:
        yield "source", row["source"]
    for turn in row["turns"]:
        text = turn["content"]
        yield (
            turn["role"],
            text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... ({len(text):,} characters)",
        )


def _provenance(inputs: Inputs) -> list[tuple[str, Value]]:
    versions = inputs.comparison.manifest.run["versions"]
    rows: list[tuple[str, Value]] = [(name, version) for name, version in versions.items()]
    for arm, made in inputs.arms.items():
        rows.append(
            (f"subset of {arm}", f"{without_user_info(made['subset'].uri)} (digest {made['subset'].digest[:16]})")
        )
    return rows
