"""Every trial of a sweep -> `trials`: `trials.parquet`, a row per trial, and `comparisons.parquet`.

What trials share (proxies, trajectories, clusterings) is made first, once. Ray Tune then runs the tails: a trial is a
plain function that brings its pipeline to its end in the storage. All state is in the storage, so a killed sweep goes
on with the same command, and a trial that some other run has done is not done again.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, find_artifact
from s2l_ray.attempts import find_or_make
from s2l_ray.config import ResourcesConfig
from s2l_ray.costs import arm_seconds
from s2l_ray.digests import DigestCache
from s2l_ray.errors import S2LError, StageFailed
from s2l_ray.graph import Node, NodeState, Pipeline, examine
from s2l_ray.log import Task, display
from s2l_ray.plan import InputListing, build_pipeline
from s2l_ray.report.html import render
from s2l_ray.report.sweep_page import sweep_page
from s2l_ray.significance import higher_is_better
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import capacity, runtime
from s2l_ray.stages.run import Runner, versions
from s2l_ray.storage import Storage
from s2l_ray.sweep import Sweep, Trial
from s2l_ray.trials import Outcome, SweepResult

SCORE = "score"
MOST_AT_ONCE = 64
"""Trials at once unless the config says otherwise: each is a process that waits for its stages."""
TAILS = ("select_subset", "finetune_target", "evaluate_target")


@dataclass(frozen=True)
class Finished:
    """A sweep that has ended: what it came to, and where it is kept."""

    result: SweepResult
    artifact: Artifact
    report: Artifact
    ran: int
    """Trials that were run now, not found."""
    seconds: float


def run_sweep(
    sweep: Sweep, storage: Storage, *, run_missing: bool = True, allow_code_execution: bool = False
) -> Finished:
    """Run the trials of a sweep that are not there yet, and say what they came to.

    Args:
        sweep: the trials.
        storage: where they are kept.
        run_missing: `False` only looks at what is there.
        allow_code_execution: programs that a target writes may run where a metric asks for it.

    Raises:
        S2LError: what trials share could not be made, or no trial finished.
    """
    started = time.monotonic()
    listing: InputListing = {}
    pipelines = {
        trial.name: build_pipeline(trial.experiment, listing, allow_code_execution=allow_code_execution)
        for trial in sweep.trials
    }
    states = _States(storage)
    result = SweepResult(sweep, tuple(_outcome(trial, pipelines[trial.name], states, {}) for trial in sweep.trials))
    todo = [outcome.trial for outcome in result.outcomes if not outcome.metrics] if run_missing else []
    if sweep.config.search == "asha" and find_artifact(storage, "trials", _address(result, pipelines)[1]) is not None:
        todo = []  # it has come to its end: what it stopped on the way stays so
    if todo:
        storage.check_writable()
        resources = sweep.shared.resources
        is_ours = runtime.connect(resources)
        shared = Pipeline.before("select_subset", (pipelines[trial.name] for trial in todo))
        Runner(shared, storage, resources).run()
        errors = _run_tails(sweep, pipelines, storage, todo)
        if is_ours:
            runtime.disconnect()
        states = _States(storage)
        now = (o if o.metrics else _outcome(o.trial, pipelines[o.trial.name], states, errors) for o in result.outcomes)
        result = SweepResult(sweep, tuple(now))
    if result.best is None:
        first = next((outcome.error for outcome in result.outcomes if outcome.error), "they were not run")
        raise StageFailed(f"none of {len(result.outcomes)} trials finished; the first: {first}")
    seconds = time.monotonic() - started
    trials = _commit(result, pipelines, storage, seconds)
    return Finished(result, trials, _commit_report(result, trials), len(todo), seconds)


class _States:
    """Looks up what trials have made, each artifact once."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._digests = storage, DigestCache(storage)
        self._known: dict[str, NodeState] = {}

    def finished(self, pipeline: Pipeline) -> dict[str, Artifact] | None:
        """Return a trial's artifacts by node key; None where one is missing."""
        found = {}
        for state in examine(pipeline, self._storage, self._digests, self._known):
            if state.artifact is None:
                return None
            found[state.node.key] = state.artifact
        return found


