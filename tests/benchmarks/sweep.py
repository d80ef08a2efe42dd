"""What a sweep costs beyond its trials: Tune, process starts, waiting, and whatever would be computed twice."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray

from s2l_ray.digests import DigestCache
from s2l_ray.graph import STAGES, Pipeline, examine
from s2l_ray.log import display
from s2l_ray.plan import build_pipeline
from s2l_ray.stages import runtime
from s2l_ray.stages.run import Runner
from s2l_ray.stages.run_sweep import run_sweep
from s2l_ray.storage import Storage
from s2l_ray.sweep import load_sweep
from tests.benchmarks.harness import Benchmark, Ratio

WORKFLOW = Path(__file__).parents[2] / "workflows" / "sweep_quickstart.yaml"
TAIL = "select_subset"
"""The first stage that belongs to a trial alone."""


def measure() -> Iterator[Ratio]:
    """Time the trials of `workflows/sweep_quickstart.yaml` against the seconds that their own stages took."""
    display.quiet = True
    with tempfile.TemporaryDirectory(prefix="s2l-") as folder:
        sweep = load_sweep(WORKFLOW, [f"storage={folder}"])
        storage, resources = Storage(folder), sweep.shared.resources
        pipelines = [build_pipeline(trial.experiment) for trial in sweep.trials]
        runtime.connect(resources)
        try:
            at_once = int(ray.cluster_resources()["CPU"])
            Runner(Pipeline.before(TAIL, pipelines), storage, resources).run()
            finished = run_sweep(sweep, storage)
        finally:
            runtime.disconnect()
        yield Ratio(
            work=f"{len(sweep.trials)} trials, {at_once} at once",
            peer_name="the stages of their distinct tails",
            ours=finished.seconds * at_once,
            peer=_tail_seconds(pipelines, storage),
            unit="CPU seconds",
        )


def _tail_seconds(pipelines: Sequence[Pipeline], storage: Storage) -> float:
    """Add up what every stage from the tail on took, each artifact once."""
    order = list(STAGES)
    seconds: dict[str, float] = {}
    for pipeline in pipelines:
        for state in examine(pipeline, storage, DigestCache(storage)):
            if order.index(state.node.stage) >= order.index(TAIL) and state.artifact is not None:
                seconds[state.artifact.uri] = float(state.artifact.manifest.run["seconds"])
    return sum(seconds.values())


BENCHMARK = Benchmark("sweep", "what a sweep costs beyond its trials", measure)
