"""`scores` and `subset` of every arm -> `comparison`: `arms.parquet`, a row per arm and metric, and `gains.parquet`.

Scores carry a 95 % interval over held-out rows: how sure this model's score is, not how sure the method is (that takes
several seeds). Gains are those of `gains`, each over the arm that `baselines` names.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import ResourcesConfig
from s2l_ray.gains import gains
from s2l_ray.judging.metrics import is_share
from s2l_ray.labels import counted
from s2l_ray.scoring import Grouping, Mean, bounds_of_shares, tail_groups
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
    gained = pa.Table.from_pylist(list(_gains(inputs, config.baselines)), schema=schemas.GAINS)
    return StageResult(
        [
            output.write_parquet("arms.parquet", [table], schemas.ARMS),
            output.write_parquet("gains.parquet", [gained], schemas.GAINS),
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


def _grouping(scores: Sequence[Mapping[str, Any]], examples: Artifact) -> Grouping:
    """Find in the rows of `scores.parquet` what held-out rows are grouped by."""
    found = {row["group_by"] for row in scores}
    by = "skill" if "skill" in found else "source"
    return Grouping(by, by in found, _counts(examples).get(by, {}))


def _metrics(subset: Artifact, scores: Artifact, examples: Artifact) -> Iterator[tuple[str, Mean]]:
    table = scores.read_table("scores.parquet").to_pylist()
    grouping = _grouping(table, examples)
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


def _gains(inputs: Inputs, baselines: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what arms gain over their baselines, where both were judged on the same tokens of the same rows."""
    for arm, baseline in baselines.items():
        examples, _, scores = inputs.arms[arm]
        reference = inputs.arms[baseline][2]
        own, other = scores.manifest.inputs, reference.manifest.inputs
        if any(own[name] != other[name] for name in ("eval_examples", "eval_tokens")):
            continue
        table, other_table = (found.read_table("scores.parquet").to_pylist() for found in (scores, reference))
        grouping, judged = _grouping(table, examples), {row["metric"] for row in other_table}
        metrics = [metric for metric in dict.fromkeys(row["metric"] for row in table) if metric in judged]
        columns = ["example_id", grouping.by, *metrics]
        ours, theirs = (found.read_table("predictions.parquet", columns) for found in (scores, reference))
        for metric, gain in gains(ours, theirs, metrics, grouping):
            low, high = gain.interval
            facts = {"gain": gain.value, "low": low, "high": high, "rows": gain.rows}
            yield {"arm": arm, "baseline": baseline, "metric": metric, **facts}