@dataclass(frozen=True)
class _Group:
    """What the process of a Tune trial gets: trials that it runs one after the other, by name."""

    pipelines: Mapping[str, Pipeline]
    metric: str
    storage: Storage
    resources: ResourcesConfig


def _groups(sweep: Sweep, todo: Sequence[Trial]) -> list[list[str]]:
    """Return which trials a Tune trial runs: one, or for `asha` all seeds of a setting, one after the other."""
    if sweep.config.search != "asha":
        return [[trial.name] for trial in todo]
    # Also those that are there: they report at once, and others are measured against them.
    return [[trial.name for trial in repeats] for repeats in sweep.settings().values()]


def _run_tails(
    sweep: Sweep, pipelines: Mapping[str, Pipeline], storage: Storage, todo: Sequence[Trial]
) -> dict[str, str]:
    """Run trials under Tune; return what went wrong, by trial."""
    import ray
    from ray import tune

    config = sweep.config
    groups = _groups(sweep, todo)
    mode = "max" if higher_is_better(config.metric) else "min"
    scheduler = None
    if config.search == "asha":
        most = max(len(group) for group in groups)
        scheduler = tune.schedulers.ASHAScheduler(max_t=max(1, most), grace_period=1, reduction_factor=2)
    with (
        display.progress("trials", sum(len(group) for group in groups), "trials") as progress,
        tempfile.TemporaryDirectory(prefix="s2l-") as folder,
    ):
        watch = _watch(groups, progress)
        # Each by itself: all of them, for thousands of trials, take every process many seconds to read.
        parts = [
            ray.put(_Group({name: pipelines[name] for name in group}, config.metric, storage, sweep.shared.resources))
            for group in groups
        ]
        trainable = tune.with_parameters(_run_group, groups=parts)
        tuner = tune.Tuner(
            # Its own process does nothing but wait: what a trial computes asks for its resources itself.
            tune.with_resources(trainable, {"cpu": 0, "memory": 1}),
            param_space={"group": tune.grid_search(list(range(len(groups))))},
            tune_config=tune.TuneConfig(
                metric=SCORE,
                mode=mode,
                scheduler=scheduler,
                max_concurrent_trials=_at_once(sweep),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.retries),
                callbacks=[watch],
            ),
        )
        tuner.fit()
    return dict(watch.errors)


def _at_once(sweep: Sweep) -> int:
    """Return how many trials the cluster holds: each needs what the largest stage of its tail needs."""
    most = float(sweep.config.max_concurrent or min(len(sweep.trials), MOST_AT_ONCE))
    for stage in TAILS:
        demand = sweep.shared.resources.of(stage)
        if demand is not None:
            most = min(most, capacity.at_once(demand))
    return max(1, int(most))


def _watch(groups: Sequence[Sequence[str]], progress: Task) -> Any:
    from ray import tune

    class Watch(tune.Callback):  # type: ignore[misc]
        """Counts trials and notes what went wrong."""

        def __init__(self) -> None:
            self.errors: dict[str, str] = {}

        def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
            return tune.Callback, ()  # Tune stores its callbacks; a progress bar has no place there

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            progress.advance()
            if result.get("error"):
                self.errors[result["trial"]] = result["error"]

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            for name in groups[trial.config["group"]]:
                self.errors.setdefault(name, "its process died again and again; S2L_VERBOSE=1 shows its output")

    return Watch()


_verified: set[str] = set()
"""Artifacts whose checksums this process has found good: trials that follow one another share most of them."""


def _run_group(config: dict[str, Any], groups: Sequence[Any]) -> None:
    """Run in a trial's process: the trials of a group one after the other, each to its end in the storage."""
    import ray
    from ray import tune

    display.quiet = True
    group: _Group = ray.get(groups[config["group"]])
    worst = -math.inf if higher_is_better(group.metric) else math.inf
    scores: list[float] = []
    for name, pipeline in group.pipelines.items():
        try:
            made = Runner(pipeline, group.storage, group.resources, _verified).run().artifacts
            scores.append(_score(made[pipeline.comparison.key], group.metric))
        except S2LError as error:
            # It would only come again; other trials are none the worse for it.
            tune.report({"trial": name, SCORE: worst, "error": str(error)})
            continue
        tune.report({"trial": name, SCORE: sum(scores) / len(scores), "error": ""})


