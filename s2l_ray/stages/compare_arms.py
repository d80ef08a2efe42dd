"""`scores` and `subset` of every arm -> `comparison`: `arms.parquet`, a row per arm and metric, and `gains.parquet`.

Scores carry a 95 % interval over held-out rows: how sure this model's score is, not how sure the method is (that takes
several seeds). A gain is how much better a model is than the baseline's on the same rows: what makes a row easy or hard
for both cancels, so its interval says more than those of the two scores.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import ResourcesConfig
from s2l_ray.judging.metrics import is_of_rows, is_share
from s2l_ray.labels import counted
from s2l_ray.scoring import (
    Bounds,
    Mean,
    bounds_of_share_differences,
    bounds_of_shares,
    mean_of,
    means_by_group,
    tail_groups,
    weighted_mean,
)
from s2l_ray.significance import higher_is_better
from s2l_ray.stage_settings import CompareSettings
from s2l_ray.staged_output import StagedOutput


@dataclass(frozen=True)
class Inputs:
    """Of every arm its examples, its subset and its scores, and how much of the held-out data it was trained on."""

    arms: Mapping[str, tuple[Artifact, Artifact, Artifact]]
    overlap: Mapping[str, Artifact]

    @classmethod
    def from_named(cls, named: Mapping[str, Artifact]) -> "Inputs":
        """Take `examples/ARM`, `subset/ARM`, `scores/ARM` and `overlap/ARM` apart."""
        arms = [name.partition("/")[2] for name in named if name.startswith("subset/")]
        return cls(
            {arm: (named[f"examples/{arm}"], named[f"subset/{arm}"], named[f"scores/{arm}"]) for arm in arms},
            {arm: named[f"overlap/{arm}"] for arm in arms},
        )


def compare_arms(
    inputs: Inputs, config: CompareSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Put the arms side by side."""
    rows = []
    for arm, (examples, subset, scores) in inputs.arms.items():
        for metric, mean in _metrics(subset, scores, examples):
            low, high = mean.interval
            rows.append({"arm": arm, "metric": metric, "value": mean.value, "low": low, "high": high})
    table = pa.Table.from_pylist(rows, schema=schemas.ARMS)
    gains = pa.Table.from_pylist(list(_gains(inputs, config.baseline)), schema=schemas.GAINS)
    return StageResult(
        [
            output.write_parquet("arms.parquet", [table], schemas.ARMS),
            output.write_parquet("gains.parquet", [gains], schemas.GAINS),
        ],
        {"arms": list(inputs.arms), "overlap": {arm: found.summary for arm, found in inputs.overlap.items()}},
    )


@lru_cache(maxsize=1)
def _counts(examples: Artifact) -> Mapping[str, Mapping[str, int]]:
    """Return the pool's rows per `source` and per `skill`; nothing where neither skill nor truth is known of any.

    A file is in memory at a time.
    """
    counts: dict[str, Counter[str]] = {"source": Counter(), "skill": Counter()}
    is_labelled = False
    for record in examples.files("examples-"):
        table = examples.read_rows(record, columns=["source", "skill", "is_wrong"])
        is_labelled |= any(table.column(name).null_count < len(table) for name in ("skill", "is_wrong"))
        for name, counter in counts.items():
            counter.update(_per_group(table.column(name)))
    return counts if is_labelled else {}


@dataclass(frozen=True)
class _Grouping:
    """What held-out rows are grouped by.

    Attributes:
        by: `skill` where some row has one, else `source`.
        is_there: whether some row has that.
        counts: rows of the pool per group; none where neither skill nor truth is known of any.
    """

    by: str
    is_there: bool
    counts: Mapping[str, int]

    @classmethod
    def of(cls, scores: list[dict[str, Any]], examples: Artifact) -> "_Grouping":
        """Find it in the rows of `scores.parquet`."""
        found = {row["group_by"] for row in scores}
        by = "skill" if "skill" in found else "source"
        return cls(by, by in found, _counts(examples).get(by, {}))

    def means(
        self, metric: str, groups: Mapping[str, Mean], of_all: Mean, bounds: Bounds | None
    ) -> Iterator[tuple[str, Mean]]:
        """Yield what a metric is with each group alike, and with groups as they occur in training."""
        if groups or not self.is_there:  # rows that nothing tells apart are one group
            yield f"macro_{metric}", weighted_mean(groups, bounds=bounds) if groups else of_all
        # By the share in training, where every group that is asked about is there.
        is_weighed = bool(groups) and all(self.counts.get(group) for group in groups)
        yield f"micro_{metric}", weighted_mean(groups, self.counts, bounds=bounds) if is_weighed else of_all


