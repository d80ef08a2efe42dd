"""`scores` and `subset` of every arm -> `comparison`: `arms.parquet`, a row per arm and metric.

Scores carry a 95 % interval over held-out rows: how sure this model's score is, not how sure the method is (that takes
several seeds).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import ResourcesConfig
from s2l_ray.judging.metrics import is_share
from s2l_ray.labels import counted
from s2l_ray.scoring import Mean, tail_groups, weighted_mean
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
    inputs: Inputs, config: None, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Put the arms side by side."""
    rows = []
    for arm, (examples, subset, scores) in inputs.arms.items():
        for metric, mean in _metrics(subset, scores, examples):
            low, high = mean.interval
            rows.append({"arm": arm, "metric": metric, "value": mean.value, "low": low, "high": high})
    table = pa.Table.from_pylist(rows, schema=schemas.ARMS)
    record = output.write_parquet("arms.parquet", [table], schemas.ARMS)
    return StageResult(
        [record],
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


def _metrics(subset: Artifact, scores: Artifact, examples: Artifact) -> Iterator[tuple[str, Mean]]:
    table = scores.read_table("scores.parquet").to_pylist()
    group_by = "skill" if any(row["group_by"] == "skill" for row in table) else "source"
    is_grouped = any(row["group_by"] == group_by for row in table)
    counts = _counts(examples).get(group_by, {})
    for metric in dict.fromkeys(row["metric"] for row in table):
        of_metric = [row for row in table if row["metric"] == metric]
        groups = {row["group"]: _mean(row) for row in of_metric if row["group_by"] == group_by}
        of_all = next(_mean(row) for row in of_metric if row["group_by"] == "all")
        if groups or not is_grouped:  # rows that nothing tells apart are one group
            yield f"macro_{metric}", weighted_mean(groups, of_shares=is_share(metric)) if groups else of_all
        # By the share in training, where every group that is asked about is there.
        is_weighed = bool(groups) and all(counts.get(group) for group in groups)
        micro = weighted_mean(groups, counts, of_shares=is_share(metric)) if is_weighed else of_all
        yield f"micro_{metric}", micro
    rows = subset.summary["rows"]
    yield "rows", Mean(rows, None, rows)
    yield "response_tokens", Mean(subset.summary["target_response_tokens"], None, rows)
    if counts:
        ids = subset.read_table("subset.parquet", ["example_id"]).column(0).to_numpy()
        chosen = examples.read_examples("examples-", ids, ["example_id", group_by, "is_wrong"])
        tail, taken = tail_groups(counts), _per_group(chosen.column(group_by))
        yield "tail_share", Mean(sum(taken.get(group, 0) for group in tail) / rows, None, rows)
        wrong = chosen.column("is_wrong").drop_null()
        if len(wrong):  # of the rows of which it is known
            yield "wrong_share", Mean(pc.mean(wrong).as_py(), None, len(wrong))


def _per_group(groups: pa.ChunkedArray) -> dict[str, int]:
    return {group or "": rows for group, rows in counted(groups).items()}


def _mean(row: Mapping[str, Any]) -> Mean:
    bounds = None if row["low"] is None else (row["low"], row["high"])
    return Mean(row["value"], row["standard_error"], row["rows"], bounds)
