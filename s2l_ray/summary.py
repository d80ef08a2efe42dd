"""What a run ends with: the table of arms, where things lie, and what to do next."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s2l_ray import schemas
from s2l_ray.artifacts import MANIFEST, Artifact, find_artifact
from s2l_ray.costs import arm_seconds
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import Experiment
from s2l_ray.graph import Node, Pipeline
from s2l_ray.log import display, duration, redacted
from s2l_ray.significance import metric_title
from s2l_ray.storage import Storage
from s2l_ray.subsets.lineage import artifact_at
from s2l_ray.sweep import setting_label
from s2l_ray.tracking import Tracked, flat, trackers
from s2l_ray.trials import lines

if TYPE_CHECKING:
    from s2l_ray.stages.run import RunResult
    from s2l_ray.stages.run_sweep import Finished


@dataclass(frozen=True)
class RunSummary:
    """The end of a run, for a person or for a program."""

    experiment: Experiment
    pipeline: Pipeline
    result: "RunResult"
    storage: Storage

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {
            "storage": self.storage.uri,
            "ran": self.result.ran,
            "seconds": round(self.result.seconds, 3),
            "arms": self._arms(),
            "gains": self._gains(),
            "artifacts": {self.pipeline.label(node): artifact.uri for node, artifact in self._artifacts()},
        }

    def save(self) -> None:
        """Write `resolved.json`, the whole config of every arm, beside the comparison."""
        comparison = self._comparison()
        if comparison is not None:
            resolved = {arm: redacted(config.model_dump(mode="json")) for arm, config in self.experiment.arms.items()}
            self.storage.write_bytes(
                (json.dumps(resolved, indent=1) + "\n").encode(),
                comparison.manifest.artifact,
                comparison.manifest.fingerprint,
                "resolved.json",
            )

    def track(self) -> None:
        """Tell the trackers of the config, where something has been made that they do not know."""
        told = list(trackers(self.experiment.shared.tracking))
        if not told or self._comparison() is None or not self.result.ran:
            return
        for arm, metrics in self._arms().items():
            tracked = self._tracked(arm, metrics)
            for tracker in told:
                tracker.tell(tracked)

    def _tracked(self, arm: str, metrics: Mapping[str, float | None]) -> Tracked:
        scores = self.pipeline.comparison.inputs[f"scores/{arm}"]
        used = scores.made(self.result.artifacts)
        return Tracked(
            f"{self.experiment.name}-{arm}",
            flat(redacted(self.experiment.arms[arm].model_dump(mode="json"))),
            {model: _losses(used[model]) for model in ("proxy", "target") if model in used},
            {name: value for name, value in metrics.items() if value is not None},
        )

    def show(self) -> None:
        """Print the summary."""
        arms = self._arms()
        if arms:
            names = list(dict.fromkeys(metric for metrics in arms.values() for metric in metrics))
            shown = [name for name in names if not name.endswith(("_low", "_high"))]
            rows = [[_title(name), *(_number(name, arm.get(name)) for arm in arms.values())] for name in shown]
            display.table(["", *arms], rows)
        self._show_gains()
        for artifact in ("subset", "target"):
            for node, found in self._artifacts():
                if node.artifact == artifact:
                    part = "rows" if artifact == "subset" else "model"
                    display.say(f"{self.pipeline.label(node)}: {found.uri_of(part)}")
        if not self.result.ran:
            display.say(f"nothing to do: everything was there ({duration(self.result.seconds)})")
        else:
            ran = len(self.result.ran)
            display.say(f"{ran} of {len(self.pipeline.nodes)} artifacts made in {duration(self.result.seconds)}")
        report = next((found for node, found in self._artifacts() if node.artifact == "report"), None)
        if report is not None:
            display.say(f"report: {report.uri_of(schemas.REPORT)}")
        last = self._artifacts()[-1][1]
        display.say(f"next: s2l inspect {last.storage.uri_of(last.manifest.artifact, last.manifest.fingerprint)}")

    def _show_gains(self) -> None:
        gains = self._gains()
        if not gains:
            return
        # A row for each arm and metric, since intervals of many arms side by side are wider than a terminal.
        baselines = dict.fromkeys(row["baseline"] for row in gains)
        rows: dict[str, dict[str, str]] = {}
        for row in gains:
            mean, _, metric = row["metric"].partition("_")
            arm = row["arm"] if len(baselines) == 1 else f"{row['arm']} over {row['baseline']}"
            rows.setdefault(f"{arm}: {metric_title(metric)}", {})[mean] = _gain(row)
        means, over = ("macro", "micro"), f" over {next(iter(baselines))}" if len(baselines) == 1 else ""
        header = [f"gain{over} [95 %]", *means]
        display.table(header, [[label, *(texts.get(mean, "-") for mean in means)] for label, texts in rows.items()])
        display.say(
            "a gain above 0 is better, also of a loss; intervals are over held-out rows, each by itself; how sure a "
            "method is takes several seeds: s2l sweep"
        )

    def _gains(self) -> list[dict[str, Any]]:
        comparison = self._comparison()
        rows = [] if comparison is None else comparison.read_table("gains.parquet").to_pylist()
        ends = ("gain", "low", "high")
        return [
            row | {e: row[e] if row[e] is not None and math.isfinite(row[e]) else None for e in ends} for row in rows
        ]

    def _artifacts(self) -> list[tuple[Node, Artifact]]:
        found = self.result.artifacts
        return [(node, found[node.key]) for node in self.pipeline.nodes if node.key in found]

    def _comparison(self) -> Artifact | None:
        return next((a for node, a in self._artifacts() if node.artifact == "comparison"), None)

    def _arms(self) -> dict[str, dict[str, float | None]]:
        comparison = self._comparison()
        if comparison is None:
            return {}
        arms: dict[str, dict[str, float | None]] = {}
        for row in comparison.read_table("arms.parquet").to_pylist():
            metrics = arms.setdefault(row["arm"], {})
            metrics[row["metric"]] = row["value"] if math.isfinite(row["value"]) else None
            if row["low"] is not None:
                metrics[f"{row['metric']}_low"], metrics[f"{row['metric']}_high"] = row["low"], row["high"]
        node = self.pipeline.comparison
        for arm, metrics in arms.items():
            seconds = arm_seconds(node.inputs[f"scores/{arm}"].made(self.result.artifacts))
            metrics |= {f"{part}_seconds": value for part, value in seconds.items()}
        return arms


@dataclass(frozen=True)
class ExtensionSummary:
    """The end of an extension."""

    pipeline: Pipeline
    result: "RunResult"

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        assigned, extension = self._made("assignments").summary, self._made("extension")
        return {
            "rows": extension.summary["rows"],
            "rows_assigned": assigned["rows"],
            "rows_set_aside": assigned["rows_set_aside"],
            "drift": assigned["drift"],
            "extension": extension.uri_of("rows"),
            "ran": self.result.ran,
        }

    def show(self) -> None:
        """Print the summary."""
        found = self.as_json()
        for reason, count in found["rows_set_aside"].items():
            display.say(f"{count} rows set aside: {reason}")
        display.say(f"{found['rows']} of {found['rows_assigned']} new rows join the subset: {found['extension']}")
        places = (self._made(name) for name in ("subset", "extension"))
        folders = [a.storage.uri_of(a.manifest.artifact, a.manifest.fingerprint) for a in places]
        display.say(f"next: {shlex.join(['s2l', 'diff', *folders])}")

    def _made(self, artifact: str) -> Artifact:
        return next(self.result.artifacts[node.key] for node in self.pipeline.nodes if node.artifact == artifact)


@dataclass(frozen=True)
class SweepSummary:
    """The end of a sweep, for a person or for a program."""

    finished: "Finished"

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        result, artifact = self.finished.result, self.finished.artifact
        return {
            "storage": artifact.storage.uri,
            "trials": [outcome.trial.values | {"status": outcome.status} for outcome in result.outcomes],
            "ran": self.finished.ran,
            "seconds": round(self.finished.seconds, 3),
            "best": artifact.summary["best"],
            "recommended_budget": artifact.summary["recommended_budget"],
            "comparisons": [comparison.sentence for comparison in result.comparisons()],
            "artifact": artifact.uri,
            "report": self.finished.report.uri_of(schemas.REPORT),
        }

    def show(self) -> None:
        """Print the summary."""
        result, artifact = self.finished.result, self.finished.artifact
        metric = result.sweep.config.metric
        names = [parameter.name for parameter in result.sweep.parameters if not parameter.is_seed]
        rows = []
        for setting in result.settings:
            value, low, high = setting.mean
            interval = "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            rows.append([*(str(setting.values[n]) for n in names), f"{value:.3f}", interval, str(len(setting.scores))])
        display.table([*names, _title(metric), "95 %", "seeds"], rows)
        for line in lines(result):
            display.say(line)
        for outcome in result.outcomes:
            if outcome.error:
                display.warn(f"trial {outcome.trial.name} ({setting_label(outcome.trial.values)}): {outcome.error}")
        done = sum(outcome.status == "finished" for outcome in result.outcomes)
        display.say(
            f"{done} of {len(result.outcomes)} trials finished, {self.finished.ran} of them run now, "
            f"in {duration(self.finished.seconds)}"
        )
        display.say(f"trials: {artifact.uri_of('trials.parquet')}")
        display.say(f"report: {self.finished.report.uri_of(schemas.REPORT)}")
        display.say(
            f"next: s2l inspect {artifact.storage.uri_of(artifact.manifest.artifact, artifact.manifest.fingerprint)}"
        )


def _losses(model: Artifact) -> dict[int, float]:
    with model.storage.open_input(model.path("metrics.jsonl")) as stream:
        reports = [json.loads(line) for line in bytes(stream.read()).splitlines()]
    return {report["step"]: report["mean_loss"] for report in reports}


def _title(name: str) -> str:
    return metric_title(name).replace(" seconds", " [s]")


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("rows", "response_tokens"):
        return f"{value:.0f}"
    return f"{value:.1f}" if name.endswith("_seconds") else f"{value:.3f}"


def _gain(row: Mapping[str, Any]) -> str:
    if row["gain"] is None:
        return "-"
    interval = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['gain']:+.3f}{interval}"


def inspect_folder(folder: str) -> dict[str, Any]:
    """Return what can be said of an artifact's folder, or of a storage.

    Raises:
        ConfigError: neither.
    """
    artifact = artifact_at(folder)
    if artifact is not None:
        manifest = artifact.manifest
        damaged = artifact.damaged_files()
        return {
            "artifact": manifest.artifact,
            "fingerprint": manifest.fingerprint,
            "digest": manifest.digest,
            "settings": dict(manifest.config),
            "inputs": dict(manifest.inputs),
            "summary": dict(manifest.summary),
            "run": {key: value for key, value in manifest.run.items() if key != "versions"},
            "files": {
                file.path: f"{'-' if file.rows is None else file.rows} rows, {file.bytes} bytes"
                for file in manifest.files
            },
            "folder": artifact.uri,
            "checksums": "good" if not damaged else f"DAMAGED: {', '.join(damaged)}",
        }
    storage = Storage.at(folder)
    found = {
        f"{kind}/{fingerprint}": f"{len(known.manifest.files)} files, {known.manifest.run.get('finished')}"
        for kind in storage.list_folders()
        for fingerprint in storage.list_folders(kind)
        if (known := find_artifact(storage, kind, fingerprint)) is not None
    }
    if not found:
        raise ConfigError(f"{folder} holds no {MANIFEST} and no artifacts. Give a folder's path, or a storage's.")
    return {"storage": storage.uri, "artifacts": found}