def _metrics(subset: Artifact, scores: Artifact, examples: Artifact) -> Iterator[tuple[str, Mean]]:
    table = scores.read_table("scores.parquet").to_pylist()
    grouping = _Grouping.of(table, examples)
    for metric in dict.fromkeys(row["metric"] for row in table):
        of_metric = [row for row in table if row["metric"] == metric]
        groups = {row["group"]: _mean(row) for row in of_metric if row["group_by"] == grouping.by}
        of_all = next(_mean(row) for row in of_metric if row["group_by"] == "all")
        yield from grouping.means(metric, groups, of_all, bounds_of_shares if is_share(metric) else None)
    counts = grouping.counts
    rows = subset.summary["rows"]
    yield "rows", Mean(rows, None, rows)
    yield "response_tokens", Mean(subset.summary["target_response_tokens"], None, rows)
    if counts:
        ids = subset.read_table("subset.parquet", ["example_id"]).column(0).to_numpy()
        chosen = examples.read_examples("examples-", ids, ["example_id", grouping.by, "is_wrong"])
        tail, taken = tail_groups(counts), _per_group(chosen.column(grouping.by))
        yield "tail_share", Mean(sum(taken.get(group, 0) for group in tail) / rows, None, rows)
        wrong = chosen.column("is_wrong").drop_null()
        if len(wrong):  # of the rows of which it is known
            yield "wrong_share", Mean(pc.mean(wrong).as_py(), None, len(wrong))


def _per_group(groups: pa.ChunkedArray) -> dict[str, int]:
    return {group or "": rows for group, rows in counted(groups).items()}


def _mean(row: Mapping[str, Any]) -> Mean:
    bounds = None if row["low"] is None else (row["low"], row["high"])
    return Mean(row["value"], row["standard_error"], row["rows"], bounds)


def _gains(inputs: Inputs, baseline: str | None) -> Iterator[dict[str, Any]]:
    """Yield what every other arm gains over the baseline, where both were judged on the same data."""
    if baseline is None:
        return
    examples, _, reference = inputs.arms[baseline]
    table = reference.read_table("scores.parquet").to_pylist()
    grouping = _Grouping.of(table, examples)
    for arm, (_, _, scores) in inputs.arms.items():
        held_out = [found.manifest.inputs["eval_examples"] for found in (scores, reference)]
        if arm == baseline or held_out[0] != held_out[1]:
            continue
        judged = set(scores.read_table("scores.parquet", ["metric"]).column(0).to_pylist())
        for metric in dict.fromkeys(row["metric"] for row in table):
            if metric in judged and is_of_rows(metric):
                for name, gain in _paired(metric, scores, reference, grouping):
                    low, high = gain.interval
                    facts = {"gain": gain.value, "low": low, "high": high, "rows": gain.rows}
                    yield {"arm": arm, "baseline": baseline, "metric": name, **facts}


def _paired(metric: str, scores: Artifact, reference: Artifact, grouping: _Grouping) -> Iterator[tuple[str, Mean]]:
    ours, theirs = (_judged(found, metric, grouping.by) for found in (scores, reference))
    own_ids, other_ids = (table.column("example_id").to_numpy() for table in (ours, theirs))
    _, own, other = np.intersect1d(own_ids, other_ids, assume_unique=True, return_indices=True)
    if not len(own):
        return
    value_N, baseline_N = (
        pc.cast(table.column(metric), pa.float64()).to_numpy()[places]
        for table, places in ((ours, own), (theirs, other))
    )
    difference_N = (value_N - baseline_N) * (1 if higher_is_better(f"micro_{metric}") else -1)
    bounds = bounds_of_share_differences if is_share(metric) else None
    of_all = mean_of(difference_N)
    if bounds is not None:
        of_all = replace(of_all, bounds=bounds([(1.0, of_all)]))
    names = ours.column(grouping.by).take(own).to_pylist()
    is_grouped = any(name is not None for name in names)
    groups = means_by_group(difference_N, [name or "" for name in names]) if is_grouped else {}
    yield from grouping.means(metric, groups, of_all, bounds)


def _judged(scores: Artifact, metric: str, group_by: str) -> pa.Table:
    table = scores.read_table("predictions.parquet", ["example_id", group_by, metric])
    return table.filter(pc.is_valid(table.column(metric)))