def _score(comparison: Artifact, metric: str) -> float:
    found = _metrics(comparison)
    if metric not in found:
        raise StageFailed(f"it has no {metric}, but {', '.join(found)}")
    return found[metric]


def _metrics(comparison: Artifact) -> dict[str, float]:
    table = comparison.read_table("arms.parquet", ["metric", "value"])
    return dict(zip(table.column("metric").to_pylist(), table.column("value").to_pylist(), strict=True))


def _outcome(trial: Trial, pipeline: Pipeline, states: _States, errors: Mapping[str, str]) -> Outcome:
    made = states.finished(pipeline)
    if made is None:
        return Outcome(trial, error=errors.get(trial.name))
    comparison = pipeline.comparison
    scores = next(node for name, node in comparison.inputs.items() if name.startswith("scores/"))
    digests = {node.artifact: made[node.key].digest for node in pipeline.nodes if node.artifact in ("subset", "scores")}
    return Outcome(trial, _metrics(made[comparison.key]), digests, arm_seconds(scores.made(made)))


def _address(result: SweepResult, pipelines: Mapping[str, Pipeline]) -> tuple[Node, str, dict[str, str]]:
    """Return what the table of trials is made of: its node, its fingerprint, and the scores that it holds."""
    finished = [outcome for outcome in result.outcomes if outcome.metrics]
    inputs = {f"comparison/{o.trial.name}": pipelines[o.trial.name].comparison for o in finished}
    digests = {f"scores/{o.trial.name}": o.digests["scores"] for o in finished}
    settings = {
        "sweep": result.sweep.config.model_dump(mode="json"),
        "trials": [{k: str(v) for k, v in o.trial.values.items()} for o in result.outcomes],
        "failed": [o.trial.name for o in result.outcomes if o.status == "failed"],
    }
    node = Node("trials", "run_sweep", None, settings, inputs)
    return node, node.fingerprint(digests, None), digests


def _commit(result: SweepResult, pipelines: Mapping[str, Pipeline], storage: Storage, seconds: float) -> Artifact:
    node, fingerprint, digests = _address(result, pipelines)

    def make(output: StagedOutput) -> Artifact:
        table = result.table()
        comparisons = pa.Table.from_pylist([asdict(c) | {"verdict": c.verdict} for c in result.all_comparisons()])
        records = [output.write_parquet("trials.parquet", [table], table.schema)]
        if comparisons.num_rows:
            records.append(output.write_parquet("comparisons.parquet", [comparisons], comparisons.schema))
        best = result.best
        return output.commit(
            records,
            config={"settings": node.settings, "seed": 0},
            inputs=digests,
            summary={
                "trials": len(result.outcomes),
                "finished": len(digests),
                "best": None if best is None else best.label,
                "recommended_budget": {label: advice.recommended for label, advice in result.budgets().items()},
            },
            run={
                "seconds": round(seconds, 3),
                "versions": versions(),
                "resources": _resources(result.sweep.shared.resources),
            },
        )

    return find_or_make(storage, "trials", fingerprint, make)


def _commit_report(result: SweepResult, trials: Artifact) -> Artifact:
    """Write the page; it holds nothing but what `trials` holds, and the file of the sweep."""
    settings = {"name": result.sweep.name, "text": result.sweep.text}
    fingerprint = Node("report", "write_report", None, settings, {}).fingerprint({"trials": trials.digest}, None)

    def make(output: StagedOutput) -> Artifact:
        started = time.monotonic()
        return output.commit(
            [output.write_bytes(schemas.REPORT, render(sweep_page(result)).encode())],
            config={"settings": settings, "seed": 0},
            inputs={"trials": trials.digest},
            summary={"trials": len(result.outcomes)},
            run={"seconds": round(time.monotonic() - started, 3), "versions": versions(), "resources": {}},
        )

    return find_or_make(trials.storage, "report", fingerprint, make)


def _resources(resources: ResourcesConfig) -> dict[str, Any]:
    return {stage: demand.model_dump(mode="json") for stage in TAILS if (demand := resources.of(stage)) is not None}
